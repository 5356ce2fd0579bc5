"""Updates of a VM in memory: what the host does at once is in effect, the rest waits, and claims follow what runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain import pending
from controlplane.domain.documents import virtual_machine
from controlplane.domain.node import Capacity
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.vm_pending import is_known_to_host
from limiquantix.compute.v1.vm_pb2 import (
    UEFI,
    BootConfig,
    BootDevice,
    CpuConfig,
    HaPolicy,
    MemoryConfig,
    VmSpec,
)
from limiquantix.compute.v1.vm_service_pb2 import (
    CreateSnapshotRequest,
    DeleteVMRequest,
    RebootVMRequest,
    RevertToSnapshotRequest,
    StopVMRequest,
    UpdateVMRequest,
)
from limiquantix.errors import FailedPrecondition, Reason, ResourceExhausted, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_vm
from tests.support.control_plane_world import AT_ONCE, World, create_request
from tests.support.fake_daemons import STOPPED, SUSPENDED, unreachable

MIB = 2**20


def size(cores: int, memory_mib: int) -> VmSpec:
    return VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))


def update(vm: Vm, *paths: str, spec: VmSpec) -> UpdateVMRequest:
    return UpdateVMRequest(id=vm.id, spec=spec, update_mask=FieldMask(paths=paths))


def resize(vm: Vm, cores: int, memory_mib: int) -> UpdateVMRequest:
    return update(vm, "spec.cpu.cores", "spec.memory.size_mib", spec=size(cores, memory_mib))


@pytest.fixture
async def vm(world: World) -> Vm:
    """A VM that runs with 4 vCPUs and 512 MiB on a node of 16 vCPUs."""
    await world.add_node(vcpus=16)
    created = await world.vms.create(create_request(spec=size(4, 512)))
    await world.vms.start(created.id)
    world.host_of(created).calls.clear()
    return created


def keeps(world: World, vm: Vm, vcpu_count: int, memory_mib: int) -> None:
    """Make the host give what runs this size, whatever is asked for."""
    world.host_of(vm).live_sizes[vm.id] = (vcpu_count, memory_mib)


async def told(world: World, vm: Vm, state: node_v1.PowerState.ValueType) -> None:
    """Change the VM behind the control plane's back, and have its host report everything."""
    world.host_of(vm).set_state(vm.id, state)
    await world.report_everything(vm.node_id)


async def test_growth_that_the_host_does_at_once_leaves_nothing_pending(world: World, vm: Vm) -> None:
    after = await world.vms.update(resize(vm, 8, 1024))

    assert (after.spec.cpu.cores, after.spec.memory.size_mib) == (8, 1024)
    assert not after.details.pending_changes
    assert (after.details.running_vcpus, after.details.running_memory_mib) == (0, 0)
    assert await world.allocated(vm.node_id) == Capacity(8, 1024 * MIB)
    assert world.host_of(vm).methods(vm.id) == ["resize_vm"]


async def test_growth_that_waits_is_claimed_at_once_and_shown_as_pending_with_the_reason(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 512)

    after = await world.vms.update(resize(vm, 8, 1024))

    shown = virtual_machine(after).status
    assert list(shown.pending_changes) == ["spec.cpu.cores", "spec.memory.size_mib"]
    assert list(shown.pending_reasons) == ["there is no room in the guest"]
    assert (shown.running_vcpus, shown.running_memory_mib) == (4, 512)
    assert await world.allocated(vm.node_id) == Capacity(8, 1024 * MIB)


async def test_half_of_a_growth_in_effect_leaves_the_other_half_pending(world: World, vm: Vm) -> None:
    keeps(world, vm, 8, 512)

    after = await world.vms.update(resize(vm, 8, 1024))

    assert list(after.details.pending_changes) == ["spec.memory.size_mib"]
    assert (after.details.running_vcpus, after.details.running_memory_mib) == (0, 512)


async def test_shrinking_that_waits_stays_claimed_until_the_vm_is_off(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 512)
    after = await world.vms.update(resize(vm, 2, 256))
    assert (after.vcpu_count, after.memory_bytes) == (4, 512 * MIB)
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)

    stopped = await world.vms.stop(StopVMRequest(id=vm.id, force=True))

    assert not stopped.details.pending_changes
    assert (stopped.vcpu_count, stopped.memory_bytes) == (2, 256 * MIB)
    assert await world.allocated(vm.node_id) == Capacity(2, 256 * MIB)


