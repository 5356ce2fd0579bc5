"""An update, and a revert to a snapshot, leave the room that is kept for VMs of nodes that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain.admission import KeptRoom
from controlplane.domain.node import Phase
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from limiquantix.compute.v1.node_service_pb2 import DrainNodeRequest
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateSnapshotRequest, RevertToSnapshotRequest, UpdateVMRequest
from limiquantix.errors import ApiError, Reason, ResourceExhausted
from tests.support.draining import DrainWorld, drain_world, other_node

KEEPING = SchedulerConfig(kept_room=KeptRoom(failures=1))


def spec(cores: int, *, protected: bool = True) -> VmSpec:
    policy = HaPolicy(auto_restart=protected)
    return VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=128), ha_policy=policy)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DrainWorld]:
    """Two nodes of 16 vCPUs."""
    async with drain_world(tmp_path, KEEPING) as made:
        await other_node(made, hostname="other")
        yield made


def resized(vm: Vm, cores: int) -> UpdateVMRequest:
    return UpdateVMRequest(id=vm.id, spec=spec(cores), update_mask=FieldMask(paths=["spec.cpu.cores"]))


async def test_running_vm_that_would_grow_into_the_room_stays_as_it_is(world: DrainWorld) -> None:
    vms = [await world.create(f"vm-{number}", spec=spec(4), start=True) for number in range(4)]
    claimed = (await world.node(vms[0].node_id)).allocated
    calls = len(world.host_of(vms[0]).calls)

    with pytest.raises(ResourceExhausted, match=r"once VM .* were changed, if .* failed, 1 of 2 VMs") as caught:
        await world.vms.update(resized(vms[0], 8))

    assert caught.value.reason == Reason.NO_FAILOVER_ROOM
    after = await world.vms.get(vms[0].id)
    assert (after.spec.cpu.cores, after.error_message) == (4, "")
    assert (await world.node(vms[0].node_id)).allocated == claimed
    assert len(world.host_of(vms[0]).calls) == calls


async def test_policy_is_not_switched_on_where_the_vm_could_not_be_restarted(world: DrainWorld) -> None:
    vms = [await world.create(f"vm-{number}", spec=spec(5, protected=False)) for number in range(6)]
    request = UpdateVMRequest(id=vms[0].id, spec=spec(5), update_mask=FieldMask(paths=["spec.ha_policy.auto_restart"]))

    with pytest.raises(ResourceExhausted, match="would find no room") as caught:
        await world.vms.update(request)

    assert caught.value.reason == Reason.NO_FAILOVER_ROOM
    assert not (await world.vms.get(vms[0].id)).spec.ha_policy.auto_restart


async def test_labels_change_although_more_is_taken_than_is_kept(world: DrainWorld) -> None:
    vms = [await world.create(f"vm-{number}", spec=spec(4)) for number in range(4)]
    await other_node(world, hostname="third", phase=Phase.NOT_READY)

    after = await world.vms.update(
        UpdateVMRequest(id=vms[0].id, labels={"a": "b"}, update_mask=FieldMask(paths=["labels"]))
    )

    assert after.labels == {"a": "b"}


async def test_vm_is_not_put_back_to_a_size_for_which_there_is_no_room_any_more(world: DrainWorld) -> None:
    vm = await world.create("large", spec=spec(8))
    saved = await world.snapshots.create(CreateSnapshotRequest(vm_id=vm.id, name="before"))
    await world.vms.update(resized(vm, 2))
    for number in range(3):
        await world.create(f"vm-{number}", spec=spec(4))

    with pytest.raises(ResourceExhausted) as caught:
        await world.snapshots.revert(RevertToSnapshotRequest(vm_id=vm.id, snapshot_id=saved.id))

    assert caught.value.reason == Reason.NO_FAILOVER_ROOM
    assert (await world.vms.get(vm.id)).spec.cpu.cores == 2


async def test_drains_asked_for_at_once_do_not_empty_both_nodes(world: DrainWorld) -> None:
    nodes = [world.source, await other_node(world, hostname="third"), await other_node(world, hostname="fourth")]
    for number in range(4):
        await world.create(f"vm-{number}", spec=spec(6))

    outcomes = await asyncio.gather(
        *(world.life.drain(DrainNodeRequest(id=node.id)) for node in nodes[:2]), return_exceptions=True
    )

    assert [each.reason for each in outcomes if isinstance(each, ApiError)] == [Reason.NO_FAILOVER_ROOM]
    phases = {(await world.node(node.id)).phase for node in nodes[:2]}
    assert phases == {Phase.READY, Phase.MAINTENANCE}
