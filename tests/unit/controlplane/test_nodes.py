"""Nodes: registration, capacity, heartbeats and silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.machines import MachineRecord
from controlplane.domain.node import Capacity, CapacityPolicy, Phase
from controlplane.services.heartbeats import MISSED_BEFORE_NOT_READY
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo, NodeRole, StorageDomain, Taint
from limiquantix.errors import NotFound, PermissionDenied, Reason, ResourceExhausted
from tests.support.builders import GIB, make_id
from tests.support.control_plane_world import HEARTBEAT_INTERVAL_S, World, register_request
from tests.support.fences import opened

PATIENCE_S = HEARTBEAT_INTERVAL_S * MISSED_BEFORE_NOT_READY


def beat(node_id: str, **fields: float) -> api.UpdateHeartbeatRequest:
    return api.UpdateHeartbeatRequest(node_id=node_id, **fields)  # type: ignore[arg-type]


async def set_phase(world: World, node_id: str, phase: Phase.ValueType) -> None:
    async def write(tx):  # type: ignore[no-untyped-def]
        await tx.update_node(replace(await tx.get_node(node_id), phase=phase))

    await world.store.run(write)


# -- registration


async def test_new_node_is_ready_and_schedulable_with_its_capacity(world: World) -> None:
    node = await world.nodes.register(register_request())

    assert (node.phase, node.allocated) == (Phase.READY, Capacity(0, 0))
    assert node.capacity == Capacity(vcpus=14, memory_bytes=int(15 * GIB * 1.5))
    assert node.spec.role.compute
    assert node.spec.scheduling.schedulable
    assert await world.create("first")


async def test_node_without_endpoint_is_called_on_the_documented_port(world: World) -> None:
    four = await world.nodes.register(register_request("four", management_ip="192.0.2.7"))
    six = await world.nodes.register(register_request("six", management_ip="2001:db8::7"))
    own = await world.nodes.register(register_request("own", agent_endpoint="h.example:1234"))

    assert four.agent_endpoint == "192.0.2.7:9090"
    assert six.agent_endpoint == "[2001:db8::7]:9090"
    assert own.agent_endpoint == "h.example:1234"


async def test_node_has_the_id_of_its_hosts_certificate_and_no_other_host_has_its_name(world: World) -> None:
    node_id = make_id()
    for _ in range(2):
        assert (await world.nodes.register(register_request(), node_id)).id == node_id

    with pytest.raises(PermissionDenied) as refused:
        await world.nodes.register(register_request(), make_id())

    assert refused.value.reason == Reason.NOT_OF_THIS_NODE


async def test_labels_of_the_join_token_win_over_what_the_host_says_of_itself(world: World) -> None:
    now = world.clock.at
    machine = MachineRecord(make_id(), "host-a", now, now, now, {"zone": "a"})
    await world.store.run(lambda tx: tx.put_machine(machine))

    node = await world.nodes.register(register_request(labels={"zone": "b", "disk": "ssd"}), machine.node_id)

    assert node.labels == {"zone": "a", "disk": "ssd"}


async def test_known_host_name_is_the_same_node_with_new_facts(world: World) -> None:
    first = await world.nodes.register(register_request())
    vm = await world.create(cores=2)
    world.clock.advance(60)

    again = await world.nodes.register(
        register_request(
            management_ip="192.0.2.99",
            cpu_info=CpuInfo(total_threads=33),
            memory_info=MemoryInfo(total_bytes=64 * GIB),
            agent_endpoint="192.0.2.99:9191",
        )
    )

    assert (again.id, again.created_at) == (first.id, first.created_at)
    assert again.capacity == Capacity(64, int(63 * GIB * 1.5))
    assert again.agent_endpoint == "192.0.2.99:9191"
    assert await world.allocated(first.id) == Capacity(2, vm.memory_bytes)
    _, vm_ids = await world.nodes.get(first.id)
    assert vm_ids == [vm.id]


async def test_storage_networks_and_bridges_are_those_of_the_last_registration(world: World) -> None:
    domain = StorageDomain(id=make_id(), path="/vms", total_bytes=9, free_bytes=5)
    first = await world.nodes.register(
        register_request(
            storage_domains=[domain], bridges=["br0"], host_networks=["default"], supports_live_migration=True
        )
    )
    assert list(first.spec.storage_domains) == [domain]
    assert (list(first.spec.bridges), list(first.spec.host_networks)) == (["br0"], ["default"])
    assert first.spec.supports_live_migration

    again = await world.nodes.register(register_request(bridges=["br1"]))

    assert list(again.spec.bridges) == ["br1"]
    assert not again.spec.storage_domains
    assert not again.spec.host_networks
    assert not again.spec.supports_live_migration


async def test_registering_again_keeps_the_nodes_own_overcommit_and_reservation(world: World) -> None:
    node = await world.nodes.register(register_request())

    async def operate(tx):  # type: ignore[no-untyped-def]
        current = await tx.get_node(node.id)
        spec = type(current.spec)()
        spec.CopyFrom(current.spec)
        spec.scheduling.overcommit.cpu_ratio = 4
        spec.scheduling.reserved.memory_bytes = 4 * GIB
        await tx.update_node(replace(current, spec=spec))

    await world.store.run(operate)

    again = await world.nodes.register(register_request())

    assert again.capacity == Capacity(vcpus=32, memory_bytes=int(12 * GIB * 1.5))


async def test_node_without_own_ratios_follows_the_configuration(world: World) -> None:
    await world.nodes.register(register_request())
    service = replace(world.nodes, capacity_policy=CapacityPolicy(cpu_overcommit_ratio=3, reserved_cores=0))
    assert (await service.register(register_request())).capacity.vcpus == 24


@pytest.mark.parametrize("phase", [Phase.MAINTENANCE, Phase.DRAINING])
async def test_registering_again_keeps_what_an_operator_chose(world: World, phase: Phase.ValueType) -> None:
    node = await world.nodes.register(register_request(labels={"zone": "a"}))

    async def operate(tx):  # type: ignore[no-untyped-def]
        current = await tx.get_node(node.id)
        spec = type(current.spec)()
        spec.CopyFrom(current.spec)
        spec.scheduling.schedulable = False
        spec.scheduling.taints.add(key="gpu", effect=Taint.NO_SCHEDULE)
        await tx.update_node(replace(current, phase=phase, spec=spec, labels={"zone": "b", "rack": "7"}))

    await world.store.run(operate)

    again = await world.nodes.register(register_request(labels={"zone": "a", "disk": "ssd"}))

    assert again.phase == phase
    assert dict(again.labels) == {"zone": "b", "rack": "7", "disk": "ssd"}
    assert not again.spec.scheduling.schedulable
    assert [taint.key for taint in again.spec.scheduling.taints] == ["gpu"]


@pytest.mark.parametrize("phase", [Phase.NOT_READY, Phase.OFFLINE, Phase.PENDING])
async def test_registering_again_makes_a_node_ready(world: World, phase: Phase.ValueType) -> None:
    node = await world.nodes.register(register_request())
    await set_phase(world, node.id, phase)

    assert (await world.nodes.register(register_request())).phase == Phase.READY


async def test_node_that_registers_after_a_long_silence_is_not_silent_at_once(world: World) -> None:
    node = await world.nodes.register(register_request())
    world.clock.advance(10 * PATIENCE_S)
    await world.nodes.register(register_request())

    await world.heartbeats.flush()

    assert (await world.node(node.id)).phase == Phase.READY


async def test_hosts_registering_at_the_same_moment_are_all_taken_in(world: World) -> None:
    nodes = await asyncio.gather(*(world.nodes.register(register_request(f"host-{n}")) for n in range(10)))

    assert len({node.id for node in nodes}) == 10


async def test_one_host_registering_twice_at_the_same_moment_is_one_node(world: World) -> None:
    nodes = await asyncio.gather(*(world.nodes.register(register_request()) for _ in range(5)))

    assert len({node.id for node in nodes}) == 1


@pytest.mark.parametrize(
    ("cpu", "total_bytes", "expected"),
    [
        (CpuInfo(total_threads=8), 16 * GIB, Capacity(14, int(15 * GIB * 1.5))),
        (CpuInfo(total_threads=1), 16 * GIB, Capacity(2, int(15 * GIB * 1.5))),
        (CpuInfo(sockets=2, cores_per_socket=4, threads_per_core=2), 2 * GIB, Capacity(30, int(GIB * 1.5))),
        (CpuInfo(total_threads=4), GIB // 2, Capacity(6, 0)),
        (CpuInfo(total_threads=65536), 2**60, Capacity(131070, int((2**60 - GIB) * 1.5))),
    ],
    ids=["usual", "one thread", "without the total", "less memory than reserved", "largest"],
)
async def test_capacity_is_what_is_left_times_the_ratio(
    world: World, cpu: CpuInfo, total_bytes: int, expected: Capacity
) -> None:
    node = await world.nodes.register(register_request(cpu_info=cpu, memory_info=MemoryInfo(total_bytes=total_bytes)))

    assert (await world.node(node.id)).capacity == expected


def test_capacity_with_ratios_below_one_keeps_part_of_the_host_free() -> None:
    policy = CapacityPolicy(cpu_overcommit_ratio=0.5, memory_overcommit_ratio=0.5, reserved_cores=0)

    capacity = policy.capacity_of(CpuInfo(total_threads=8), MemoryInfo(total_bytes=3 * GIB))

    assert capacity == Capacity(4, GIB)


async def test_storage_only_node_gets_no_vms(world: World) -> None:
    await world.nodes.register(register_request(role=NodeRole(storage=True)))

    with pytest.raises(ResourceExhausted, match="compute role"):
        await world.create()


async def test_unknown_node_is_not_found(world: World) -> None:
    with pytest.raises(NotFound) as caught:
        await world.nodes.get(make_id())
    assert caught.value.reason == Reason.NODE_NOT_FOUND


# -- heartbeats


async def test_heartbeat_of_an_unknown_node_is_not_found(world: World) -> None:
    with pytest.raises(NotFound) as caught:
        await world.heartbeats.heartbeat(beat(make_id()))
    assert caught.value.reason == Reason.NODE_NOT_FOUND
    await world.heartbeats.flush()


async def test_heartbeat_is_answered_with_time_and_interval(world: World) -> None:
    node = await world.nodes.register(register_request())

    answer = await world.heartbeats.heartbeat(beat(node.id))

    assert answer.acknowledged
    assert answer.server_time_unix == int(world.clock.at.timestamp())
    assert answer.heartbeat_interval_secs == HEARTBEAT_INTERVAL_S


async def test_fault_20_heartbeats_change_neither_claims_nor_an_operators_phase(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.create(cores=3, memory_mib=512)
    for phase in (Phase.MAINTENANCE, Phase.DRAINING):
        await set_phase(world, node.id, phase)
        world.clock.advance(HEARTBEAT_INTERVAL_S)

        await world.heartbeats.heartbeat(beat(node.id, memory_used_mib=9000, cpu_usage_percent=97, running_vm_count=40))
        await world.heartbeats.flush()

        stored = await world.node(node.id)
        assert stored.phase == phase
        assert stored.allocated == Capacity(3, 512 * 2**20)
        assert stored.usage.memory_used_bytes == 9000 * 2**20
        assert stored.usage.cpu_percent == 97
        assert stored.last_heartbeat_at == world.clock.at


async def test_fault_20_heartbeats_of_many_nodes_are_stored_together(world: World) -> None:
    nodes = [await world.nodes.register(register_request(f"host-{n}")) for n in range(5)]
    world.clock.advance(3)

    for node in nodes:
        await world.heartbeats.heartbeat(beat(node.id, cpu_usage_percent=10))
    before = [(await world.node(node.id)).usage.cpu_percent for node in nodes]
    await world.heartbeats.flush()

    assert before == [0] * 5
    assert [(await world.node(node.id)).usage.cpu_percent for node in nodes] == [10] * 5


async def test_last_of_several_heartbeats_is_stored(world: World) -> None:
    node = await world.nodes.register(register_request())
    for percent in (10, 20, 30):
        world.clock.advance(1)
        await world.heartbeats.heartbeat(beat(node.id, cpu_usage_percent=percent))

    await world.heartbeats.flush()

    assert (await world.node(node.id)).usage.cpu_percent == 30


async def test_silent_node_is_not_ready_after_three_intervals_and_ready_again_when_heard(world: World) -> None:
    node = await world.nodes.register(register_request())
    talker = await world.nodes.register(register_request("talker"))
    await world.heartbeats.heartbeat(beat(node.id))

    world.clock.advance(PATIENCE_S)
    await world.heartbeats.heartbeat(beat(talker.id))
    await world.heartbeats.flush()
    assert (await world.node(node.id)).phase == Phase.READY

    world.clock.advance(1)
    await world.heartbeats.flush()
    assert (await world.node(node.id)).phase == Phase.NOT_READY
    assert (await world.node(talker.id)).phase == Phase.READY

    await world.heartbeats.heartbeat(beat(node.id, cpu_usage_percent=5))
    await world.heartbeats.flush()
    heard = await world.node(node.id)
    assert (heard.phase, heard.usage.cpu_percent) == (Phase.READY, 5)


async def test_silent_node_gets_no_vms(world: World) -> None:
    await world.nodes.register(register_request())
    world.clock.advance(PATIENCE_S + 1)
    await world.heartbeats.flush()

    with pytest.raises(ResourceExhausted, match="NOT_READY"):
        await world.create()


async def test_silent_node_in_maintenance_stays_in_maintenance(world: World) -> None:
    node = await world.nodes.register(register_request())
    await set_phase(world, node.id, Phase.MAINTENANCE)
    world.clock.advance(PATIENCE_S + 1)

    await world.heartbeats.flush()

    assert (await world.node(node.id)).phase == Phase.MAINTENANCE


async def test_silence_while_the_control_plane_was_down_does_not_count(world: World) -> None:
    node = await world.nodes.register(register_request())
    world.clock.advance(20 * PATIENCE_S)
    world.restart()

    await world.heartbeats.flush()
    world.clock.advance(PATIENCE_S)
    await world.heartbeats.flush()
    assert (await world.node(node.id)).phase == Phase.READY

    world.clock.advance(1)
    await world.heartbeats.flush()
    assert (await world.node(node.id)).phase == Phase.NOT_READY


async def test_heartbeat_that_revives_while_others_are_stored_is_not_lost(world: World) -> None:
    node = await world.nodes.register(register_request())
    for _ in range(20):
        await set_phase(world, node.id, Phase.NOT_READY)
        await asyncio.gather(
            world.heartbeats.heartbeat(beat(node.id)),
            world.heartbeats.flush(),
            world.heartbeats.heartbeat(beat(node.id)),
            world.heartbeats.flush(),
        )
        assert (await world.node(node.id)).phase == Phase.READY


async def test_older_heartbeat_does_not_overwrite_a_newer_one(world: World) -> None:
    node = await world.nodes.register(register_request())
    world.clock.advance(10)
    await world.heartbeats.heartbeat(beat(node.id, cpu_usage_percent=50))
    await world.heartbeats.flush()
    world.clock.at -= timedelta(seconds=5)

    await world.heartbeats.heartbeat(beat(node.id, cpu_usage_percent=1))
    await world.heartbeats.flush()

    assert (await world.node(node.id)).usage.cpu_percent == 50


async def test_fenced_node_that_registers_again_takes_no_vms_before_its_fence_is_over(world: World) -> None:
    first = await world.nodes.register(register_request())
    await opened(world.store, first.id)

    again = await world.nodes.register(register_request())

    assert (again.id, again.phase) == (first.id, Phase.NOT_READY)
