"""A complete hypervisor in memory: runs a cluster on a laptop, and misbehaves exactly as told.

It keeps the rules of `Hypervisor` like any other backend, and adds what only a simulation can offer: faults and delays
as data (`MockFaults`), crashes, changes by a foreign hand, and a clock that a test turns. With a state file its VMs
outlive the process, as real ones do.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

from hypervisor.base import Hypervisor, Listener
from hypervisor.devices import Devices
from hypervisor.errors import ConsoleAbsent, GuestDidNotStop, Refused, Unavailable, WrongState
from hypervisor.guests import GuestAgents
from hypervisor.host_devices import HostDevices
from hypervisor.migration import Migration
from hypervisor.mock.consoles import MockConsoles
from hypervisor.mock.devices import MockDevices
from hypervisor.mock.faults import MockFaults, Operation
from hypervisor.mock.guest_agents import MockGuestAgents
from hypervisor.mock.host import OFF, MockHost, MockSettings
from hypervisor.mock.migration import MockMigration
from hypervisor.mock.processes import MockProcesses
from hypervisor.mock.resizing import MockHostDevices, MockResizing
from hypervisor.mock.snapshots import MockSnapshots
from hypervisor.mock.statistics import MockStatistics
from hypervisor.processes import VmProcesses
from hypervisor.resizing import Resizing
from hypervisor.snapshots import Snapshots
from hypervisor.statistics import Statistics
from hypervisor.types import (
    Accelerator,
    Capabilities,
    ConsoleKind,
    ConsoleLog,
    EventKind,
    Health,
    PowerState,
    SimulatedUsage,
    VmConfig,
    VmEvent,
    VmNotes,
    VmStatus,
)


class MockHypervisor(Hypervisor):
    """The simulation.

    Args:
        now_s: Unix time; everything that moves, moves with it.
        sleep: how waiting is done, so that a test with a clock of its own need not wait.
    """

    def __init__(
        self,
        settings: MockSettings | None = None,
        *,
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._host = MockHost(settings or MockSettings(), now_s, sleep)
        self._devices = MockDevices(self._host)
        self._resizing = MockResizing(self._host)
        self._host_devices = MockHostDevices(self._host)
        self._snapshots = MockSnapshots(self._host)
        self._guests = MockGuestAgents(self._host)
        self._statistics = MockStatistics(self._host)
        self._consoles = MockConsoles(self._host)
        self._migration = MockMigration(self._host)
        self._processes = MockProcesses(self._host)

    # what only a simulation offers

    def set_faults(self, faults: MockFaults) -> None:
        """Replace all faults from now on; used-up counts start anew."""
        self._host.set_faults(faults)

    async def crash(self, vm_id: str) -> None:
        """Let the VM's process die under a running or paused guest."""
        vm = self._host.vm(vm_id)
        if vm.state not in (PowerState.RUNNING, PowerState.PAUSED):
            raise WrongState(vm_id, "crash", vm.state.value)
        self._host.power_off(vm)
        self._host.change(vm, PowerState.CRASHED, EventKind.CRASHED, "simulated crash")
        await self._host.save()

    async def destroy_behind_our_back(self, vm_id: str) -> None:
        """Pull the plug as another tool on the host would."""
        vm = self._host.vm(vm_id)
        if vm.state not in OFF:
            self._host.power_off(vm)
            self._host.change(vm, PowerState.STOPPED, EventKind.STOPPED, "destroyed by another tool")
            await self._host.save()

    async def remove_behind_our_back(self, vm_id: str) -> None:
        """Destroy and undefine as another tool on the host would."""
        await self.destroy_behind_our_back(vm_id)
        self._host.forget(vm_id)
        await self._host.save()

    async def define_behind_our_back(self, config: VmConfig) -> None:
        """Define a VM as another tool on the host would; it is listed as not managed by us."""
        await self._host.define(config, is_managed=False)

    async def set_load(self, vm_id: str, load: float) -> None:
        """Set the guest's mean CPU load, a share of all its vCPUs from 0 to 1."""
        if not 0 <= load <= 1:
            raise ValueError(f"load must be from 0 to 1, not {load}")
        vm = self._host.vm(vm_id)
        age_s = self._host.age_s(vm)
        vm.cpu_before_s, vm.load_since_s, vm.load = self._host.cpu_s(vm), age_s, load
        self._host.touch(vm)
        await self._host.save()

    async def write_disks(self, vm_id: str, text: str) -> None:
        """Have the guest write to its disks; `text` stands for all that they hold then."""
        vm = self._host.vm(vm_id)
        self._host.require(vm, "write to the disks of", {PowerState.RUNNING})
        if vm.is_frozen:
            raise Refused(f"the file systems of VM {vm_id} are frozen")
        vm.disk_text = text
        self._host.touch(vm)
        await self._host.save()

    def read_disks(self, vm_id: str) -> str:
        """Say what `write_disks` wrote last, or a snapshot brought back."""
        return self._host.vm(vm_id).disk_text

    def is_frozen(self, vm_id: str) -> bool:
        """Say whether the guest's file systems are frozen."""
        return self._host.vm(vm_id).is_frozen

    def lose_events(self) -> None:
        """Tell every listener that events may have been missed."""
        self._host.emit(VmEvent(EventKind.RESYNC, detail="simulated restart of the backend"))

    # the interface

    @property
    def snapshots(self) -> Snapshots | None:
        """See `Hypervisor`."""
        return self._snapshots

    @property
    def devices(self) -> Devices | None:
        """See `Hypervisor`."""
        return self._devices

    @property
    def resizing(self) -> Resizing | None:
        """See `Hypervisor`."""
        return self._resizing

    @property
    def host_devices(self) -> HostDevices | None:
        """See `Hypervisor`."""
        return self._host_devices

    @property
    def guests(self) -> GuestAgents | None:
        """See `Hypervisor`."""
        return self._guests

    @property
    def statistics(self) -> Statistics | None:
        """See `Hypervisor`."""
        return self._statistics

    @property
    def migration(self) -> Migration | None:
        """See `Hypervisor`."""
        return self._migration

    @property
    def processes(self) -> VmProcesses | None:
        """See `Hypervisor`."""
        return self._processes

    @property
    def simulated_usage(self) -> SimulatedUsage:
        """See `Hypervisor`."""
        return self._host.usage

    async def open(self) -> None:
        """Load the state file, if there is one."""
        await self._host.strike(Operation.OPEN)
        await self._host.load()
        self._host.is_open = True
        await self._migration.open()
        await self._snapshots.thaw_all()

    async def close(self) -> None:
        """Drop listeners; VMs stay in memory and in the state file."""
        await self._migration.close()
        self._host.is_open = False
        await self._consoles.close()
        self._host.listeners.clear()
        await self._host.settle()

    async def capabilities(self) -> Capabilities:
        """Describe the simulated host."""
        return Capabilities(
            name="mock",
            version="1",
            accelerator=Accelerator.SIMULATED,
            max_vcpus=self._host.settings.vcpu_count,
            max_memory_bytes=self._host.settings.memory_mib * 2**20,
            supports_live_migration=self.migration is not None,
            supports_snapshots=self.snapshots is not None,
            supports_hotplug=self.devices is not None,
            abilities=self._host.settings.abilities,
            host_networks=self._host.settings.host_networks,
            bridges=self._host.settings.bridges,
        )

    async def health(self) -> Health:
        """Be unhealthy while closed, or while a fault makes `list` unavailable."""
        try:
            await self._host.strike(Operation.LIST)
        except (Unavailable, Refused) as error:
            return Health(healthy=False, message=str(error))
        return Health(healthy=True)

    async def create(self, config: VmConfig) -> None:
        """Define a VM; one with more vCPUs or memory than the simulated host has is `Refused`."""
        lost = await self._host.strike(Operation.CREATE, config.vm_id)
        self._host.check_fits_host(config)
        await self._host.define(config, is_managed=True)
        self._host.lose_answer(lost)

    async def reconfigure(self, config: VmConfig) -> None:
        """Replace the definition; see `Hypervisor`."""
        lost = await self._host.strike(Operation.RECONFIGURE, config.vm_id)
        vm = self._host.vm(config.vm_id)
        self._host.require(vm, "reconfigure", OFF)
        self._host.check_fits_host(config)
        if vm.config != config:
            vm.config = config
            self._host.change(vm, vm.state, EventKind.DEFINED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def delete(self, vm_id: str) -> None:
        """Forget a VM and its console log; see `Hypervisor`."""
        lost = await self._host.strike(Operation.DELETE, vm_id)
        if vm_id in self._host.vms:
            self._host.require(self._host.vms[vm_id], "delete", OFF | {PowerState.SUSPENDED})
            self._host.forget(vm_id)
        await self._host.save()
        self._host.lose_answer(lost)

    async def set_notes(self, vm_id: str, notes: VmNotes) -> None:
        """See `Hypervisor`."""
        lost = await self._host.strike(Operation.SET_NOTES, vm_id)
        vm = self._host.vm(vm_id)
        if vm.notes != notes:
            vm.notes = notes
            self._host.touch(vm)
        await self._host.save()
        self._host.lose_answer(lost)

    async def start(self, vm_id: str, may_run: Callable[[], None] | None = None) -> None:
        """Start a VM; `Refused` when running VMs leave too little of the simulated host's memory."""
        lost = await self._host.strike(Operation.START, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "start", OFF | {PowerState.SUSPENDED})
        self._host.check_room(vm_id, vm.config.memory_mib)
        begins_s = self._host.now_s()
        if vm.state is not PowerState.SUSPENDED:
            vm.started_at_s = begins_s
            vm.run_before_s = vm.cpu_before_s = vm.load_since_s = 0.0
        if may_run is not None:
            await self._host.start_paused(vm, may_run)
        vm.running_since_s = self._host.now_s()
        self._host.change(vm, PowerState.RUNNING, EventKind.STARTED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def stop(self, vm_id: str, timeout_s: float) -> None:
        """Press the power button; a deaf guest ignores it. See `Hypervisor`."""
        lost = await self._host.strike(Operation.STOP, vm_id)
        vm = self._host.vm(vm_id)
        if vm.state in OFF:
            return
        self._host.require(vm, "stop", {PowerState.RUNNING})
        is_deaf = self._host.faults.all_guests_deaf or vm_id in self._host.faults.deaf_vm_ids
        takes_s = self._host.settings.shutdown_s
        await self._host.sleep(timeout_s if is_deaf else min(takes_s, timeout_s))
        vm = self._host.vm(vm_id)
        if vm.state is PowerState.RUNNING:
            if is_deaf or takes_s > timeout_s:
                raise GuestDidNotStop(vm_id, timeout_s)
            self._host.power_off(vm)
            self._host.change(vm, PowerState.STOPPED, EventKind.STOPPED, "guest shut down")
            await self._host.save()
        self._host.lose_answer(lost)

    async def force_stop(self, vm_id: str) -> None:
        """Pull the plug; see `Hypervisor`."""
        lost = await self._host.strike(Operation.FORCE_STOP, vm_id)
        vm = self._host.vm(vm_id)
        if vm.state not in OFF:
            self._host.power_off(vm)
            self._host.change(vm, PowerState.STOPPED, EventKind.STOPPED, "plug pulled")
        await self._host.save()
        self._host.lose_answer(lost)

    async def reboot(self, vm_id: str) -> None:
        """Begin a new boot at once; see `Hypervisor`."""
        lost = await self._host.strike(Operation.REBOOT, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "reboot", {PowerState.RUNNING})
        self._host.archive_log(vm)
        vm.cpu_before_s, vm.load_since_s = self._host.cpu_s(vm), 0.0
        vm.run_before_s, vm.running_since_s = 0.0, self._host.now_s()
        self._host.change(vm, PowerState.RUNNING, EventKind.REBOOTED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def pause(self, vm_id: str) -> None:
        """Stop the guest's time; see `Hypervisor`."""
        lost = await self._host.strike(Operation.PAUSE, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "pause", {PowerState.RUNNING})
        vm.run_before_s, vm.running_since_s = self._host.age_s(vm), None
        self._host.change(vm, PowerState.PAUSED, EventKind.PAUSED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def resume(self, vm_id: str) -> None:
        """Let the guest's time go on; see `Hypervisor`."""
        lost = await self._host.strike(Operation.RESUME, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "resume", {PowerState.PAUSED})
        vm.running_since_s = self._host.now_s()
        self._host.change(vm, PowerState.RUNNING, EventKind.RESUMED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def suspend(self, vm_id: str) -> None:
        """Stop the guest's time and free its memory; `start` lets it go on. See `Hypervisor`."""
        lost = await self._host.strike(Operation.SUSPEND, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "suspend", {PowerState.RUNNING})
        vm.run_before_s, vm.running_since_s = self._host.age_s(vm), None
        self._host.change(vm, PowerState.SUSPENDED, EventKind.SUSPENDED)
        await self._host.save()
        self._host.lose_answer(lost)

    async def status(self, vm_id: str, *, with_memory: bool = True) -> VmStatus:
        """Say what the VM is now."""
        await self._host.strike(Operation.STATUS, vm_id)
        return self._host.status(self._host.vm(vm_id))

    async def list(self) -> Sequence[VmStatus]:
        """Every VM, also those defined behind our back."""
        await self._host.strike(Operation.LIST)
        return [self._host.status(vm) for vm in self._host.vms.values()]

    async def console_kinds(self, vm_id: str) -> Sequence[ConsoleKind]:
        """See `Hypervisor`."""
        return await self._consoles.kinds(vm_id)

    async def open_console(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        """Connect to a screen that stays blank, or a serial line that repeats what is typed; see `Hypervisor`."""
        return await self._consoles.open(vm_id, kind)

    async def set_console_password(self, vm_id: str, password: str, valid_s: float) -> None:
        """There are no SPICE displays here; see `Hypervisor`."""
        await self._consoles.kinds(vm_id)
        raise ConsoleAbsent(f"VM {vm_id} has no spice console: this host simulates none")

    async def read_console_log(self, vm_id: str, offset: int, max_bytes: int) -> ConsoleLog:
        """Read the simulated serial console; see `Hypervisor`."""
        await self._host.strike(Operation.READ_CONSOLE_LOG, vm_id)
        vm = self._host.vm(vm_id)
        text = (vm.past_log + self._host.current_log(vm)).encode()
        end = vm.log_base + len(text)
        if offset > end:
            return ConsoleLog(data=b"", next_offset=end, size_bytes=end)
        offset = max(offset, vm.log_base)
        data = text[offset - vm.log_base :][:max_bytes]
        return ConsoleLog(data=data, next_offset=offset + len(data), size_bytes=end)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `Hypervisor`; a listener that is subscribed twice is called twice."""
        self._host.listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._host.listeners:
                self._host.listeners.remove(listener)

        return unsubscribe
