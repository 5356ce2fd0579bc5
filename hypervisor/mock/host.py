"""What the parts of the simulated hypervisor share: its VMs, its faults, its clock, its listeners and its file.

Every part acts in the same order: `strike` (which may fail or wait as a test says), find and check the VM, change the
record, `change` or `touch` it, `save`, and `lose_answer`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hypervisor.abilities import Abilities, DeviceKind, HostDevice
from hypervisor.base import Listener
from hypervisor.errors import Refused, Unavailable, VmExists, VmNotFound, WrongState
from hypervisor.hardware_rules import asks_for_anything, require_possible
from hypervisor.mock import guest as mock_guest
from hypervisor.mock import store as mock_store
from hypervisor.mock.abilities import EVERYTHING
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.store import MockVm
from hypervisor.types import Accelerator, EventKind, PowerState, SimulatedUsage, VmConfig, VmEvent, VmStatus

MAX_PAST_LOG_BYTES = 16 * 2**10
"""Console output of earlier boots that is kept, per VM; the state file holds it, so it stays small."""

OFF = frozenset({PowerState.STOPPED, PowerState.CRASHED})
DEFAULT_BRIDGES: Final = ("br0", "br1", "virbr0")
DEFAULT_NETWORKS: Final = ("default",)
"""What examples name, so that they run on a simulated host as they are."""


@dataclass(frozen=True, slots=True)
class MockSettings:
    """The simulated host.

    `abilities` and `devices` are what its machines can have; all that needs no device of a real host, by default.
    `boot_s` and `shutdown_s` are how long a guest takes from power-on to the ready line, and from the power button to
    off. `ready_line` is a format with the names hostname, memory_mib, vcpus, uptime_s and vm_id. `migration_bytes_s`
    is how fast VMs are sent to other hosts, `dirty_bytes_s` how fast a vCPU at full load writes to memory, and
    `disk_bytes` what each disk holds.
    """

    vcpu_count: int = 64
    memory_mib: int = 256 * 1024
    boot_s: float = 0.3
    shutdown_s: float = 0.1
    ready_line: str = mock_guest.DEFAULT_READY_LINE
    state_path: Path | None = None
    abilities: Abilities = EVERYTHING
    devices: tuple[HostDevice, ...] = ()
    bridges: tuple[str, ...] = DEFAULT_BRIDGES
    host_networks: tuple[str, ...] = DEFAULT_NETWORKS
    migration_bytes_s: int = 2**30
    dirty_bytes_s: int = 64 * 2**20
    disk_bytes: int = 256 * 2**20
    faults: MockFaults = field(default_factory=MockFaults)


class MockHost:
    """The state of one simulated host.

    Args:
        now_s: Unix time; everything that moves, moves with it.
        sleep: how waiting is done, so that a test with a clock of its own need not wait.
    """

    def __init__(
        self, settings: MockSettings, now_s: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.settings = settings
        self.now_s = now_s
        self.sleep = sleep
        self.faults = settings.faults
        self.vms: dict[str, MockVm] = {}
        self.listeners: list[Listener] = []
        self.is_open = False
        self._struck: dict[Fault, int] = {}
        self._encoded: dict[str, str] = {}
        self._change_count = 0
        self._saved_count = 0
        self._saving: asyncio.Future[None] | None = None

    async def load(self) -> None:
        """Read the state file, if there is one and nothing was read before."""
        path = self.settings.state_path
        if path is not None and not self.vms:
            self.vms = await asyncio.to_thread(mock_store.load, path)
            for vm in self.vms.values():
                self._encoded[vm.config.vm_id] = json.dumps(mock_store.encode(vm))

    async def settle(self) -> None:
        """Wait for a write under way."""
        if self._saving is not None:
            await asyncio.wait([self._saving])

    def set_faults(self, faults: MockFaults) -> None:
        """Replace all faults from now on; used-up counts start anew."""
        self.faults = faults
        self._struck.clear()

    async def strike(self, operation: Operation, vm_id: str = "") -> Fault | None:
        """Apply the first fault that fits; returns it if the operation shall happen and its answer be lost."""
        if not self.is_open and operation is not Operation.OPEN:
            raise Unavailable("the mock hypervisor is not open")
        for fault in self.faults.faults:
            count = self._struck.get(fault, 0)
            if (
                fault.operation is not operation
                or fault.vm_id not in ("", vm_id)
                or (fault.times and count >= fault.times)
            ):
                continue
            self._struck[fault] = count + 1
            if fault.delay_s:
                await self.sleep(fault.delay_s)
            match fault.failure:
                case Failure.REFUSED:
                    raise Refused(fault.message)
                case Failure.UNAVAILABLE:
                    raise Unavailable(fault.message)
                case Failure.ANSWER_LOST:
                    return fault
            return None
        return None

    def lose_answer(self, fault: Fault | None) -> None:
        """Raise what a caller sees whose answer `strike` said is lost."""
        if fault is not None:
            raise Unavailable(fault.message)

    def vm(self, vm_id: str) -> MockVm:
        """Return the VM; `VmNotFound` if there is none."""
        try:
            return self.vms[vm_id]
        except KeyError:
            raise VmNotFound(vm_id) from None

    def require(self, vm: MockVm, operation: str, allowed: frozenset[PowerState] | set[PowerState]) -> None:
        """Raise `WrongState` unless the VM is in one of these states."""
        if vm.state not in allowed:
            raise WrongState(vm.config.vm_id, operation, vm.state.value)

    def check_fits_host(self, config: VmConfig) -> None:
        """Refuse a VM that is larger than the simulated host."""
        for what, wanted, there in (
            ("vCPUs", config.cpu.vcpu_count, self.settings.vcpu_count),
            ("MiB of memory", config.memory_mib, self.settings.memory_mib),
        ):
            if wanted > there:
                raise Refused(f"VM {config.vm_id} wants {wanted} {what}, the host has {there}")
        if asks_for_anything(config):
            require_possible(config, self.settings.abilities, self.host_devices(), Accelerator.SIMULATED)

    def host_devices(self) -> list[HostDevice]:
        """Return the simulated host's devices, each with the running VM that has it."""
        users: dict[tuple[DeviceKind, str], MockVm] = {}
        for vm in self.vms.values():
            if vm.state in (PowerState.RUNNING, PowerState.PAUSED):
                hardware = vm.live_config.hardware
                users |= {(DeviceKind.PCI, each.address.lower()): vm for each in hardware.pci_devices}
                users |= {(DeviceKind.USB, f"{each.bus}:{each.number}"): vm for each in hardware.usb_devices}
                users |= {(DeviceKind.MEDIATED, each.device_uuid): vm for each in hardware.mediated_devices}
        return [
            dataclasses.replace(device, used_by=user.config.vm_id, obstacle=f"VM {user.config.vm_id} has it")
            if (user := users.get((device.kind, device.address))) is not None
            else device
            for device in self.settings.devices
        ]

    def check_room(self, vm_id: str, memory_mib: int) -> None:
        """Refuse to start a VM when the others that are in memory leave too little of the simulated host's."""
        used_mib = sum(
            vm.live_config.memory_mib
            for vm in self.vms.values()
            if vm.state in (PowerState.RUNNING, PowerState.PAUSED) and vm.config.vm_id != vm_id
        )
        if used_mib + memory_mib > self.settings.memory_mib:
            free_mib = self.settings.memory_mib - used_mib
            raise Refused(f"cannot start VM {vm_id}: it needs {memory_mib} MiB, the host has {free_mib} MiB free")

    async def define(self, config: VmConfig, *, is_managed: bool) -> None:
        """Add a VM; idempotent for the same configuration and owner."""
        existing = self.vms.get(config.vm_id)
        if existing is not None and (existing.config, existing.is_managed) != (config, is_managed):
            raise VmExists(config.vm_id)
        if existing is None:
            vm = self.vms[config.vm_id] = MockVm(config, is_managed=is_managed)
            self.change(vm, PowerState.STOPPED, EventKind.DEFINED)
        await self.save()

    def forget(self, vm_id: str) -> None:
        """Remove a VM and say so."""
        del self.vms[vm_id]
        self._encoded.pop(vm_id, None)
        self._change_count += 1
        self.emit(VmEvent(EventKind.REMOVED, vm_id, PowerState.UNKNOWN))

    async def start_paused(self, vm: MockVm, may_run: Callable[[], None]) -> None:
        """Have a VM there before its guest does anything, and ask; one that may not run is ended."""
        self.change(vm, PowerState.PAUSED, EventKind.PAUSED)
        await self.save()
        await self.strike(Operation.RELEASE_START, vm.config.vm_id)
        try:
            self.require(vm, "start", {PowerState.PAUSED})  # somebody may have ended it
            may_run()
        except BaseException:
            if vm.state is PowerState.PAUSED:
                self.power_off(vm)
                self.change(vm, PowerState.STOPPED, EventKind.STOPPED, "it may not run")
                await self.save()
            raise

    def power_off(self, vm: MockVm) -> None:
        """Let the guest's time and console end, whatever its state becomes."""
        self.archive_log(vm)
        vm.running_since_s = vm.started_at_s = None
        vm.run_before_s = vm.cpu_before_s = vm.load_since_s = 0.0
        vm.hotplugged_ids = ()
        vm.running = None

    def archive_log(self, vm: MockVm) -> None:
        """Close the console log of this boot; what was frozen ends with it too."""
        vm.is_frozen = False
        text = vm.past_log + self.current_log(vm)
        dropped = text[: max(0, len(text) - MAX_PAST_LOG_BYTES)]
        vm.log_base += len(dropped.encode())
        vm.past_log = text[len(dropped) :]

    def current_log(self, vm: MockVm) -> str:
        """Return what the guest wrote since it was powered on."""
        if vm.started_at_s is None:
            return ""
        return mock_guest.console_text(vm.config, self.settings.ready_line, self.settings.boot_s, self.age_s(vm))

    def age_s(self, vm: MockVm) -> float:
        """Guest time since power-on, in which paused time does not count."""
        return vm.run_before_s + (
            max(0.0, self.now_s() - vm.running_since_s) if vm.running_since_s is not None else 0.0
        )

    def cpu_s(self, vm: MockVm) -> float:
        """CPU time used since power-on."""
        return vm.cpu_before_s + mock_guest.cpu_seconds(vm.live_config, vm.load, vm.load_since_s, self.age_s(vm))

    def status(self, vm: MockVm) -> VmStatus:
        """Say what the VM is now."""
        config = vm.config
        plain = VmStatus(
            config.vm_id,
            config.name,
            vm.state,
            vm.is_managed,
            config.cpu.vcpu_count,
            config.memory_mib,
            notes=vm.notes,
        )
        if vm.state not in (PowerState.RUNNING, PowerState.PAUSED):
            return plain
        return dataclasses.replace(
            plain,
            memory_total_bytes=vm.live_config.memory_mib * 2**20,
            memory_used_bytes=mock_guest.memory_used_bytes(vm.live_config, vm.load, self.age_s(vm)),
            cpu_time_ns=int(self.cpu_s(vm) * 1e9),
            started_at_s=vm.started_at_s,
        )

    @property
    def usage(self) -> SimulatedUsage:
        """What the VMs use of it."""
        busy_vcpus, used_bytes = 0.0, 0
        for vm in self.vms.values():
            if vm.state in (PowerState.RUNNING, PowerState.PAUSED):
                age_s = self.age_s(vm)
                used_bytes += mock_guest.memory_used_bytes(vm.live_config, vm.load, age_s)
            if vm.state is PowerState.RUNNING:
                busy_vcpus += mock_guest.busy_vcpus(vm.live_config, vm.load, age_s)
        return SimulatedUsage(self.settings.vcpu_count, busy_vcpus, self.settings.memory_mib * 2**20, used_bytes)

    def change(self, vm: MockVm, state: PowerState, kind: EventKind, detail: str = "") -> None:
        """Set the state and tell listeners in one go, so that a cancelled caller cannot part the two."""
        vm.state = state
        self.touch(vm)
        self.emit(VmEvent(kind, vm.config.vm_id, state, detail))

    def touch(self, vm: MockVm) -> None:
        """Note that the VM's record changed, so that `save` writes it."""
        if not vm.is_arriving:  # another host's still
            self._encoded[vm.config.vm_id] = json.dumps(mock_store.encode(vm)) if self.settings.state_path else ""
        self._change_count += 1

    def emit(self, event: VmEvent) -> None:
        """Tell every listener."""
        for listener in tuple(self.listeners):
            listener(event)

    async def save(self) -> None:
        """Write until the file holds every change made before this call; callers that wait share one write.

        A caller that is cancelled does not end the write: it is a thread's, and a second one must not write beside it.
        """
        path, wanted = self.settings.state_path, self._change_count
        while path is not None and self._saved_count < wanted:
            if self._saving is None or self._saving.done():
                self._saving = asyncio.ensure_future(self._write(path))
            await asyncio.shield(self._saving)

    async def _write(self, path: Path) -> None:
        count, encoded = self._change_count, tuple(self._encoded.values())
        await asyncio.to_thread(mock_store.save, path, encoded)
        self._saved_count = count
