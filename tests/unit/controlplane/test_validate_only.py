"""A create that is only to be validated is decided like any other, and nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.event import EventFilter
from controlplane.domain.node import Capacity
from controlplane.domain.operation import OperationFilter
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, NetworkInterface, PlacementPolicy, VmSpec
from limiquantix.errors import ApiError, Reason
from tests.support.builders import make_id
from tests.support.control_plane_world import World, create_request

MAC = "52:54:00:00:00:01"


def request(name: str = "t", **fields: Any) -> api.CreateVMRequest:
    return create_request(name, validate_only=True, **fields)


async def traces(world: World) -> tuple[int, int, int, list[Capacity]]:
    async def read(tx: Any) -> tuple[int, int, int, list[Capacity]]:
        operations = await tx.list_operations(OperationFilter(), None, 100)
        events = await tx.newest_events(EventFilter(), 100)
        claims = [Capacity(each.vcpus, each.memory_bytes) for each in await tx.node_claims()]
        return len(await tx.vm_versions()), operations.total_count, len(events), claims

    return await world.store.read(read)


async def test_answer_is_the_vm_as_it_would_be_and_nothing_stays(world: World) -> None:
    node = await world.add_node()
    before = await traces(world)

    answer = await world.vms.service.create(request(labels={"a": "1"}, cores=2, start=True))

    assert (answer.id, answer.name, answer.status.node_id) == ("", "t", node.id)
    assert (dict(answer.labels), answer.spec.cpu.cores) == ({"a": "1"}, 2)
    assert await traces(world) == before
    assert world.daemons.of(node.id).calls == []
    assert await world.create("t")


async def test_refusals_are_those_of_a_real_create(world: World) -> None:
    await world.add_node(vcpus=4, hostname="h1")
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=64), nics=[NetworkInterface(mac_address=MAC)])
    await world.create("taken", spec=spec)
    await world.settle()
    before = await traces(world)
    for fields in (
        {"name": "taken"},
        {"name": "new", "cores": 99},
        {"name": "new", "node_id": make_id()},
        {"name": "new", "spec": spec},
        {"name": "new", "template_id": make_id()},
    ):
        refusals = []
        for validate_only in (True, False):
            asked = create_request(**fields, validate_only=validate_only)
            service = world.clones if asked.template_id else world.vms.service
            with pytest.raises(ApiError) as refusal:
                await service.create(asked)
            refusals.append((refusal.value.reason, refusal.value.message, dict(refusal.value.metadata)))
        assert refusals[0] == refusals[1]
    assert await traces(world) == before


async def test_many_validations_at_once_do_not_count_each_other(world: World) -> None:
    await world.add_node(vcpus=1)
    for _ in range(3):
        assert (await world.vms.service.create(request())).status.node_id
    await world.create()
    with pytest.raises(ApiError) as refusal:
        await world.vms.service.create(request("other"))
    assert refusal.value.reason == Reason.NO_NODE_FITS


async def test_contradicting_rules_are_refused_by_field(world: World) -> None:
    await world.add_node()
    first = await world.create("first")
    spec = VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=64),
        placement=PlacementPolicy(affinity_vms=[first.id]),
    )
    update = api.UpdateVMRequest(id=first.id)
    second = await world.create("second", spec=spec)
    update.spec.placement.anti_affinity_vms.append(second.id)
    update.spec.placement.affinity_vms.append(second.id)
    update.update_mask.paths.append("spec.placement")
    with pytest.raises(ApiError) as refusal:
        await world.vms.update(update)
    assert [violation.field for violation in refusal.value.violations] == ["spec.placement.anti_affinity_vms[0]"]
    del update.spec.placement.affinity_vms[:]
    await world.vms.update(update)
    with pytest.raises(ApiError) as refusal:
        await world.create(
            "third",
            spec=VmSpec(
                cpu=CpuConfig(cores=1),
                memory=MemoryConfig(size_mib=64),
                placement=PlacementPolicy(affinity_vms=[second.id]),
            ),
        )
    assert "VM first must not be beside VM second" in refusal.value.message


async def test_rules_without_effect_are_told_by_an_event(world: World) -> None:
    await world.add_node(labels={"rack": "1"})
    policy = PlacementPolicy(preferred_nodes=["nowhere"], required_labels={"rack": "1"})
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=64), placement=policy)
    vm = await world.create("first", spec=spec)
    found = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 100))
    told = [each.event.message for each in found if each.event.type == "vm.rules_without_effect"]
    assert told == ["rules of VM first have no effect now: preferred_nodes: there is no node nowhere"]