async def test_shrinking_in_effect_is_given_back_at_once(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 256)

    await world.vms.update(resize(vm, 4, 256))

    assert await world.allocated(vm.node_id) == Capacity(4, 256 * MIB)


async def test_vm_that_stops_by_itself_has_nothing_pending_and_gives_back_what_shrank(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 512)
    await world.vms.update(resize(vm, 2, 256))

    await told(world, vm, STOPPED)

    stored = await world.vms.get(vm.id)
    assert not stored.details.pending_changes
    assert await world.allocated(vm.node_id) == Capacity(2, 256 * MIB)


async def test_guest_that_reboots_keeps_what_is_pending_and_a_forced_reboot_does_not(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 512)
    await world.vms.update(resize(vm, 2, 256))

    rebooted = await world.vms.reboot(RebootVMRequest(id=vm.id))
    assert list(rebooted.details.pending_changes) == ["spec.cpu.cores", "spec.memory.size_mib"]

    restarted = await world.vms.reboot(RebootVMRequest(id=vm.id, force=True))
    assert not restarted.details.pending_changes
    assert await world.allocated(vm.node_id) == Capacity(2, 256 * MIB)


async def test_second_update_adds_to_what_is_pending_and_one_that_comes_to_what_runs_ends_it(
    world: World, vm: Vm
) -> None:
    keeps(world, vm, 4, 512)
    await world.vms.update(resize(vm, 2, 512))
    after = await world.vms.update(update(vm, "spec.memory.size_mib", spec=size(1, 256)))
    assert list(after.details.pending_changes) == ["spec.cpu.cores", "spec.memory.size_mib"]

    back = await world.vms.update(resize(vm, 4, 512))

    assert not back.details.pending_changes
    assert not back.details.pending_reasons
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)


async def test_other_changes_of_the_machine_wait_and_those_no_host_knows_do_not(world: World, vm: Vm) -> None:
    new = VmSpec(
        boot=BootConfig(boot_order=[BootDevice(type=BootDevice.CDROM)]),
        ha_policy=HaPolicy(priority=7),
        cpu=CpuConfig(cores=4, max_vcpus=8),
    )
    new.watchdog.enabled = True

    after = await world.vms.update(update(vm, "spec.boot", "spec.ha_policy", "spec.cpu", "spec.watchdog", spec=new))

    assert list(after.details.pending_changes) == [
        "spec.boot.boot_order",
        "spec.cpu.max_vcpus",
        "spec.watchdog.enabled",
    ]
    assert world.host_of(vm).vms[vm.id].spec.watchdog.enabled


async def test_paused_vm_takes_updates_and_a_saved_one_does_not(world: World, vm: Vm) -> None:
    await world.vms.pause(vm.id)
    await world.vms.update(resize(vm, 5, 512))
    assert world.host_of(vm).methods(vm.id)[-1] == "resize_vm"

    await told(world, vm, SUSPENDED)
    with pytest.raises(FailedPrecondition, match="while it is SUSPENDED") as caught:
        await world.vms.update(resize(vm, 6, 512))
    assert caught.value.reason == Reason.VM_STATE_FORBIDS


async def test_firmware_of_a_running_vm_does_not_change(world: World, vm: Vm) -> None:
    with pytest.raises(FailedPrecondition, match="while it is RUNNING"):
        await world.vms.update(update(vm, "spec.firmware", spec=VmSpec(firmware=UEFI)))


async def test_growth_without_room_changes_nothing_and_asks_no_host(world: World, vm: Vm) -> None:
    with pytest.raises(ResourceExhausted):
        await world.vms.update(resize(vm, 17, 512))

    assert world.host_of(vm).calls == []
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)


@pytest.mark.parametrize(("cores", "memory_mib"), [(8, 1024), (2, 256), (8, 256)], ids=["grow", "shrink", "both"])
@pytest.mark.parametrize(
    "error", [unreachable(), FailedPrecondition(Reason.HOST_LACKS, "no")], ids=lambda error: error.reason
)
async def test_update_that_the_host_refuses_is_undone(
    world: World, vm: Vm, cores: int, memory_mib: int, error: Unavailable | FailedPrecondition
) -> None:
    tries = 1 + len(AT_ONCE.do_pauses_s) if isinstance(error, Unavailable) else 1
    world.host_of(vm).fail("resize_vm", error, times=tries)

    with pytest.raises(type(error)):
        await world.vms.update(resize(vm, cores, memory_mib))

    stored = await world.vms.get(vm.id)
    assert stored.spec == vm.spec
    assert not stored.details.pending_changes
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)


