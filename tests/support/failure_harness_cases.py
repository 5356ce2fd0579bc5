"""Every kind of operation and its variants: how a VM gets ready for it, how it is asked for, what it brings about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from controlplane.domain.operation import DepartedVm
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState
from controlplane.operations.desk import Caller
from controlplane.operations.vm_cdroms import AttachCdrom, ChangeMedium, DetachCdrom
from controlplane.operations.vm_clone import CloneVm
from controlplane.operations.vm_disks import AttachDisk, DetachDisk, ResizeDisk, UpdateDisk
from controlplane.operations.vm_guest_power import GuestShutdown
from controlplane.operations.vm_life import CleanUpVm, CreateVm, DeleteVm, TakeOverVm
from controlplane.operations.vm_nics import AttachNic, DetachNic, UpdateNic
from controlplane.operations.vm_power import PauseVm, RebootVm, ResumeVm, StartVm, StopVm, SuspendVm
from controlplane.operations.vm_snapshots import CreateSnapshot, DeleteSnapshot, RevertToSnapshot
from controlplane.operations.vm_update import ConvertVm, UpdateVm
from hypervisor.mock.faults import Failure, MockFaults, Operation
from hypervisor.mock.faults import Fault as MockFault
from hypervisor.types import CpuTopology, VmConfig
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, TemplateConfig, VmSpec
from tests.support import failure_harness_device_asks as asks
from tests.support.builders import START_OF_TIME, make_id
from tests.support.failure_harness_case import NAME, Ask, Case, is_whole, nothing, off, running, spec_of
from tests.support.failure_harness_checks import End
from tests.support.failure_harness_guests import GUEST_DOWN, GUEST_REBOOT
from tests.support.failure_harness_resizing import RESIZING

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene

# -- what is there before


async def paused(scene: Scene) -> str:
    """A VM whose vCPUs stand still."""
    vm_id = await running(scene)
    await scene.plane.vms.pause(vm_id)
    return vm_id


async def saved(scene: Scene) -> str:
    """A VM that runs with twice as many vCPUs as when the older of its two snapshots was taken."""
    vm_id = await off(scene)
    first = await scene.plane.snapshots.create(api.CreateSnapshotRequest(vm_id=vm_id, name="before"))
    scene.snapshot_id = first.id
    spec = VmSpec(cpu=CpuConfig(cores=4), memory=MemoryConfig(size_mib=256))
    await scene.plane.vms.update(api.UpdateVMRequest(id=vm_id, spec=spec))
    await scene.plane.snapshots.create(api.CreateSnapshotRequest(vm_id=vm_id, name="child"))
    await scene.plane.vms.start(vm_id)
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


async def source(scene: Scene) -> str:
    """No VM, but one to be cloned, which is off. Its disk is raw, of which the harness knows how large it is."""
    spec = spec_of(cores=1, memory_mib=64)
    spec.disks[0].format = DiskDevice.RAW
    spec.provisioning.cloud_init.user_data = "#cloud-config"
    scene.source_id = (await scene.plane.vms.create(api.CreateVMRequest(name="source", spec=spec))).id
    return ""


async def template(scene: Scene) -> str:
    """No VM, but a template."""
    await source(scene)
    await scene.plane.clones.convert(api.ConvertToTemplateRequest(vm_id=scene.source_id))
    return ""


# -- how it is asked for


def _create(*, start: bool) -> Ask:
    request = api.CreateVMRequest(name=NAME, spec=spec_of(), start_on_create=start, project_id=DEFAULT_PROJECT_ID)
    return lambda scene, caller: scene.plane.vms.create(request, caller)


def _clone(clone_type: TemplateConfig.CloneType.ValueType, *, start: bool) -> Ask:
    def ask(scene: Scene, caller: Caller) -> Awaitable[object]:
        request = api.CloneVMRequest(
            source_vm_id=scene.source_id, name=NAME, clone_type=clone_type, start_on_create=start
        )
        return scene.plane.clones.clone(request, caller)

    return ask


def _convert(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.clones.convert(api.ConvertToTemplateRequest(vm_id=scene.vm_id), caller)


def _delete(**fields: bool) -> Ask:
    return lambda scene, caller: scene.plane.vms.delete(api.DeleteVMRequest(id=scene.vm_id, **fields), caller)


def _label(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.update(api.UpdateVMRequest(id=scene.vm_id, labels={"tier": "web"}), caller)


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


def _suspend(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.vms.suspend(scene.vm_id, caller)


def _snapshot(*, include_memory: bool = False, quiesce: bool = False) -> Ask:
    return lambda scene, caller: scene.plane.snapshots.create(
        api.CreateSnapshotRequest(vm_id=scene.vm_id, name="new", include_memory=include_memory, quiesce=quiesce), caller
    )


def _revert(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.RevertToSnapshotRequest(vm_id=scene.vm_id, snapshot_id=scene.snapshot_id)
    return scene.plane.snapshots.revert(request, caller)


def _drop(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.DeleteSnapshotRequest(vm_id=scene.vm_id, snapshot_id=scene.snapshot_id)
    return scene.plane.snapshots.delete(request, caller)


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
    return is_whole(end) or _is_gone(end)


def _is_template(end: End) -> bool:
    return is_whole(end) and end.row is not None and end.row.spec.template.is_template


def _whatever(end: End) -> bool:
    return end.row is not None


def _has_snapshots(*names: str) -> Callable[[End], bool]:
    """What is recorded, which has to be what the host has."""
    return lambda end: end.row is not None and {each.name for each in end.row.details.snapshots.snapshots} == set(names)


_REFUSES_START = MockFaults((MockFault(Operation.START, Failure.REFUSED),))

CASES = (
    Case("create", CreateVm.kind, nothing, _create(start=False), is_whole, _is_gone),
    Case(
        "create and start",
        CreateVm.kind,
        nothing,
        _create(start=True),
        lambda end: is_whole(end) and _is_in(PowerState.RUNNING)(end),
        _is_gone,
    ),
    Case(
        "create, start refused",
        CreateVm.kind,
        nothing,
        _create(start=True),
        is_whole,
        _is_gone,
        _REFUSES_START,
        must_fail=True,
    ),
    Case("clone", CloneVm.kind, source, _clone(TemplateConfig.FULL, start=False), is_whole, _is_gone),
    Case(
        "clone, linked, and start",
        CloneVm.kind,
        template,
        _clone(TemplateConfig.LINKED, start=True),
        lambda end: is_whole(end) and _is_in(PowerState.RUNNING)(end),
        _is_gone,
    ),
    Case(
        "clone, start refused",
        CloneVm.kind,
        source,
        _clone(TemplateConfig.FULL, start=True),
        is_whole,
        _is_gone,
        _REFUSES_START,
        must_fail=True,
    ),
    Case(
        "convert to template",
        ConvertVm.kind,
        off,
        _convert,
        _is_template,
        lambda end: is_whole(end) and not _is_template(end),
    ),
    Case("delete", DeleteVm.kind, off, _delete(), _is_gone, _is_whole_or_gone),
    Case("delete by force", DeleteVm.kind, running, _delete(force=True), _is_gone, _is_whole_or_gone),
    Case(
        "forget",
        DeleteVm.kind,
        running,
        _delete(remove_from_inventory_only=True),
        lambda end: end.row is None and end.domain is not None and end.has_images,
        is_whole,
    ),
    Case(
        "update labels",
        UpdateVm.kind,
        running,
        _label,
        lambda end: end.row is not None and end.row.labels == {"tier": "web"},
        lambda end: end.row is not None and end.row.labels == {},
    ),
    *RESIZING,
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
    Case("guest down", GuestShutdown.kind, running, GUEST_DOWN, _is_off, _whatever),
    Case("guest reboot", GuestShutdown.kind, running, GUEST_REBOOT, _is_in(PowerState.RUNNING), _whatever),
    Case("pause", PauseVm.kind, running, _pause, _is_in(PowerState.PAUSED), _whatever),
    Case("suspend", SuspendVm.kind, running, _suspend, _is_in(PowerState.SUSPENDED), _whatever),
    Case("snapshot", CreateSnapshot.kind, off, _snapshot(), _has_snapshots("new"), _has_snapshots()),
    Case(
        "snapshot with memory",
        CreateSnapshot.kind,
        running,
        _snapshot(include_memory=True),
        _has_snapshots("new"),
        _has_snapshots(),
    ),
    Case(
        "snapshot, quiesced",
        CreateSnapshot.kind,
        running,
        _snapshot(quiesce=True),
        _has_snapshots("new"),
        _has_snapshots(),
    ),
    Case(
        "snapshot, quiesced, mute agent",
        CreateSnapshot.kind,
        running,
        _snapshot(quiesce=True),
        _has_snapshots("new"),
        _has_snapshots(),
        MockFaults((MockFault(Operation.SAVE_SNAPSHOT, Failure.REFUSED),)),
        must_fail=True,
    ),
    Case(
        "revert",
        RevertToSnapshot.kind,
        saved,
        _revert,
        lambda end: _is_off(end) and end.row is not None and end.row.spec.cpu.cores == 2,
        _whatever,
    ),
    Case(
        "delete snapshot",
        DeleteSnapshot.kind,
        saved,
        _drop,
        _has_snapshots("child"),
        lambda end: _has_snapshots("before", "child")(end) or _has_snapshots("child")(end),
    ),
    Case("resume", ResumeVm.kind, paused, _resume, _is_in(PowerState.RUNNING), _whatever),
    Case(
        "take over",
        TakeOverVm.kind,
        found,
        _take_over,
        lambda end: end.row is not None and end.row.is_managed,
    ),
    Case("clean up", CleanUpVm.kind, leftover, _report, _is_gone, lambda _: True),
    Case("attach disk", AttachDisk.kind, asks.running_with_devices, asks.attach_disk, asks.has(disks=3), asks.has()),
    Case(
        "attach disk, refused",
        AttachDisk.kind,
        asks.running_with_devices,
        asks.attach_disk,
        asks.has(disks=3),
        asks.has(),
        MockFaults((MockFault(Operation.ATTACH_DISK, Failure.REFUSED),)),
        must_fail=True,
    ),
    Case("detach disk", DetachDisk.kind, asks.running_with_devices, asks.detach_disk, asks.has(disks=1), asks.has()),
    Case(
        "detach disk, deaf guest",
        DetachDisk.kind,
        asks.running_with_devices,
        asks.detach_disk,
        asks.has(disks=1),
        asks.has(),
        MockFaults(all_guests_deaf=True),
        must_fail=True,
    ),
    Case("resize disk", ResizeDisk.kind, asks.running_with_devices, asks.resize_disk, asks.is_grown),
    Case("limit disk", UpdateDisk.kind, asks.running_with_devices, asks.update_disk, asks.is_limited),
    Case("attach nic", AttachNic.kind, asks.running_with_devices, asks.attach_nic, asks.has(nics=2), asks.has()),
    Case("detach nic", DetachNic.kind, asks.running_with_devices, asks.detach_nic, asks.has(nics=0), asks.has()),
    Case("change nic", UpdateNic.kind, asks.running_with_devices, asks.update_nic, asks.is_unplugged),
    Case("attach cdrom", AttachCdrom.kind, asks.with_devices, asks.attach_cdrom, asks.has(cdroms=2), asks.has()),
    Case("detach cdrom", DetachCdrom.kind, asks.with_devices, asks.detach_cdrom, asks.has(cdroms=0), asks.has()),
    Case("mount iso", ChangeMedium.kind, asks.running_with_devices, asks.mount_iso, asks.has_medium),
    Case(
        "eject iso", ChangeMedium.kind, asks.running_with_medium, asks.eject_iso, lambda end: not asks.has_medium(end)
    ),
)
