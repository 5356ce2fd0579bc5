"""The life of nodes as operators order it: what each order makes of a node, and that repeating one changes nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain import node_life
from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.machines import MachineRecord, Revocation
from controlplane.domain.migration import Migration
from controlplane.domain.node import Capacity, CapacityPolicy, Node, Phase
from controlplane.domain.node_conditions import CORDON_REASON, conditions_of
from controlplane.domain.vm import PowerState
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import (
    NodeCondition,
    NodeRole,
    OvercommitConfig,
    ReservedResources,
    SchedulingConfig,
    Taint,
)
from limiquantix.errors import FailedPrecondition, InvalidArgument, NotFound, Reason, ResourceExhausted
from tests.support.builders import GIB, START_OF_TIME, make_id, make_node
from tests.support.control_plane_world import World, register_request

LATER = START_OF_TIME + timedelta(days=1)


def condition(node: Node, kind: str) -> NodeCondition:
    return next(each for each in conditions_of(node) if each.type == kind)


# -- pure


def test_cordoned_node_is_in_maintenance_and_keeps_the_reason() -> None:
    node = node_life.cordoned(make_node(), "new disks", LATER)

    assert (node.phase, node.spec.scheduling.schedulable) == (Phase.MAINTENANCE, False)
    told = condition(node, "Cordoned")
    assert (told.status, told.reason, told.message) == (NodeCondition.TRUE, "Maintenance", "new disks")
    assert told.last_transition.ToSeconds() == int(LATER.timestamp())


def test_cordoning_again_without_a_reason_is_the_same_node() -> None:
    node = node_life.cordoned(make_node(), "new disks", LATER)

    assert node_life.cordoned(node, "", LATER + timedelta(hours=1)) is node


def test_enabled_node_is_ready_and_forgets_the_reason() -> None:
    node = node_life.enabled(node_life.cordoned(make_node(), "x", LATER), LATER, is_heard=True)

    assert (node.phase, node.spec.scheduling.schedulable, dict(node.annotations)) == (Phase.READY, True, {})
    assert node_life.enabled(node, LATER, is_heard=True) is node


def test_enabled_node_that_is_silent_is_not_ready() -> None:
    assert node_life.enabled(node_life.cordoned(make_node(), "", LATER), LATER, is_heard=False).phase == Phase.NOT_READY


def test_node_that_is_being_drained_cannot_be_enabled_but_cordoned() -> None:
    node = node_life.draining(make_node(), "drained", LATER)

    with pytest.raises(FailedPrecondition) as refused:
        node_life.enabled(node, LATER, is_heard=True, drain_id="op-1")
    assert "cancel operation op-1" in refused.value.message
    assert node_life.cordoned(node, "", LATER).phase == Phase.DRAINING


def test_drained_node_is_in_maintenance_and_any_other_is_left_alone() -> None:
    node = node_life.draining(make_node(), "drained", LATER)

    assert node_life.drained(node, LATER).phase == Phase.MAINTENANCE
    ready = make_node()
    assert node_life.drained(ready, LATER) is ready


def test_taint_is_replaced_by_its_key_and_keeps_its_time_unless_it_is_another_one() -> None:
    first = node_life.tainted(make_node(), Taint(key="gpu", effect=Taint.NO_EXECUTE), LATER)
    other = node_life.tainted(first, Taint(key="disk", effect=Taint.NO_SCHEDULE), LATER + timedelta(hours=1))
    same = node_life.tainted(other, Taint(key="gpu", effect=Taint.NO_EXECUTE), LATER + timedelta(hours=2))
    changed = node_life.tainted(same, Taint(key="gpu", effect=Taint.NO_SCHEDULE), LATER + timedelta(hours=2))

    assert same is other
    assert [taint.key for taint in changed.spec.scheduling.taints] == ["gpu", "disk"]
    assert other.spec.scheduling.taints[0].added_at.ToSeconds() == int(LATER.timestamp())
    assert changed.spec.scheduling.taints[0].added_at.ToSeconds() == int(LATER.timestamp()) + 7200


def test_taint_beyond_the_limit_is_refused() -> None:
    node = make_node()
    for number in range(node_life.MAX_TAINT_COUNT):
        node = node_life.tainted(node, Taint(key=f"k{number}"), LATER)

    with pytest.raises(InvalidArgument):
        node_life.tainted(node, Taint(key="one-more"), LATER)


def test_removing_a_taint_that_is_not_there_is_the_same_node() -> None:
    node = make_node()

    assert node_life.untainted(node, "none", LATER) is node


def test_labels_are_added_replaced_and_removed() -> None:
    node = node_life.labelled(make_node(labels={"a": "1", "b": "2"}), {"a": "9", "c": "3"}, ["b", "unknown"], LATER)

    assert node.labels == {"a": "9", "c": "3"}
    assert node_life.labelled(node, {"a": "9"}, ["b"], LATER) is node


def test_labels_that_are_both_added_and_removed_or_too_many_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="the same label: a"):
        node_life.labelled(make_node(), {"a": "1"}, ["a"], LATER)
    full = make_node(labels={f"k{number}": "" for number in range(node_life.MAX_LABEL_COUNT)})
    with pytest.raises(InvalidArgument, match="65 labels"):
        node_life.labelled(full, {"one-more": ""}, [], LATER)


def update(*paths: str, **fields: object) -> api.UpdateNodeRequest:
    return api.UpdateNodeRequest(id=make_id(), update_mask=FieldMask(paths=paths), **fields)  # type: ignore[arg-type]


def test_update_without_a_mask_changes_what_is_set_and_nothing_else() -> None:
    node = make_node()
    scheduling = SchedulingConfig(overcommit=OvercommitConfig(cpu_ratio=4))

    changed = node_life.updated(node, update(scheduling=scheduling), CapacityPolicy(), LATER)

    assert changed.spec.scheduling.overcommit.cpu_ratio == 4
    assert changed.spec.scheduling.schedulable == node.spec.scheduling.schedulable
    assert changed.spec.role == node.spec.role


def test_update_with_a_mask_can_set_a_field_to_its_default() -> None:
    node = make_node()
    node.spec.role.compute = True

    changed = node_life.updated(node, update("scheduling.schedulable", "role.compute"), CapacityPolicy(), LATER)

    assert not changed.spec.scheduling.schedulable
    assert not changed.spec.role.compute


def test_update_works_out_the_capacity_anew() -> None:
    node = make_node()
    node.spec.cpu.total_threads = 9
    node.spec.memory.total_bytes = 9 * GIB
    scheduling = SchedulingConfig(
        overcommit=OvercommitConfig(cpu_ratio=1, memory_ratio=1),
        reserved=ReservedResources(cpu_cores=1, memory_bytes=GIB),
    )

    changed = node_life.updated(node, update(scheduling=scheduling), CapacityPolicy(), LATER)

    assert changed.capacity == Capacity(8, 8 * GIB)
    assert node_life.updated(changed, update(scheduling=scheduling), CapacityPolicy(), LATER) is changed


@pytest.mark.parametrize("path", ["hostname", "id", "update_mask", "scheduling.nonsense", "role.compute.x", "spec"])
def test_update_of_what_cannot_be_changed_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        node_life.updated(make_node(), update(path), CapacityPolicy(), LATER)
    assert [violation.field for violation in refused.value.violations] == ["update_mask"]


@pytest.mark.parametrize(
    ("scheduling", "field"),
    [
        (SchedulingConfig(overcommit=OvercommitConfig(cpu_ratio=1e300)), "scheduling.overcommit.cpu_ratio"),
        (SchedulingConfig(overcommit=OvercommitConfig(memory_ratio=17)), "scheduling.overcommit.memory_ratio"),
        (SchedulingConfig(taints=[Taint(key="a"), Taint(key="a", value="b")]), "scheduling.taints"),
    ],
)
def test_update_to_what_cannot_be_is_refused(scheduling: SchedulingConfig, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        node_life.updated(make_node(), update(scheduling=scheduling), CapacityPolicy(), LATER)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_update_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="neither scheduling nor role"):
        node_life.updated(make_node(), update(), CapacityPolicy(), LATER)


# -- the service


async def events_of(world: World, node_id: str) -> list[str]:
    found = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=node_id), 100))
    return [str(entry.event.type) for entry in reversed(found)]


async def test_disabled_node_gets_no_vm_and_says_why_and_enabled_it_does(world: World) -> None:
    node = await world.nodes.register(register_request())
    vm = await world.create("before")

    told = await world.life.disable(api.DisableNodeRequest(id=node.id, reason="new disks"))
    await world.life.disable(api.DisableNodeRequest(id=node.id, reason="new disks"))

    assert told.status.phase == Phase.MAINTENANCE
    assert list(told.status.vm_ids) == [vm.id]
    with pytest.raises(ResourceExhausted):
        await world.create("meanwhile")
    again = await world.life.enable(node.id)
    assert again.status.phase == Phase.READY
    assert await world.create("after")
    assert await events_of(world, node.id) == ["node.registered", "node.cordoned", "node.enabled"]


async def test_fault_20_neither_registration_nor_heartbeat_ends_maintenance(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.life.disable(api.DisableNodeRequest(id=node.id, reason="x"))

    await world.nodes.register(register_request())
    await world.heartbeats.heartbeat(api.UpdateHeartbeatRequest(node_id=node.id, cpu_usage_percent=5))
    await world.heartbeats.flush()

    stored = await world.node(node.id)
    assert (stored.phase, stored.spec.scheduling.schedulable) == (Phase.MAINTENANCE, False)
    assert stored.annotations[CORDON_REASON] == "x"


async def test_update_changes_what_may_be_claimed_and_keeps_what_is(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.create(cores=4)
    scheduling = SchedulingConfig(overcommit=OvercommitConfig(cpu_ratio=1))

    told = await world.life.update(
        api.UpdateNodeRequest(id=node.id, scheduling=scheduling, role=NodeRole(compute=True, storage=True))
    )

    assert told.status.resources.cpu.allocatable_vcpus == 7
    assert told.status.resources.cpu.allocated_vcpus == 4
    assert told.spec.role.storage


async def test_every_order_about_an_unknown_node_is_not_found(world: World) -> None:
    nobody = make_id()
    for call in (
        world.life.enable(nobody),
        world.life.disable(api.DisableNodeRequest(id=nobody)),
        world.life.drain(api.DrainNodeRequest(id=nobody)),
        world.life.decommission(api.DecommissionNodeRequest(id=nobody, force=True)),
        world.life.add_taint(api.AddTaintRequest(node_id=nobody, taint=Taint(key="a"))),
        world.life.remove_taint(api.RemoveTaintRequest(node_id=nobody, taint_key="a")),
        world.life.label(api.UpdateLabelsRequest(node_id=nobody, add_labels={"a": "b"})),
    ):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.reason == Reason.NODE_NOT_FOUND


# -- decommission


async def test_node_with_vms_is_not_forgotten(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.create("web-1")

    with pytest.raises(FailedPrecondition) as refused:
        await world.life.decommission(api.DecommissionNodeRequest(id=node.id))

    assert refused.value.reason == Reason.NODE_HAS_VMS
    assert "web-1" in refused.value.message
    assert await world.node(node.id)


async def test_empty_node_is_forgotten(world: World) -> None:
    node = await world.nodes.register(register_request(labels={"zone": "a"}))

    await world.life.decommission(api.DecommissionNodeRequest(id=node.id))

    with pytest.raises(NotFound):
        await world.nodes.get(node.id)
    assert (await events_of(world, node.id))[-1] == "node.removed"
    assert (await world.nodes.register(register_request())).id != node.id


async def test_certificates_of_a_node_that_was_forgotten_are_good_no_more(world: World) -> None:
    node = await world.nodes.register(register_request())
    machine = MachineRecord(node.id, node.hostname, START_OF_TIME, START_OF_TIME, LATER)
    await world.store.run(lambda tx: tx.put_machine(machine))

    await world.life.decommission(api.DecommissionNodeRequest(id=node.id))

    assert await world.store.read(lambda tx: tx.machines()) == []
    assert await world.store.read(lambda tx: tx.revocations()) == [Revocation(node.id, world.clock())]


async def test_node_that_vms_are_on_their_way_to_is_not_forgotten(world: World) -> None:
    node, other = await world.nodes.register(register_request()), await world.add_node()
    coming = Migration(make_id(), make_id(), other.id, node.id, START_OF_TIME)
    await world.store.run(lambda tx: tx.put_migration(coming))

    with pytest.raises(FailedPrecondition, match="1 migrations from or to"):
        await world.life.decommission(api.DecommissionNodeRequest(id=node.id))

    await world.store.run(lambda tx: tx.put_migration(replace(coming, is_settled=True)))
    await world.life.decommission(api.DecommissionNodeRequest(id=node.id))


async def test_vms_of_a_node_that_is_forgotten_by_force_are_lost_and_stay_in_the_inventory(world: World) -> None:
    node = await world.nodes.register(register_request())
    vm = await world.create("web-1", start=True)

    await world.life.decommission(api.DecommissionNodeRequest(id=node.id, force=True))

    lost = await world.stored(vm.id)
    assert lost is not None
    assert (lost.power_state, lost.node_id) == (PowerState.LOST, "")
    assert "decommissioned by force" in lost.lost_reason


async def test_vm_of_a_forgotten_node_is_taken_back_where_its_host_comes_back(world: World) -> None:
    node = await world.nodes.register(register_request())
    vm = await world.create("web-1", start=True, cores=2)
    host = world.host_of(vm)
    await world.life.decommission(api.DecommissionNodeRequest(id=node.id, force=True))

    again = await world.nodes.register(register_request())
    world.daemons.known_as(again.id, host)
    outcome = await world.report_everything(again.id)

    back = await world.stored(vm.id)
    assert back is not None
    assert (back.node_id, back.power_state, back.lost_reason) == (again.id, PowerState.RUNNING, "")
    assert (await world.allocated(again.id)).vcpus == 2
    assert outcome.misplaced == []
    found = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 1))
    assert found[0].event.type == EventType.VM_DISCOVERED


# -- load


def loaded(node_id: str, cpu_percent: float, memory_percent: float = 10) -> api.UpdateHeartbeatRequest:
    return api.UpdateHeartbeatRequest(
        node_id=node_id, cpu_usage_percent=cpu_percent, memory_used_mib=int(memory_percent * 10), memory_total_mib=1000
    )


async def test_overload_and_recovery_are_told_once_and_shown_as_a_condition(world: World) -> None:
    node = await world.nodes.register(register_request())
    for percent in (99, 99, 50, 99, 99, 99, 99, 85, 85, 85):
        await world.heartbeats.heartbeat(loaded(node.id, percent))

    stored = await world.node(node.id)
    assert condition(stored, "Overloaded").message == "CPU at 99 % (limit 90 %)"
    assert (await events_of(world, node.id))[1:] == ["node.overloaded"]

    world.restart()  # what was counted is forgotten, what was found is not
    for percent in (99, 99, 99, 20, 20, 20, 20):
        await world.heartbeats.heartbeat(loaded(node.id, percent))

    assert condition(await world.node(node.id), "Overloaded").status == NodeCondition.FALSE
    assert (await events_of(world, node.id))[1:] == ["node.overloaded", "node.recovered"]


async def test_fault_20_overload_touches_neither_claims_nor_maintenance(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.create(cores=2)
    await world.life.disable(api.DisableNodeRequest(id=node.id))
    for _ in range(3):
        await world.heartbeats.heartbeat(loaded(node.id, 5, memory_percent=97))

    stored = await world.node(node.id)
    assert "memory at 97 %" in condition(stored, "Overloaded").message
    assert (stored.phase, stored.allocated.vcpus) == (Phase.MAINTENANCE, 2)


async def test_silent_node_in_maintenance_stays_in_maintenance(world: World) -> None:
    node = await world.nodes.register(register_request())
    await world.store.run(lambda tx: tx.update_node(replace(node, phase=Phase.MAINTENANCE)))
    world.clock.advance(3600)
    await world.heartbeats.flush()

    assert (await world.node(node.id)).phase == Phase.MAINTENANCE