async def test_update_whose_undoing_finds_the_guest_still_larger_says_so_and_keeps_the_room(
    world: World, vm: Vm
) -> None:
    world.host_of(vm).fail("resize_vm", unreachable(), after_acting=True, times=1 + len(AT_ONCE.do_pauses_s))
    keeps(world, vm, 8, 512)  # vCPUs that were added and cannot be taken away

    with pytest.raises(Unavailable):
        await world.vms.update(resize(vm, 8, 512))

    stored = await world.vms.get(vm.id)
    assert stored.spec == vm.spec
    assert (stored.details.running_vcpus, list(stored.details.pending_changes)) == (8, ["spec.cpu.cores"])
    assert await world.allocated(vm.node_id) == Capacity(8, 512 * MIB)
    await world.vms.stop(StopVMRequest(id=vm.id, force=True))
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)


async def test_update_that_cannot_be_undone_keeps_room_for_the_larger_size(world: World, vm: Vm) -> None:
    world.host_of(vm).fail("resize_vm", unreachable())

    with pytest.raises(Unavailable):
        await world.vms.update(resize(vm, 8, 256))

    stored = await world.vms.get(vm.id)
    assert stored.spec == vm.spec
    assert stored.vcpu_count == 8
    assert await world.allocated(vm.node_id) == Capacity(8, 512 * MIB)


async def test_vm_that_stops_while_it_is_resized_ends_with_its_new_size_and_claim(world: World, vm: Vm) -> None:
    gate = world.host_of(vm).hold("resize_vm")
    resizing = asyncio.ensure_future(world.vms.update(resize(vm, 2, 256)))
    await gate.entered.wait()
    world.host_of(vm).set_state(vm.id, node_v1.POWER_STATE_STOPPED)
    gate.release()

    after = await resizing

    assert (after.power_state, after.vcpu_count) == (PowerState.STOPPED, 2)
    assert not after.details.pending_changes
    assert await world.allocated(vm.node_id) == Capacity(2, 256 * MIB)


async def test_deleted_vm_gives_back_what_it_ran_with(world: World, vm: Vm) -> None:
    keeps(world, vm, 4, 512)
    await world.vms.update(resize(vm, 2, 256))

    await world.vms.delete(DeleteVMRequest(id=vm.id, force=True))

    assert await world.allocated(vm.node_id) == Capacity(0, 0)


def test_layout_that_changes_without_the_number_of_vcpus_waits() -> None:
    vm_record = make_vm(spec=size(4, 512), power_state=PowerState.RUNNING)
    spec = VmSpec()
    spec.CopyFrom(vm_record.spec)
    spec.cpu.cores, spec.cpu.sockets = 2, 2

    changed = pending.with_change(vm_record, replace(vm_record, spec=spec), is_known_to_host)

    assert list(changed.details.pending_changes) == ["spec.cpu.cores", "spec.cpu.sockets"]
    assert changed.details.running_vcpus == 0


async def test_revert_to_a_snapshot_ends_what_waited_and_claims_what_the_snapshot_needs(world: World, vm: Vm) -> None:
    snapshot = await world.snapshots.create(CreateSnapshotRequest(vm_id=vm.id, name="before"))
    keeps(world, vm, 4, 512)
    await world.vms.update(resize(vm, 2, 1024))
    assert await world.allocated(vm.node_id) == Capacity(4, 1024 * MIB)

    await world.snapshots.revert(RevertToSnapshotRequest(vm_id=vm.id, snapshot_id=snapshot.id))

    after = await world.vms.get(vm.id)
    assert (after.spec.cpu.cores, after.spec.memory.size_mib) == (4, 512)
    assert not after.details.pending_changes
    assert (after.vcpu_count, after.memory_bytes) == (4, 512 * MIB)
    assert await world.allocated(vm.node_id) == Capacity(4, 512 * MIB)
