"""What the decision is made from, and what follows for nodes, VMs and alerts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from controlplane.domain.fencing import HaSettings, NodeGuard
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Json
from controlplane.ha.model import (
    Alerting,
    AlertOf,
    OpenAFence,
    Restart,
)
from controlplane.state.interface import Transaction
from tests.support.builders import make_node
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane
from tests.support.ha_scene import (
    add_node,
    add_vm,
    fenced,
    note_guards,
    proven,
    seen_node,
)


async def test_lease_proves_only_if_the_host_knows_that_it_is_armed(plane: HaPlane, nodes: list[Node]) -> None:
    guards = [
        NodeGuard(nodes[0].id, 1, True, "", "boot-1", plane.now()),
        NodeGuard(nodes[1].id, 1, False, "no guard runs", "boot-1", plane.now()),
    ]
    await note_guards(plane, *guards)
    observed = await plane.round()
    assert not any(node.lease_proves for node in observed.nodes)  # nobody asks before a node has a fence
    await plane.round(*(OpenAFence(node.id, "silent") for node in nodes))
    observed = await plane.round()
    assert [seen_node(observed, node.id).lease_proves for node in nodes] == [True, False, False]

    async def rearm(tx: Transaction) -> HaSettings:
        disarmed = await tx.update_ha_settings(replace(await tx.ha_settings(), is_armed=False))
        return await tx.update_ha_settings(replace(disarmed, is_armed=True))

    await plane.world.store.run(rearm)
    observed = await plane.round()
    assert observed.is_armed
    assert [seen_node(observed, node.id).lease_proves for node in nodes] == [False, False, False]


async def test_heard_nodes_and_those_in_maintenance_are_seen_as_such(plane: HaPlane, nodes: list[Node]) -> None:
    plane.hear(nodes[0].id)
    plane.now_s += 1
    maintained = replace(nodes[1], phase=Phase.MAINTENANCE)
    await plane.world.store.run(lambda tx: tx.update_node(maintained))

    observed = await plane.round()

    assert seen_node(observed, nodes[0].id).heard_s == 1000.0
    assert seen_node(observed, nodes[1].id).heard_s is None
    assert [seen_node(observed, node.id).takes_part for node in nodes] == [True, False, True]


async def test_host_heard_in_another_boot_without_vms_is_seen_as_rebooted(plane: HaPlane, nodes: list[Node]) -> None:
    guard = NodeGuard(nodes[0].id, 1, True, "", "boot-1", plane.now())
    await note_guards(plane, guard)
    await fenced(plane, nodes[0].id)
    rebooted = []
    for boot_id, count in (("boot-1", 0), ("boot-2", 1), ("boot-2", 0)):
        plane.hear(nodes[0].id, boot_id=boot_id, running_vm_count=count)
        noted = replace(guard, boot_id=boot_id, noted_at=plane.now() + timedelta(seconds=1))
        await note_guards(plane, noted)
        rebooted.append(seen_node(await plane.round(), nodes[0].id).is_rebooted)

    assert rebooted == [False, False, True]


async def test_process_that_leads_since_the_host_came_back_sees_it_as_rebooted_too(
    world: World, plane: HaPlane, nodes: list[Node]
) -> None:
    guard = NodeGuard(nodes[0].id, 1, True, "", "boot-1", plane.now())
    await note_guards(plane, guard)
    await fenced(plane, nodes[0].id)
    await note_guards(plane, replace(guard, boot_id="boot-2", noted_at=plane.now() + timedelta(seconds=1)))
    successor = HaPlane(world, plane.coordinator, name="replica-2", now_s=plane.now_s + 10)
    successor.hear(nodes[0].id, boot_id="boot-2", running_vm_count=0)

    assert seen_node(await successor.round(), nodes[0].id).is_rebooted


async def test_vms_of_a_fenced_node_are_seen_and_choices_take_each_other_into_account(
    plane: HaPlane, world: World
) -> None:
    made = [await add_node(world, vcpus=vcpus) for vcpus in (4, 1, 1)]
    first, second, third = [await add_vm(world, made[0].id) for _ in range(3)]
    await proven(plane, made[0].id)

    observed = await plane.round()

    assert {vm.id for vm in observed.vms} == {first.id, second.id, third.id}
    assert all(vm.proves_dead and vm.priority == 7 and not vm.is_busy for vm in observed.vms)
    places = [observed.choose(vm.id, frozenset()).node_id for vm in (first, second)]
    assert sorted(places) == sorted([made[1].id, made[2].id])
    nowhere = observed.choose(third.id, frozenset())
    assert nowhere.node_id == ""
    assert "no node fits" in nowhere.reason


async def test_unprotected_vm_is_not_dead_by_lease_and_disks_elsewhere_are_out_of_reach(
    plane: HaPlane, nodes: list[Node]
) -> None:
    vm = await add_vm(plane.world, nodes[0].id)
    await plane.world.store.run(lambda tx: tx.update_vm(replace(vm, is_protected=False)))
    apart = make_node()
    await plane.world.store.run(lambda tx: tx.insert_node(apart))
    await proven(plane, nodes[0].id)

    observed = await plane.round()

    assert [seen.proves_dead for seen in observed.vms] == [False]
    choice = observed.choose(vm.id, frozenset({nodes[1].id, nodes[2].id}))
    assert choice.node_id == ""
    assert "1 node does not reach its disks" in choice.reason


async def test_restart_is_asked_for_once_however_often_it_is_decided(
    plane: HaPlane, nodes: list[Node], asked: dict[str, Json]
) -> None:
    vm = await add_vm(plane.world, nodes[0].id)
    fence = await proven(plane, nodes[0].id)
    restart = Restart(vm.id, fence.id, nodes[0].id, nodes[1].id, attempt=1)

    await plane.round(restart)
    await plane.round(restart)
    await plane.world.settle()

    parameters = {"fence_id": fence.id, "epoch": 1, "from_node_id": nodes[0].id, "target_node_id": nodes[1].id}
    assert asked == {f"failover-{vm.id}-{fence.id}-1-1": parameters}


async def test_alerts_follow_what_is_wrong(plane: HaPlane, nodes: list[Node]) -> None:
    await plane.round(Alerting(AlertOf.NODE_LOST, nodes[0].id, "node is lost"))
    assert await plane.open_alerts("ha.node_lost") == ["node is lost"]

    await plane.round()
    assert await plane.open_alerts("ha.node_lost") == []


async def test_process_that_just_began_marks_no_node_for_silence_that_nobody_could_break(plane: HaPlane) -> None:
    silent = await add_node(plane.world, last_heartbeat_at=plane.now() - timedelta(days=1))
    await plane.round()
    assert (await plane.world.node(silent.id)).phase == Phase.READY

    plane.now_s += 70
    await plane.round()
    assert (await plane.world.node(silent.id)).phase == Phase.NOT_READY


async def test_without_a_leader_it_is_said_and_nodes_silent_for_long_take_no_vms(
    plane: HaPlane, nodes: list[Node]
) -> None:
    plane.now_s += 70
    silent = await add_node(plane.world, last_heartbeat_at=plane.now() - timedelta(seconds=70))
    plane.election.is_elected, plane.election.obstacle = False, "etcd does not answer"
    await plane.manager.round()

    assert await plane.open_alerts("ha.nothing_decided") == ["etcd does not answer"]
    assert plane.manager.obstacle == "etcd does not answer"
    assert (await plane.world.node(silent.id)).phase == Phase.NOT_READY
    assert (await plane.world.node(nodes[0].id)).phase == Phase.READY

    plane.election.is_elected, plane.election.obstacle = True, ""
    plane.now_s += 20
    await plane.round()
    assert await plane.open_alerts("ha.nothing_decided") == []
