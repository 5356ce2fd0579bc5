"""Two moves that belong together, on every kind of database: decided as one, made one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.recommendation import Automation, Recommendation, RecommendationFilter, Status
from controlplane.domain.vm import PowerState
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1.node_daemon_pb2 import ResourceUsage
from tests.support.balancing_scene import PLANNER, Scene
from tests.support.builders import GIB

BROKEN = FailedPrecondition(Reason.MIGRATION_FAILED, "the connection broke")
CAPACITY = Capacity(100, 1000 * GIB)
EXCHANGING = replace(PLANNER, headroom_failures=0, hysteresis_points=0.0, min_difference_points=0.0)


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store, planner=EXCHANGING)


async def exchange(scene: Scene) -> tuple[Recommendation, Recommendation]:
    """Have a run recommend that a busy and an idle VM change places: on the idle node nothing is free without that."""
    busy = await scene.add_node("busy", vcpus=16, memory_bytes=64 * GIB)
    idle = await scene.add_node("idle", vcpus=16, memory_bytes=64 * GIB)
    for node, cpu_percent, others in ((busy, 51.0, 84), (idle, 2.0, 95)):
        await scene.store.run(lambda tx, node=node: tx.update_node(replace(node, capacity=CAPACITY)))  # type: ignore[misc]
        taken = Capacity(others, 0)
        assert await scene.store.run(lambda tx, node=node, taken=taken: tx.claim(node.id, taken))  # type: ignore[misc]
        await scene.measure(node, cpu_percent, 5.0)
    for name, node, cpu_percent in (("one", busy, 80.0), ("two", busy, 80.0), ("quiet", idle, 2.0)):
        vm = await scene.add_vm(node, name, cores=5)
        scene.usage.of[vm.id] = ResourceUsage(cpu_usage_percent=cpu_percent, memory_used_bytes=GIB)
    first, second = (await scene.service.run()).recommendations
    assert (first.vm_name, first.source_node_id, second.source_node_id) == ("quiet", idle.id, busy.id)
    return first, second


async def _enlarge(tx: Transaction, node: Node, others: int) -> None:
    await tx.update_node(replace(node, capacity=CAPACITY))
    assert await tx.claim(node.id, Capacity(others, 0))


async def get(scene: Scene, each: Recommendation) -> Recommendation:
    return await scene.service.get(each.id)


async def test_halves_name_each_other_and_keep_doing_so_in_the_next_run(scene: Scene) -> None:
    first, second = await exchange(scene)

    assert (first.exchanged_with, second.exchanged_with) == (second.id, first.id)
    assert "one half of an exchange" in first.reason
    assert first.gain_percent == pytest.approx(second.gain_percent)
    again = (await scene.service.run()).recommendations
    assert [(each.id, each.exchanged_with) for each in again] == [(first.id, second.id), (second.id, first.id)]


async def test_no_exchange_is_recommended_where_a_run_may_make_one_move(scene: Scene) -> None:
    await exchange(scene)
    scene.configure(planner=replace(EXCHANGING, max_moves=1))

    outcome = await scene.service.run()

    assert outcome.recommendations == []
    assert outcome.message == "an exchange of two VMs would help, but a run proposes only 1 move"


async def test_approving_one_half_approves_both(scene: Scene) -> None:
    first, second = await exchange(scene)

    await scene.service.approve(second.id, "alice")

    for each in (await get(scene, first), await get(scene, second)):
        assert (each.status, each.decided_by, each.is_due) == (Status.APPROVED, "alice", False)
    await scene.service.approve(first.id, "bob", is_due=True)
    assert (await get(scene, second)).is_due


async def test_rejecting_one_half_rejects_both(scene: Scene) -> None:
    first, second = await exchange(scene)

    assert (await scene.service.reject(first.id, "no", "alice")).id == first.id

    for each in (await get(scene, first), await get(scene, second)):
        assert (each.status, each.status_message, each.decided_by) == (Status.REJECTED, "no", "alice")
    with pytest.raises(FailedPrecondition, match="it is REJECTED"):
        await scene.service.approve(second.id, "bob")


@pytest.mark.parametrize("chosen", [0, 1])
async def test_applying_one_half_makes_both_moves_in_order(scene: Scene, chosen: int) -> None:
    halves = await exchange(scene)

    applied = await scene.moves.apply(halves[chosen].id, "alice")

    assert (applied.id, applied.status) == (halves[chosen].id, Status.APPLIED)
    assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [each.vm_id for each in halves]
    assert {(await get(scene, each)).status for each in halves} == {Status.APPLIED}
    assert await scene.moves.apply(halves[chosen].id, "alice") == applied
    assert len(scene.migrations.orders) == 2


async def test_second_half_begins_when_the_first_has_moved(scene: Scene) -> None:
    first, second = await exchange(scene)

    await scene.moves.apply(second.id, "alice", waits=False)
    for _ in range(2):
        await scene.moves.advance()
    assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [first.vm_id]
    with pytest.raises(FailedPrecondition, match=f"VM {first.vm_name} is being moved"):
        await scene.service.reject(second.id, "", "bob")
    await scene.migrations.finish(first.vm_id)
    await scene.moves.advance()

    assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [first.vm_id, second.vm_id]


async def test_second_half_is_let_go_when_the_first_failed(scene: Scene) -> None:
    first, second = await exchange(scene)
    await scene.moves.apply(first.id, "alice", waits=False)
    await scene.migrations.finish(first.vm_id, BROKEN)

    await scene.moves.advance()

    assert (await get(scene, first)).status == Status.FAILED
    let_go = await get(scene, second)
    assert (let_go.status, let_go.status_message) == (Status.EXPIRED, "the other half of the exchange is FAILED")
    assert len(scene.migrations.orders) == 1


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        ("vm stopped", "is impossible: the VM is STOPPED by now"),
        ("vm gone", "is impossible: a VM or node is gone"),
        ("target in maintenance", "is impossible: node idle takes no VMs at the moment (MAINTENANCE)"),
    ],
)
async def test_neither_half_is_made_when_the_second_was_overtaken(scene: Scene, happened: str, words: str) -> None:
    halves = await exchange(scene)
    first, second = halves

    async def change(tx: Transaction) -> None:
        vm, target = await tx.get_vm(second.vm_id), await tx.get_node(second.target_node_id)
        assert vm is not None
        assert target is not None
        if happened == "vm stopped":
            await tx.update_vm(replace(vm, power_state=PowerState.STOPPED))
        elif happened == "vm gone":
            await tx.delete_vm(vm.id)
        else:
            await tx.update_node(replace(target, phase=Phase.MAINTENANCE))

    await scene.store.run(change)
    applied = await scene.moves.apply(first.id, "alice")

    assert applied.status == Status.EXPIRED
    assert (await get(scene, second)).status == Status.EXPIRED
    assert scene.migrations.orders == []
    assert f"the other half of the exchange, VM {second.vm_name}, {words}" == applied.status_message


async def test_half_whose_other_half_is_over_cannot_be_approved(scene: Scene) -> None:
    first, second = await exchange(scene)

    async def fail(tx: Transaction) -> None:
        await tx.update_recommendation(replace(first, status=Status.FAILED))

    await scene.store.run(fail)
    for decision in (scene.service.approve(second.id, "alice"), scene.moves.apply(second.id, "alice")):
        with pytest.raises(
            FailedPrecondition, match=f"recommendation {first.id}, with which it is an exchange, is FAIL"
        ):
            await decision


async def test_full_automation_carries_an_exchange_out(scene: Scene) -> None:
    scene.configure(planner=EXCHANGING, automation=Automation.FULL)
    first, second = await exchange(scene)
    for each in (first, second):
        await scene.moves.advance()
        await scene.migrations.finish(each.vm_id)
    await scene.moves.advance()

    page = await scene.service.list(RecommendationFilter(), None, 10)
    assert [each.status for each in page.items] == [Status.APPLIED, Status.APPLIED]
