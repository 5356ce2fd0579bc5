"""Updates: what the mask names is changed, claims follow, and a refusal changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain.documents import virtual_machine
from controlplane.domain.node import Capacity
from controlplane.domain.vm import Vm
from limiquantix.compute.v1.vm_pb2 import (
    CpuConfig,
    DiskDevice,
    DisplayConfig,
    HaPolicy,
    MemoryConfig,
    NetworkInterface,
    PlacementPolicy,
    VmSpec,
)
from limiquantix.compute.v1.vm_service_pb2 import UpdateVMRequest
from limiquantix.errors import FailedPrecondition, InvalidArgument, NotFound, Reason, ResourceExhausted, Unavailable
from tests.support.builders import make_id
from tests.support.control_plane_world import AT_ONCE, World, create_request
from tests.support.fake_daemons import unreachable

MIB = 2**20


def update(vm: Vm, *paths: str, spec: VmSpec | None = None, **fields: Any) -> UpdateVMRequest:
    return UpdateVMRequest(id=vm.id, spec=spec, update_mask=FieldMask(paths=paths), **fields)


def size(cores: int, memory_mib: int) -> VmSpec:
    return VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))


def faults(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.fixture
async def vm(world: World) -> Vm:
    """A VM with one disk, on a node of 16 vCPUs."""
    await world.add_node(vcpus=16)
    spec = size(2, 512)
    spec.disks.append(DiskDevice(size_gib=1))
    return await world.vms.create(create_request(spec=spec, labels={"a": "1"}, description="before"))


async def test_labels_and_description_of_a_running_vm_change_without_asking_the_host(world: World, vm: Vm) -> None:
    await world.vms.start(vm.id)
    world.host_of(vm).calls.clear()
    world.clock.advance(5)

    after = await world.vms.update(update(vm, "labels", "description", labels={"b": "2"}, description="after"))

    assert (dict(after.labels), after.description, after.spec) == ({"b": "2"}, "after", vm.spec)
    assert after.updated_at == world.clock.at
    assert world.host_of(vm).calls == []


@pytest.mark.parametrize("path", ["labels", "description"])
async def test_named_field_that_is_empty_is_emptied(world: World, vm: Vm, path: str) -> None:
    after = await world.vms.update(update(vm, path))

    assert not getattr(after, path)
    other = "description" if path == "labels" else "labels"
    assert getattr(after, other) == getattr(vm, other)


async def test_without_mask_only_filled_fields_are_taken(world: World, vm: Vm) -> None:
    after = await world.vms.update(update(vm, description="after", spec=VmSpec(memory=MemoryConfig(size_mib=1024))))

    assert (after.description, dict(after.labels)) == ("after", {"a": "1"})
    assert (after.spec.memory.size_mib, after.spec.cpu.cores) == (1024, 2)
    assert after.spec.disks == vm.spec.disks


async def test_deep_path_changes_only_that_field(world: World, vm: Vm) -> None:
    new = VmSpec(cpu=CpuConfig(cores=9, sockets=2), memory=MemoryConfig(size_mib=9999))

    after = await world.vms.update(update(vm, "spec.cpu.sockets", spec=new))

    assert (after.spec.cpu.cores, after.spec.cpu.sockets, after.spec.memory.size_mib) == (2, 2, 512)
    assert world.host_of(vm).vms[vm.id].spec.cpu_sockets == 2


async def test_deep_path_of_an_absent_message_is_reset(world: World, vm: Vm) -> None:
    await world.vms.update(update(vm, "spec.cpu.sockets", spec=VmSpec(cpu=CpuConfig(cores=1, sockets=4))))

    after = await world.vms.update(update(vm, "spec.cpu.sockets"))

    assert (after.spec.cpu.cores, after.spec.cpu.sockets) == (2, 0)


async def test_star_replaces_everything_and_needs_a_whole_spec(world: World, vm: Vm) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.vms.update(update(vm, "*", spec=VmSpec(cpu=CpuConfig(cores=1))))
    assert {"spec.memory", "spec.disks"} <= set(faults(caught.value))

    whole = size(1, 256)
    whole.disks.extend(vm.spec.disks)
    after = await world.vms.update(update(vm, "*", spec=whole))
    assert (after.spec, dict(after.labels), after.description) == (whole, {}, "")


@pytest.mark.parametrize("path", ["name", "status", "spec.", "spec.nothing", "spec.cpu.cores.deeper", "", "Spec", "id"])
async def test_unknown_path_is_named(world: World, vm: Vm, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.vms.update(update(vm, "description", path, "also.unknown", description="x"))

    assert faults(caught.value) == ["update_mask.paths[1]", "update_mask.paths[2]"]
    stored = await world.stored(vm.id)
    assert stored == vm


@pytest.mark.parametrize("path", ["spec.disks.size_gib", "spec.placement.required_labels.role"])
async def test_path_into_a_list_or_map_is_named(world: World, vm: Vm, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.vms.update(update(vm, path))
    assert faults(caught.value) == ["update_mask.paths[0]"]


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("spec.disks", VmSpec()),
        ("spec.disks", VmSpec(disks=[DiskDevice(size_gib=2)])),
        ("spec.nics", VmSpec(nics=[NetworkInterface()])),
    ],
)
async def test_device_change_is_refused(world: World, vm: Vm, path: str, spec: VmSpec) -> None:
    with pytest.raises(InvalidArgument, match="attach or detach"):
        await world.vms.update(update(vm, path, spec=spec))
    assert await world.stored(vm.id) == vm


async def test_spec_that_breaks_rules_of_the_contract_and_ours_names_all(world: World, vm: Vm) -> None:
    bad = VmSpec(cpu=CpuConfig(cores=5000), display=DisplayConfig(tls_enabled=True))

    with pytest.raises(InvalidArgument) as caught:
        await world.vms.update(update(vm, "spec.cpu", "spec.display", spec=bad))

    assert faults(caught.value) == ["spec.cpu.cores", "spec.display.tls_enabled"]


# -- what the host must know


async def test_policies_of_a_running_vm_change_without_asking_the_host(world: World, vm: Vm) -> None:
    await world.vms.start(vm.id)
    world.host_of(vm).calls.clear()
    new = VmSpec(ha_policy=HaPolicy(priority=7), placement=PlacementPolicy(preferred_nodes=["h"]))

    after = await world.vms.update(update(vm, "spec.ha_policy", "spec.placement", spec=new))

    assert (after.spec.ha_policy.priority, list(after.spec.placement.preferred_nodes)) == (7, ["h"])
    assert world.host_of(vm).calls == []


async def test_resize_claims_what_grows_and_gives_back_what_shrinks(world: World, vm: Vm) -> None:
    after = await world.vms.update(update(vm, "spec.cpu", "spec.memory", spec=size(8, 128)))

    assert (after.vcpu_count, after.memory_bytes) == (8, 128 * MIB)
    assert await world.allocated(vm.node_id) == Capacity(8, 128 * MIB)
    host_spec = world.host_of(vm).vms[vm.id].spec
    assert (host_spec.cpu_cores, host_spec.memory_mib) == (8, 128)


async def test_resize_beyond_the_node_changes_nothing_and_says_what_is_free(world: World, vm: Vm) -> None:
    world.host_of(vm).calls.clear()

    with pytest.raises(ResourceExhausted, match="14 vCPUs") as caught:
        await world.vms.update(update(vm, "spec.cpu", "description", spec=size(17, 1), description="after"))

    assert caught.value.reason == Reason.NO_NODE_FITS
    stored = await world.stored(vm.id)
    assert stored is not None
    assert replace(stored, generation=vm.generation) == vm
    assert await world.allocated(vm.node_id) == Capacity(2, 512 * MIB)
    assert world.host_of(vm).calls == []


@pytest.mark.parametrize("change", [size(8, 4096), size(1, 128), size(8, 128)], ids=["grow", "shrink", "both"])
@pytest.mark.parametrize(
    "error", [unreachable(), FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no")], ids=lambda error: error.reason
)
async def test_resize_the_host_refuses_is_undone(
    world: World, vm: Vm, change: VmSpec, error: Unavailable | FailedPrecondition
) -> None:
    world.host_of(vm).fail("reconfigure_vm", error)

    with pytest.raises(type(error)):
        await world.vms.update(update(vm, "spec.cpu", "spec.memory", "labels", spec=change))

    stored = await world.stored(vm.id)
    assert stored is not None
    assert (stored.spec, stored.labels) == (vm.spec, vm.labels)
    assert await world.allocated(vm.node_id) == Capacity(2, 512 * MIB)


async def test_resize_whose_answer_is_lost_is_undone_on_the_host_too(world: World, vm: Vm) -> None:
    host = world.host_of(vm)
    defined = host.vms[vm.id].spec
    # Every try is answered by nothing; only the undoing gets through.
    host.fail("reconfigure_vm", unreachable(), after_acting=True, times=1 + len(AT_ONCE.do_pauses_s))

    with pytest.raises(Unavailable):
        await world.vms.update(update(vm, "spec.cpu.cores", spec=size(4, 512)))

    assert host.vms[vm.id].spec == defined
    assert (await world.vms.get(vm.id)).spec == vm.spec


async def test_shrink_the_host_refuses_is_undone_though_others_wait_for_room(world: World, vm: Vm) -> None:
    host = world.host_of(vm)
    await world.create("filler", cores=14)
    host.fail("reconfigure_vm", unreachable())
    gate = host.hold("reconfigure_vm")
    resizing = asyncio.ensure_future(world.vms.update(update(vm, "spec.cpu", spec=size(1, 512))))
    await gate.entered.wait()

    with pytest.raises(ResourceExhausted):
        await world.create("greedy", cores=1)
    gate.release()

    with pytest.raises(Unavailable):
        await resizing
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.vcpu_count == 2
    assert (await world.allocated(vm.node_id)).vcpus == 16


async def test_update_of_an_unknown_vm_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await world.vms.update(UpdateVMRequest(id=make_id(), description="x"))


async def test_spec_as_a_caller_reads_it_keeps_the_password_it_does_not_show(world: World) -> None:
    await world.add_node(vcpus=16)
    spec = size(2, 512)
    spec.display.password = "hush1234"
    vm = await world.vms.create(create_request(spec=spec))
    await world.vms.start(vm.id)
    world.host_of(vm).calls.clear()
    shown = virtual_machine(vm).spec
    assert shown.display.password == ""
    shown.ha_policy.priority = 7

    after = await world.vms.update(update(vm, "spec", spec=shown))

    assert (after.spec.display.password, after.spec.ha_policy.priority) == ("hush1234", 7)
    assert world.host_of(vm).calls == []
