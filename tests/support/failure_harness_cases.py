"""Every kind of operation and its variants: how a VM gets ready for it, how it is asked for, what it brings about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.domain.operation import DepartedVm
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState
from controlplane.operations.desk import Caller
from controlplane.operations.vm_life import CleanUpVm, CreateVm, DeleteVm, TakeOverVm
from controlplane.operations.vm_power import PauseVm, RebootVm, ResumeVm, StartVm, StopVm
from controlplane.operations.vm_update import UpdateVm
from hypervisor.mock.faults import Failure, MockFaults, Operation
from hypervisor.mock.faults import Fault as MockFault
from hypervisor.types import CpuTopology, VmConfig
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VmSpec
from tests.support.builders import START_OF_TIME, make_id
from tests.support.failure_harness_checks import End

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene

Prepare = Callable[["Scene"], Awaitable[str]]
Ask = Callable[["Scene", Caller], Awaitable[object]]

NAME = "subject"


@dataclass(frozen=True)
class Case:
    """One variant of one kind of operation.

    Attributes:
        prepare: makes what is there before, without faults, and returns the VM's id, "" if it does not exist yet.
        ask: asks for the operation, as often as it takes.
        is_there: whether its effect is there at the end.
        is_absent: whether it is not; by default the opposite. Of power operations a failed one leaves what the host
            says, whatever that is.
        mock_faults: what the hypervisor does wrong each time.
        memory_mib: what the host really has.
        must_fail: whether it cannot succeed.
    """

    name: str
    kind: str
    prepare: Prepare
    ask: Ask
    is_there: Callable[[End], bool]
    is_absent: Callable[[End], bool] | None = None
    mock_faults: MockFaults = field(default_factory=MockFaults)
    memory_mib: int = 4096
    must_fail: bool = False

    def has_no_effect(self, end: End) -> bool:
        """Whether nothing of the operation is there."""
        return not self.is_there(end) if self.is_absent is None else self.is_absent(end)


def spec_of(cores: int = 2, memory_mib: int = 256) -> VmSpec:
    """Make the spec of a VM with one disk."""
    return VmSpec(
        cpu=CpuConfig(cores=cores),
        memory=MemoryConfig(size_mib=memory_mib),
        disks=[DiskDevice(size_gib=1, format=DiskDevice.QCOW2, bus=DiskDevice.VIRTIO_BLK)],
    )


# -- what is there before


async def nothing(scene: Scene) -> str:
    """No VM."""
    return ""


async def off(scene: Scene) -> str:
    """A VM that is off."""
    return (await scene.plane.vms.create(api.CreateVMRequest(name=NAME, spec=spec_of()))).id


async def running(scene: Scene) -> str:
    """A VM that runs."""
    return (await scene.plane.vms.create(api.CreateVMRequest(name=NAME, spec=spec_of(), start_on_create=True))).id


async def paused(scene: Scene) -> str:
    """A VM whose vCPUs stand still."""
    vm_id = await running(scene)
    await scene.plane.vms.pause(vm_id)
    return vm_id


async def found(scene: Scene) -> str:
    """A VM that another tool defined, as the daemon reported it."""
    vm_id = make_id()
    config = VmConfig(vm_id=vm_id, name=NAME, cpu=CpuTopology(cores=2), memory_mib=256)
    await scene.host.daemon.hypervisor.define_behind_our_back(config)
    await scene.until_reported(vm_id)
    return vm_id


async def leftover(scene: Scene) -> str:
    """A VM that its host still has, of a creation that failed and could not be undone."""
    vm_id = await off(scene)
    vm = await scene.row(vm_id)
    assert vm is not None
    await scene.plane.vms.delete(api.DeleteVMRequest(id=vm_id, remove_from_inventory_only=True))
    left = DepartedVm(vm_id, vm.node_id, False, "for the test", START_OF_TIME, PowerState.STOPPED)
    await scene.calm_store.run(lambda tx: tx.insert_departed(left))
    return vm_id


# -- how it is asked for


def _create(*, start: bool) -> Ask:
    request = api.CreateVMRequest(name=NAME, spec=spec_of(), start_on_create=start, project_id=DEFAULT_PROJECT_ID)
    return lambda scene, caller: scene.plane.vms.create(request, caller)


def _delete(**fields: bool) -> Ask:
    return lambda scene, caller: scene.plane.vms.delete(api.DeleteVMRequest(id=scene.vm_id, **fields), caller)


def _label(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.update(api.UpdateVMRequest(id=scene.vm_id, labels={"tier": "web"}), caller)


def _resize(cores: int, memory_mib: int) -> Ask:
    spec = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))
    return lambda scene, caller: scene.plane.vms.update(api.UpdateVMRequest(id=scene.vm_id, spec=spec), caller)


def _start(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.start(scene.vm_id, caller)


def _stop(*, force: bool) -> Ask:
    timeout_s = 0 if force else 2
    return lambda scene, caller: scene.plane.vms.stop(
        api.StopVMRequest(id=scene.vm_id, force=force, timeout_sec=timeout_s), caller
    )


def _reboot(*, force: bool) -> Ask:
    return lambda scene, caller: scene.plane.vms.reboot(api.RebootVMRequest(id=scene.vm_id, force=force), caller)


def _pause(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.pause(scene.vm_id, caller)


def _resume(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.resume(scene.vm_id, caller)


def _take_over(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.take_over(api.TakeOverVMRequest(id=scene.vm_id), caller)


async def _report(scene: Scene, caller: Caller) -> None:
    """Have the host tell everything, and wait for the cleaning up that the control plane begins upon it."""
    if not scene.host.is_up:
        raise scene.not_now()
    plane = scene.plane
    await plane.reports.full_state(await scene.host.daemon.report.full_state())
    operation = await scene.operation(CleanUpVm.kind)
    if operation is None:
        raise scene.not_now()
    ended = await plane.desk.ended(operation.id)
    if ended.fault is not None:
        raise ended.fault.error()


# -- what it brings about


def _is_in(state: int) -> Callable[[End], bool]:
    return lambda end: end.row is not None and end.row.power_state == state


def _is_off(end: End) -> bool:
    return _is_in(PowerState.STOPPED)(end)


def _is_gone(end: End) -> bool:
    return end.row is None and end.domain is None and not end.has_images


def _is_whole_or_gone(end: End) -> bool:
    """What a deletion leaves that failed: a host that had begun and did not answer finishes it when it is back."""
    return _is_whole(end) or _is_gone(end)


def _is_whole(end: End) -> bool:
    return end.row is not None and end.domain is not None and end.has_images


def _has_size(cores: int, memory_mib: int) -> Callable[[End], bool]:
    def check(end: End) -> bool:
        spec = end.row.spec if end.row is not None else VmSpec()
        return _is_whole(end) and (spec.cpu.cores, spec.memory.size_mib) == (cores, memory_mib)

    return check


def _whatever(end: End) -> bool:
    return end.row is not None


_REFUSES_START = MockFaults((MockFault(Operation.START, Failure.REFUSED),))
_HOST_MEMORY_MIB = 400
"""Less than the larger size, which the control plane does not know."""
_LARGER, _SMALLER, _SAME = _has_size(3, 512), _has_size(1, 128), _has_size(2, 256)

CASES = (
    Case("create", CreateVm.kind, nothing, _create(start=False), _is_whole, _is_gone),
    Case(
        "create and start",
        CreateVm.kind,
        nothing,
        _create(start=True),
        lambda end: _is_whole(end) and _is_in(PowerState.RUNNING)(end),
        _is_gone,
    ),
    Case(
        "create, start refused",
        CreateVm.kind,
        nothing,
        _create(start=True),
        _is_whole,
        _is_gone,
        _REFUSES_START,
        must_fail=True,
    ),
    Case("delete", DeleteVm.kind, off, _delete(), _is_gone, _is_whole_or_gone),
    Case("delete by force", DeleteVm.kind, running, _delete(force=True), _is_gone, _is_whole_or_gone),
    Case(
        "forget",
        DeleteVm.kind,
        running,
        _delete(remove_from_inventory_only=True),
        lambda end: end.row is None and end.domain is not None and end.has_images,
        _is_whole,
    ),
    Case(
        "update labels",
        UpdateVm.kind,
        running,
        _label,
        lambda end: end.row is not None and end.row.labels == {"tier": "web"},
        lambda end: end.row is not None and end.row.labels == {},
    ),
    Case("grow", UpdateVm.kind, off, _resize(3, 512), _LARGER, _SAME),
    Case("shrink", UpdateVm.kind, off, _resize(1, 128), _SMALLER, _SAME),
    Case(
        "grow, refused",
        UpdateVm.kind,
        off,
        _resize(3, 512),
        _LARGER,
        _SAME,
        memory_mib=_HOST_MEMORY_MIB,
        must_fail=True,
    ),
    Case("start", StartVm.kind, off, _start, _is_in(PowerState.RUNNING), _whatever),
    Case("stop", StopVm.kind, running, _stop(force=False), _is_off, _whatever),
    Case(
        "stop, deaf guest",
        StopVm.kind,
        running,
        _stop(force=False),
        _is_off,
        _whatever,
        MockFaults(all_guests_deaf=True),
        must_fail=True,
    ),
    Case("stop by force", StopVm.kind, running, _stop(force=True), _is_off, _whatever),
    Case("reboot", RebootVm.kind, running, _reboot(force=False), _is_in(PowerState.RUNNING), _whatever),
    Case("reboot by force", RebootVm.kind, running, _reboot(force=True), _is_in(PowerState.RUNNING), _whatever),
    Case("pause", PauseVm.kind, running, _pause, _is_in(PowerState.PAUSED), _whatever),
    Case("resume", ResumeVm.kind, paused, _resume, _is_in(PowerState.RUNNING), _whatever),
    Case(
        "take over",
        TakeOverVm.kind,
        found,
        _take_over,
        lambda end: end.row is not None and end.row.is_managed,
    ),
    Case("clean up", CleanUpVm.kind, leftover, _report, _is_gone, lambda _: True),
)
