"""A complete hypervisor in memory: runs a cluster on a laptop, and misbehaves exactly as told.

It keeps the rules of `Hypervisor` like any other backend, and adds what only a simulation can offer: faults and delays
as data (`MockFaults`), crashes, changes by a foreign hand, and a clock that a test turns. With a state file its VMs
outlive the process, as real ones do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypervisor import mock_guest, mock_store
from hypervisor.base import Hypervisor, Listener
from hypervisor.errors import (
    ConsoleAbsent,
    GuestDidNotStop,
    Refused,
    Unavailable,
    VmExists,
    VmNotFound,
    WrongState,
)
from hypervisor.mock_faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock_store import MockVm
from hypervisor.types import (
    Accelerator,
    Capabilities,
    Console,
    ConsoleLog,
    EventKind,
    Health,
    PowerState,
    VmConfig,
    VmEvent,
    VmStatus,
)

MAX_PAST_LOG_BYTES = 16 * 2**10
"""Console output of earlier boots that is kept, per VM; the state file holds it, so it stays small."""

_FIRST_VNC_PORT = 5900
_OFF = frozenset({PowerState.STOPPED, PowerState.CRASHED})


@dataclass(frozen=True, slots=True)
class MockSettings:
    """The simulated host.

    `boot_s` and `shutdown_s` are how long a guest takes from power-on to the ready line, and from the power button to
    off. `ready_line` is a format with the names hostname, memory_mib, vcpus, uptime_s and vm_id.
    """

    vcpu_count: int = 64
    memory_mib: int = 256 * 1024
    boot_s: float = 0.3
    shutdown_s: float = 0.1
    ready_line: str = mock_guest.DEFAULT_READY_LINE
    state_path: Path | None = None
    faults: MockFaults = field(default_factory=MockFaults)


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
        self._settings = settings or MockSettings()
        self._faults = self._settings.faults
        self._struck: dict[Fault, int] = {}
        self._now_s = now_s
        self._sleep = sleep
        self._vms: dict[str, MockVm] = {}
        self._encoded: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self._is_open = False
        self._change_count = 0
        self._saved_count = 0
        self._saving: asyncio.Future[None] | None = None

    # what only a simulation offers

    def set_faults(self, faults: MockFaults) -> None:
        """Replace all faults from now on; used-up counts start anew."""
        self._faults = faults
        self._struck.clear()

    async def crash(self, vm_id: str) -> None:
        """Let the VM's process die under a running or paused guest."""
        vm = self._vm(vm_id)
        if vm.state not in (PowerState.RUNNING, PowerState.PAUSED):
            raise WrongState(vm_id, "crash", vm.state.value)
        self._power_off(vm)
        self._change(vm, PowerState.CRASHED, EventKind.CRASHED, "simulated crash")
        await self._save()

    async def destroy_behind_our_back(self, vm_id: str) -> None:
        """Pull the plug as another tool on the host would."""
        vm = self._vm(vm_id)
        if vm.state not in _OFF:
            self._power_off(vm)
            self._change(vm, PowerState.STOPPED, EventKind.STOPPED, "destroyed by another tool")
            await self._save()

    async def remove_behind_our_back(self, vm_id: str) -> None:
        """Destroy and undefine as another tool on the host would."""
        await self.destroy_behind_our_back(vm_id)
        self._forget(vm_id)
        await self._save()

    async def define_behind_our_back(self, config: VmConfig) -> None:
        """Define a VM as another tool on the host would; it is listed as not managed by us."""
        await self._define(config, is_managed=False)

    async def set_load(self, vm_id: str, load: float) -> None:
        """Set the guest's mean CPU load, a share of all its vCPUs from 0 to 1."""
        if not 0 <= load <= 1:
            raise ValueError(f"load must be from 0 to 1, not {load}")
        vm = self._vm(vm_id)
        age_s = self._age_s(vm)
        vm.cpu_before_s, vm.load_since_s, vm.load = self._cpu_s(vm), age_s, load
        self._touch(vm)
        await self._save()

    def lose_events(self) -> None:
        """Tell every listener that events may have been missed."""
        self._emit(VmEvent(EventKind.RESYNC, detail="simulated restart of the backend"))

    # the interface

    async def open(self) -> None:
        """Load the state file, if there is one."""
        await self._strike(Operation.OPEN)
        if self._settings.state_path is not None and not self._vms:
            self._vms = await asyncio.to_thread(mock_store.load, self._settings.state_path)
            for vm in self._vms.values():
                self._encoded[vm.config.vm_id] = json.dumps(mock_store.encode(vm))
        self._is_open = True

    async def close(self) -> None:
        """Drop listeners; VMs stay in memory and in the state file."""
        self._is_open = False
        self._listeners.clear()
        if self._saving is not None:
            await asyncio.wait([self._saving])

    async def capabilities(self) -> Capabilities:
        """Describe the simulated host."""
        return Capabilities(
            name="mock",
            version="1",
            accelerator=Accelerator.SIMULATED,
            max_vcpus=self._settings.vcpu_count,
            max_memory_bytes=self._settings.memory_mib * 2**20,
        )

    async def health(self) -> Health:
        """Be unhealthy while closed, or while a fault makes `list` unavailable."""
        try:
            await self._strike(Operation.LIST)
        except (Unavailable, Refused) as error:
            return Health(healthy=False, message=str(error))
        return Health(healthy=True)

    async def create(self, config: VmConfig) -> None:
        """Define a VM; one with more vCPUs or memory than the simulated host has is `Refused`."""
        lost = await self._strike(Operation.CREATE, config.vm_id)
        self._check_fits_host(config)
        await self._define(config, is_managed=True)
        self._lose_answer(lost)

    async def reconfigure(self, config: VmConfig) -> None:
        """Replace the definition; see `Hypervisor`."""
        lost = await self._strike(Operation.RECONFIGURE, config.vm_id)
        vm = self._vm(config.vm_id)
        self._require(vm, "reconfigure", _OFF)
        self._check_fits_host(config)
        if vm.config != config:
            vm.config = config
            self._change(vm, vm.state, EventKind.DEFINED)
        await self._save()
        self._lose_answer(lost)

    async def delete(self, vm_id: str) -> None:
        """Forget a VM and its console log; see `Hypervisor`."""
        lost = await self._strike(Operation.DELETE, vm_id)
        if vm_id in self._vms:
            self._require(self._vms[vm_id], "delete", _OFF | {PowerState.SUSPENDED})
            self._forget(vm_id)
        await self._save()
        self._lose_answer(lost)

    async def start(self, vm_id: str) -> None:
        """Start a VM; `Refused` when running VMs leave too little of the simulated host's memory."""
        lost = await self._strike(Operation.START, vm_id)
        vm = self._vm(vm_id)
        self._require(vm, "start", _OFF | {PowerState.SUSPENDED})
        used_mib = sum(other.config.memory_mib for other in self._vms.values() if other.state not in _OFF)
        if used_mib + vm.config.memory_mib > self._settings.memory_mib:
            free_mib = self._settings.memory_mib - used_mib
            raise Refused(
                f"cannot start VM {vm_id}: it needs {vm.config.memory_mib} MiB, the host has {free_mib} MiB free"
            )
        vm.started_at_s = vm.running_since_s = self._now_s()
        vm.run_before_s = vm.cpu_before_s = vm.load_since_s = 0.0
        vm.console_port = self._free_console_port() if vm.config.vnc else 0
        self._change(vm, PowerState.RUNNING, EventKind.STARTED)
        await self._save()
        self._lose_answer(lost)

    async def stop(self, vm_id: str, timeout_s: float) -> None:
        """Press the power button; a deaf guest ignores it. See `Hypervisor`."""
        lost = await self._strike(Operation.STOP, vm_id)
        vm = self._vm(vm_id)
        if vm.state in _OFF:
            return
        self._require(vm, "stop", {PowerState.RUNNING})
        is_deaf = self._faults.all_guests_deaf or vm_id in self._faults.deaf_vm_ids
        takes_s = self._settings.shutdown_s
        await self._sleep(timeout_s if is_deaf else min(takes_s, timeout_s))
        vm = self._vm(vm_id)
        if vm.state is PowerState.RUNNING:
            if is_deaf or takes_s > timeout_s:
                raise GuestDidNotStop(vm_id, timeout_s)
            self._power_off(vm)
            self._change(vm, PowerState.STOPPED, EventKind.STOPPED, "guest shut down")
            await self._save()
        self._lose_answer(lost)

    async def force_stop(self, vm_id: str) -> None:
        """Pull the plug; see `Hypervisor`."""
        lost = await self._strike(Operation.FORCE_STOP, vm_id)
        vm = self._vm(vm_id)
        if vm.state not in _OFF:
            self._power_off(vm)
            self._change(vm, PowerState.STOPPED, EventKind.STOPPED, "plug pulled")
        await self._save()
        self._lose_answer(lost)

    async def reboot(self, vm_id: str) -> None:
        """Begin a new boot at once; see `Hypervisor`."""
        lost = await self._strike(Operation.REBOOT, vm_id)
        vm = self._vm(vm_id)
        self._require(vm, "reboot", {PowerState.RUNNING})
        self._archive_log(vm)
        vm.cpu_before_s, vm.load_since_s = self._cpu_s(vm), 0.0
        vm.run_before_s, vm.running_since_s = 0.0, self._now_s()
        self._change(vm, PowerState.RUNNING, EventKind.REBOOTED)
        await self._save()
        self._lose_answer(lost)

    async def pause(self, vm_id: str) -> None:
        """Stop the guest's time; see `Hypervisor`."""
        lost = await self._strike(Operation.PAUSE, vm_id)
        vm = self._vm(vm_id)
        self._require(vm, "pause", {PowerState.RUNNING})
        vm.run_before_s, vm.running_since_s = self._age_s(vm), None
        self._change(vm, PowerState.PAUSED, EventKind.PAUSED)
        await self._save()
        self._lose_answer(lost)

    async def resume(self, vm_id: str) -> None:
        """Let the guest's time go on; see `Hypervisor`."""
        lost = await self._strike(Operation.RESUME, vm_id)
        vm = self._vm(vm_id)
        self._require(vm, "resume", {PowerState.PAUSED})
        vm.running_since_s = self._now_s()
        self._change(vm, PowerState.RUNNING, EventKind.RESUMED)
        await self._save()
        self._lose_answer(lost)

    async def status(self, vm_id: str) -> VmStatus:
        """Say what the VM is now."""
        await self._strike(Operation.STATUS, vm_id)
        return self._status(self._vm(vm_id))

    async def list(self) -> Sequence[VmStatus]:
        """Every VM, also those defined behind our back."""
        await self._strike(Operation.LIST)
        return [self._status(vm) for vm in self._vms.values()]

    async def console(self, vm_id: str) -> Console:
        """Name a port on which nothing listens: there is no screen to show."""
        await self._strike(Operation.CONSOLE, vm_id)
        vm = self._vm(vm_id)
        if vm.config.vnc is None:
            raise ConsoleAbsent(f"VM {vm_id} has no graphical console")
        if vm.state not in (PowerState.RUNNING, PowerState.PAUSED):
            raise ConsoleAbsent(f"VM {vm_id} is {vm.state.value}; its console is there while it runs")
        password = vm.config.vnc.password or vm_id.replace("-", "")[:8]
        return Console(kind="vnc", host="127.0.0.1", port=vm.console_port, password=password)

    async def read_console_log(self, vm_id: str, offset: int, max_bytes: int) -> ConsoleLog:
        """Read the simulated serial console; see `Hypervisor`."""
        await self._strike(Operation.READ_CONSOLE_LOG, vm_id)
        vm = self._vm(vm_id)
        text = (vm.past_log + self._current_log(vm)).encode()
        end = vm.log_base + len(text)
        if not vm.log_base <= offset <= end:
            return ConsoleLog(data=b"", next_offset=end, size_bytes=end)
        data = text[offset - vm.log_base :][:max_bytes]
        return ConsoleLog(data=data, next_offset=offset + len(data), size_bytes=end)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `Hypervisor`; a listener that is subscribed twice is called twice."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # inside

    async def _strike(self, operation: Operation, vm_id: str = "") -> Fault | None:
        """Apply the first fault that fits; returns it if the operation shall happen and its answer be lost."""
        if not self._is_open and operation is not Operation.OPEN:
            raise Unavailable("the mock hypervisor is not open")
        for fault in self._faults.faults:
            count = self._struck.get(fault, 0)
            if (
                fault.operation is not operation
                or fault.vm_id not in ("", vm_id)
                or (fault.times and count >= fault.times)
            ):
                continue
            self._struck[fault] = count + 1
            if fault.delay_s:
                await self._sleep(fault.delay_s)
            match fault.failure:
                case Failure.REFUSED:
                    raise Refused(fault.message)
                case Failure.UNAVAILABLE:
                    raise Unavailable(fault.message)
                case Failure.ANSWER_LOST:
                    return fault
            return None
        return None

    def _lose_answer(self, fault: Fault | None) -> None:
        if fault is not None:
            raise Unavailable(fault.message)

    def _vm(self, vm_id: str) -> MockVm:
        try:
            return self._vms[vm_id]
        except KeyError:
            raise VmNotFound(vm_id) from None

    def _require(self, vm: MockVm, operation: str, allowed: frozenset[PowerState] | set[PowerState]) -> None:
        if vm.state not in allowed:
            raise WrongState(vm.config.vm_id, operation, vm.state.value)

    def _check_fits_host(self, config: VmConfig) -> None:
        for what, wanted, there in (
            ("vCPUs", config.cpu.vcpu_count, self._settings.vcpu_count),
            ("MiB of memory", config.memory_mib, self._settings.memory_mib),
        ):
            if wanted > there:
                raise Refused(f"VM {config.vm_id} wants {wanted} {what}, the host has {there}")

    async def _define(self, config: VmConfig, *, is_managed: bool) -> None:
        existing = self._vms.get(config.vm_id)
        if existing is not None and (existing.config, existing.is_managed) != (config, is_managed):
            raise VmExists(config.vm_id)
        if existing is None:
            vm = self._vms[config.vm_id] = MockVm(config, is_managed=is_managed)
            self._change(vm, PowerState.STOPPED, EventKind.DEFINED)
        await self._save()

    def _forget(self, vm_id: str) -> None:
        del self._vms[vm_id]
        del self._encoded[vm_id]
        self._change_count += 1
        self._emit(VmEvent(EventKind.REMOVED, vm_id, PowerState.UNKNOWN))

    def _power_off(self, vm: MockVm) -> None:
        self._archive_log(vm)
        vm.running_since_s = vm.started_at_s = None
        vm.run_before_s = vm.cpu_before_s = vm.load_since_s = 0.0
        vm.console_port = 0

    def _archive_log(self, vm: MockVm) -> None:
        text = vm.past_log + self._current_log(vm)
        dropped = text[: max(0, len(text) - MAX_PAST_LOG_BYTES)]
        vm.log_base += len(dropped.encode())
        vm.past_log = text[len(dropped) :]

    def _current_log(self, vm: MockVm) -> str:
        if vm.started_at_s is None:
            return ""
        return mock_guest.console_text(vm.config, self._settings.ready_line, self._settings.boot_s, self._age_s(vm))

    def _free_console_port(self) -> int:
        taken = {vm.console_port for vm in self._vms.values()}
        return next(port for port in range(_FIRST_VNC_PORT, 2**16) if port not in taken)

    def _age_s(self, vm: MockVm) -> float:
        """Guest time since power-on, in which paused time does not count."""
        return vm.run_before_s + (
            max(0.0, self._now_s() - vm.running_since_s) if vm.running_since_s is not None else 0.0
        )

    def _cpu_s(self, vm: MockVm) -> float:
        return vm.cpu_before_s + mock_guest.cpu_seconds(vm.config, vm.load, vm.load_since_s, self._age_s(vm))

    def _status(self, vm: MockVm) -> VmStatus:
        config = vm.config
        plain = VmStatus(config.vm_id, config.name, vm.state, vm.is_managed, config.cpu.vcpu_count, config.memory_mib)
        if vm.state not in (PowerState.RUNNING, PowerState.PAUSED):
            return plain
        return dataclasses.replace(
            plain,
            memory_total_bytes=config.memory_mib * 2**20,
            memory_used_bytes=mock_guest.memory_used_bytes(config, vm.load, self._age_s(vm)),
            cpu_time_ns=int(self._cpu_s(vm) * 1e9),
            started_at_s=vm.started_at_s,
        )

    def _change(self, vm: MockVm, state: PowerState, kind: EventKind, detail: str = "") -> None:
        """Set the state and tell listeners in one go, so that a cancelled caller cannot part the two."""
        vm.state = state
        self._touch(vm)
        self._emit(VmEvent(kind, vm.config.vm_id, state, detail))

    def _touch(self, vm: MockVm) -> None:
        self._encoded[vm.config.vm_id] = json.dumps(mock_store.encode(vm)) if self._settings.state_path else ""
        self._change_count += 1

    def _emit(self, event: VmEvent) -> None:
        for listener in tuple(self._listeners):
            listener(event)

    async def _save(self) -> None:
        """Write until the file holds every change made before this call; callers that wait share one write.

        A caller that is cancelled does not end the write: it is a thread's, and a second one must not write beside it.
        """
        path, wanted = self._settings.state_path, self._change_count
        while path is not None and self._saved_count < wanted:
            if self._saving is None or self._saving.done():
                self._saving = asyncio.ensure_future(self._write(path))
            await asyncio.shield(self._saving)

    async def _write(self, path: Path) -> None:
        count, encoded = self._change_count, tuple(self._encoded.values())
        await asyncio.to_thread(mock_store.save, path, encoded)
        self._saved_count = count
