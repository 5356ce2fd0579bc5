"""Balancing on every kind of database: runs, decisions, moves that go on after a restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Phase
from controlplane.domain.recommendation import Automation, Recommendation, RecommendationFilter, Status
from controlplane.domain.vm import PowerState
from controlplane.operations.desk import Caller
from controlplane.services.balancing import KEPT
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import StorageDomain
from limiquantix.compute.v1.vm_pb2 import DiskDevice, PlacementPolicy, VmSpec
from limiquantix.errors import (
    Aborted,
    ApiError,
    FailedPrecondition,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from limiquantix.node.v1.node_daemon_pb2 import ResourceUsage
from tests.support.balancing_scene import PLANNER, Scene
from tests.support.builders import GIB, make_id, make_node
from tests.support.stores import node_in

REFUSED = ResourceExhausted(Reason.NO_NODE_FITS, "no node fits: 1 lacks memory")
BROKEN = FailedPrecondition(Reason.MIGRATION_FAILED, "the connection broke")


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


async def statuses(scene: Scene) -> list[str]:
    page = await scene.service.list(RecommendationFilter(), None, 100)
    return sorted(Status.Name(each.status) for each in page.items)


async def test_run_recommends_moves_to_the_idle_node_with_cost_gain_and_reason(scene: Scene) -> None:
    busy, idle, vms = await scene.busy_and_idle()

    outcome = await scene.service.run()

    first = outcome.recommendations[0]
    assert (first.source_node_id, first.target_node_id) == (busy.id, idle.id)
    assert first.vm_id in {vm.id for vm in vms}
    assert first.cost_memory_bytes == 8 * 2**30
    assert first.cost_duration_ms > 0
    assert first.gain_percent > 0
    assert first.source_load_before > first.source_load_after
    assert "busy uses 70 % CPU and 60 % memory" in first.reason
    assert "estimated by its claim" in first.reason
    assert outcome.imbalance_after < outcome.imbalance_before
    assert [each.step for each in outcome.recommendations] == list(range(1, len(outcome.recommendations) + 1))
    assert await scene.service.get(first.id) == first


async def test_run_says_that_vms_were_measured(scene: Scene) -> None:
    _, _, vms = await scene.busy_and_idle()
    scene.usage.of = {vm.id: ResourceUsage(cpu_usage_percent=80, memory_used_bytes=6 * 2**30) for vm in vms}

    outcome = await scene.service.run()

    assert "Nodes and VM were measured." in outcome.recommendations[0].reason


async def test_run_on_claims_when_a_node_never_told_its_load(scene: Scene) -> None:
    busy, _, _ = await scene.busy_and_idle()
    await scene.measure(replace(busy, spec=type(busy.spec)()), 0.0, 0.0)

    outcome = await scene.service.run()

    assert "Loads are claims" in outcome.recommendations[0].reason


async def test_same_recommendation_stays_the_same_and_what_is_overtaken_expires(scene: Scene) -> None:
    busy, idle, _ = await scene.busy_and_idle()
    first = await scene.service.run()
    scene.later(300)
    second = await scene.service.run()

    assert {each.id for each in second.recommendations} == {each.id for each in first.recommendations}
    await scene.measure(busy, 2.0, 5.0)
    await scene.measure(idle, 90.0, 90.0)
    third = await scene.service.run()
    assert third.recommendations == []
    assert set(await statuses(scene)) == {"EXPIRED"}
    expired = await scene.service.get(first.recommendations[0].id)
    assert expired.status_message == "the run after it recommends something else, or nothing"


async def test_of_two_runs_at_once_one_is_recorded(scene: Scene) -> None:
    await scene.busy_and_idle()

    outcomes = await asyncio.gather(*(scene.service.run() for _ in range(3)), return_exceptions=True)

    assert all(isinstance(each, Aborted) or not isinstance(each, BaseException) for each in outcomes)
    open_ones = await scene.store.read(lambda tx: tx.open_recommendations())
    assert len({each.vm_id for each in open_ones}) == len(open_ones)


async def test_run_leaves_vms_that_are_off_pinned_busy_or_whose_disks_cannot_follow(scene: Scene) -> None:
    busy, _, _ = await scene.busy_and_idle(0)
    with_disk = VmSpec(disks=[DiskDevice(id=make_id(), size_gib=1)])
    with_disk.cpu.cores, with_disk.memory.size_mib = 2, 8192
    pinned = VmSpec(placement=PlacementPolicy(required_nodes=["busy"]))
    pinned.cpu.cores, pinned.memory.size_mib = 2, 8192
    await scene.add_vm(busy, "off", memory_mib=8192, power_state=PowerState.STOPPED)
    await scene.add_vm(busy, "disk", spec=with_disk)
    await scene.add_vm(busy, "pinned", spec=pinned)
    moving = await scene.add_vm(busy, "moving", memory_mib=8192)
    await scene.migrations.start(moving.id, _wish(), _caller("x"))

    outcome = await scene.service.run()

    assert outcome.recommendations == []
    assert outcome.message.startswith("no move is possible: 2 VMs held back")
    assert "2 VMs kept by rules" in outcome.message


# -- decisions


async def test_approved_one_is_carried_out_after_the_next_run(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]

    approved = await scene.service.approve(wanted.id, "alice")
    await scene.moves.advance()

    assert (approved.status, approved.decided_by, approved.is_due) == (Status.APPROVED, "alice", False)
    assert scene.migrations.orders == []
    assert (await scene.service.approve(wanted.id, "bob")).decided_by == "alice"
    await scene.service.run()
    await scene.moves.advance()
    ((vm_id, wish, caller),) = scene.migrations.orders
    assert (vm_id, wish.target_node_id) == (wanted.vm_id, wanted.target_node_id)
    assert not wish.shared_storage_only, "it has no disks that would have to be copied"
    assert caller.request_id == f"balance-{wanted.id}"
    await scene.migrations.finish(vm_id)
    await scene.moves.advance()
    applied = await scene.service.get(wanted.id)
    assert applied.status == Status.APPLIED
    assert applied.operation_id


async def test_rejected_one_leaves_its_vm_alone_for_the_hold_time(scene: Scene) -> None:
    await scene.busy_and_idle(1)
    scene.configure(planner=replace(PLANNER, headroom_failures=0, min_difference_points=0.0, hysteresis_points=0.0))
    busy = await scene.store.read(lambda tx: tx.get_node_by_hostname("busy"))
    assert busy is not None
    await scene.add_vm(busy, "second", memory_mib=8192)
    wanted = (await scene.service.run()).recommendations
    assert wanted

    for each in wanted:
        rejected = await scene.service.reject(each.id, "it is holy", "alice")
        assert (rejected.status, rejected.status_message) == (Status.REJECTED, "it is holy")
        assert await scene.service.reject(each.id, "again", "bob") == rejected
    ids = {each.vm_id for each in wanted}

    assert not ids & {each.vm_id for each in (await scene.service.run()).recommendations}
    scene.later(PLANNER.hold_s)
    assert (await scene.service.run()).recommendations


async def test_decisions_about_what_is_over_or_unknown_are_refused(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]
    await scene.service.reject(wanted.id, "", "alice")

    with pytest.raises(FailedPrecondition, match=f"cannot approve recommendation {wanted.id}: it is REJECTED"):
        await scene.service.approve(wanted.id, "bob")
    with pytest.raises(FailedPrecondition, match="REJECTED"):
        await scene.moves.apply(wanted.id, "bob")
    unknown = make_id()
    for call in (scene.service.get(unknown), scene.service.approve(unknown, "x"), scene.moves.apply(unknown, "x")):
        with pytest.raises(NotFound):
            await call


async def test_apply_moves_the_vm_and_returns_when_it_has_moved(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]

    applied = await scene.moves.apply(wanted.id, "alice")

    assert (applied.status, applied.decided_by) == (Status.APPLIED, "alice")
    vm = await scene.store.read(lambda tx: tx.get_vm(wanted.vm_id))
    assert vm is not None
    assert vm.node_id == wanted.target_node_id
    assert await scene.moves.apply(wanted.id, "alice") == applied
    assert len(scene.migrations.orders) == 1
    with pytest.raises(FailedPrecondition, match="APPLIED"):
        await scene.service.reject(wanted.id, "", "alice")


async def test_second_run_after_all_were_applied_proposes_nothing(scene: Scene) -> None:
    busy, idle, _ = await scene.busy_and_idle()
    for wanted in (await scene.service.run()).recommendations:
        assert (await scene.moves.apply(wanted.id, "alice")).status == Status.APPLIED
    await scene.measure(busy, 36.0, 33.0)
    await scene.measure(idle, 36.0, 33.0)
    scene.later(2 * PLANNER.hold_s)

    outcome = await scene.service.run()

    assert outcome.recommendations == []
    assert outcome.message.startswith("balanced")


@pytest.mark.parametrize("happened", ["vm stopped", "vm elsewhere", "target cordoned", "target full", "vm gone"])
async def test_apply_of_what_was_overtaken_expires_with_the_reason(scene: Scene, happened: str) -> None:
    busy, idle, _ = await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]

    async def change(tx: Transaction) -> None:
        vm, target = await tx.get_vm(wanted.vm_id), await tx.get_node(idle.id)
        assert vm is not None
        assert target is not None
        if happened == "vm stopped":
            await tx.update_vm(replace(vm, power_state=PowerState.STOPPED))
        elif happened == "vm elsewhere":
            await tx.update_vm(replace(vm, node_id=idle.id))
        elif happened == "target cordoned":
            await tx.update_node(replace(target, phase=Phase.MAINTENANCE))
        elif happened == "target full":
            assert await tx.claim(idle.id, target.capacity)
        else:
            await tx.delete_vm(vm.id)

    await scene.store.run(change)
    expired = await scene.moves.apply(wanted.id, "alice")

    words = {
        "vm stopped": "the VM is STOPPED by now",
        "vm elsewhere": "the VM is on another node by now",
        "target cordoned": "node idle takes no VMs at the moment (MAINTENANCE)",
        "target full": "the VM needs 2 vCPUs and 8192 MiB, node idle has 0 and 0 MiB free",
        "vm gone": "the VM is gone",
    }
    assert (expired.status, expired.status_message) == (Status.EXPIRED, words[happened])
    assert scene.migrations.orders == []
    assert busy.id == wanted.source_node_id


async def test_refused_migration_expires_and_failed_one_fails_with_the_reason(scene: Scene) -> None:
    await scene.busy_and_idle()
    one, other = (await scene.service.run()).recommendations[:2]
    scene.migrations.refusal = REFUSED
    expired = await scene.moves.apply(one.id, "alice")
    assert (expired.status, expired.status_message) == (Status.EXPIRED, REFUSED.message)

    scene.migrations.refusal = None
    await scene.moves.apply(other.id, "alice", waits=False)
    await scene.migrations.finish(other.vm_id, BROKEN)
    await scene.moves.advance()
    failed = await scene.service.get(other.id)
    assert (failed.status, failed.status_message) == (Status.FAILED, BROKEN.message)


async def test_migration_that_cannot_be_asked_for_just_now_is_asked_for_again(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]
    scene.migrations.refusal = Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")
    with pytest.raises(ApiError):
        await scene.moves.apply(wanted.id, "alice")
    await scene.moves.advance()

    scene.migrations.refusal = None
    await scene.moves.advance()

    assert len(scene.migrations.orders) == 1
    with pytest.raises(FailedPrecondition, match=r"VM vm-. is being moved; cancel operation"):
        await scene.service.reject(wanted.id, "", "bob")


async def test_vm_with_disks_moves_over_shared_storage_only(scene: Scene) -> None:
    domain = StorageDomain(id=make_id(), path="/shared")
    specs = [make_node(vcpus=16, memory_bytes=64 * GIB).spec for _ in range(2)]
    for node_spec in specs:
        node_spec.storage_domains.append(domain)
    busy = await scene.add_node("busy", memory_bytes=64 * GIB, spec=specs[0])
    idle = await scene.add_node("idle", memory_bytes=64 * GIB, spec=specs[1])
    await scene.add_node("elsewhere", memory_bytes=64 * GIB)
    spec = VmSpec(disks=[DiskDevice(id=make_id(), size_gib=1)])
    spec.cpu.cores, spec.memory.size_mib = 2, 8192
    for number in range(6):
        await scene.add_vm(busy, f"disk-{number}", spec=spec)
    await scene.measure(busy, 70.0, 60.0)

    made = (await scene.service.run()).recommendations
    await scene.moves.apply(made[0].id, "alice", waits=False)

    assert {each.target_node_id for each in made} == {idle.id}
    ((_, wish, _),) = scene.migrations.orders
    assert wish.shared_storage_only


# -- full automation


async def test_full_automation_applies_in_order_and_a_few_at_once(scene: Scene) -> None:
    scene.configure(automation=Automation.FULL, max_concurrent_moves=1)
    await scene.busy_and_idle()
    assert await scene.balancer.run_if_due()
    planned = sorted(await scene.store.read(lambda tx: tx.open_recommendations()), key=lambda each: each.step)
    assert len(planned) > 1
    assert all(each.decided_by == "balancer" for each in planned)

    for count, each in enumerate(planned, start=1):
        await scene.moves.advance()
        await scene.moves.advance()
        assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [step.vm_id for step in planned[:count]]
        await scene.migrations.finish(each.vm_id)
    await scene.moves.advance()

    assert set(await statuses(scene)) == {"APPLIED"}
    assert not await scene.balancer.run_if_due()


async def test_process_killed_between_order_and_note_moves_nothing_twice(scene: Scene) -> None:
    scene.configure(automation=Automation.FULL)
    await scene.busy_and_idle()
    await scene.service.run()
    planned = sorted(await scene.store.read(lambda tx: tx.open_recommendations()), key=lambda each: each.step)
    first = planned[0]
    # What a process does whose end comes right after the migration was ordered, and the migration goes on without it.
    await scene.migrations.start(first.vm_id, _wish(first.target_node_id), _caller(f"balance-{first.id}", first.id))
    await scene.migrations.finish(first.vm_id)

    scene.configure(automation=Automation.FULL)
    await scene.moves.advance()
    await scene.moves.advance()

    assert (await scene.service.get(first.id)).status == Status.APPLIED
    assert [vm_id for vm_id, _, _ in scene.migrations.orders].count(first.vm_id) == 1


async def test_move_waits_for_room_that_a_running_one_makes(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]
    idle = await node_in(scene.store, wanted.target_node_id)
    tenant = await scene.add_vm(idle, "tenant", cores=4, memory_mib=1024)
    room = replace(idle.capacity, vcpus=idle.capacity.vcpus - 5, memory_bytes=0)
    assert await scene.store.run(lambda tx: tx.claim(idle.id, room))
    leaving = _like(wanted, tenant.id, idle.id, wanted.source_node_id)
    await scene.store.run(lambda tx: tx.insert_recommendations([leaving]))
    await scene.service.approve(leaving.id, "alice", is_due=True)
    await scene.moves.advance()
    await scene.service.approve(wanted.id, "alice", is_due=True)

    await scene.moves.advance()
    assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [tenant.id]

    await scene.migrations.finish(tenant.id)
    await scene.moves.advance()
    assert [vm_id for vm_id, _, _ in scene.migrations.orders] == [tenant.id, wanted.vm_id]


# -- time


async def test_manual_mode_and_switched_off_run_only_by_hand(scene: Scene) -> None:
    await scene.busy_and_idle()
    configs: list[dict[str, Any]] = [{"automation": Automation.MANUAL}, {"is_enabled": False}]
    for config in configs:
        scene.configure(**config)
        assert not await scene.balancer.run_if_due()
    assert (await scene.service.run()).recommendations
    assert (await scene.service.balance()).next_run_at is None


async def test_runs_come_every_interval_whichever_process_made_the_last(scene: Scene) -> None:
    await scene.busy_and_idle()
    other = Scene(scene.store)
    other.clock.at = scene.clock.at

    assert await scene.balancer.run_if_due()
    assert not await other.balancer.run_if_due()
    other.later(300)
    assert await other.balancer.run_if_due()
    assert not await scene.balancer.run_if_due()


async def test_what_nobody_decides_expires_and_is_forgotten(scene: Scene) -> None:
    await scene.busy_and_idle()
    wanted = (await scene.service.run()).recommendations[0]
    scene.later(KEPT.total_seconds())
    with pytest.raises(FailedPrecondition, match="EXPIRED"):
        await scene.service.approve(wanted.id, "alice")

    await scene.moves.advance()
    assert (await scene.service.get(wanted.id)).status_message == "nobody decided in time"
    scene.later(1)
    await scene.moves.advance()
    with pytest.raises(NotFound):
        await scene.service.get(wanted.id)


async def test_lists_are_filtered_and_paged_newest_first(scene: Scene) -> None:
    await scene.busy_and_idle()
    made = (await scene.service.run()).recommendations
    await scene.service.reject(made[0].id, "", "alice")

    seen = []
    cursor = None
    while True:
        page = await scene.service.list(RecommendationFilter(), cursor, 1)
        assert page.total_count == len(made)
        seen += [each.id for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert sorted(seen) == sorted(each.id for each in made)
    rejected = await scene.service.list(RecommendationFilter(frozenset({Status.REJECTED})), None, 10)
    assert [each.id for each in rejected.items] == [made[0].id]
    of_vm = await scene.service.list(RecommendationFilter(vm_id=made[1].vm_id), None, 10)
    assert [each.id for each in of_vm.items] == [made[1].id]


async def test_balance_tells_the_loads_of_all_nodes(scene: Scene) -> None:
    busy, _, _ = await scene.busy_and_idle()
    await scene.add_node("asleep", phase=Phase.MAINTENANCE)
    assert (await scene.service.balance()).message == "not looked at yet"
    await scene.service.run()

    view = await scene.service.balance()

    assert [load.hostname for load in view.nodes] == ["asleep", "busy", "idle"]
    load = view.nodes[1]
    assert (load.node_id, load.vm_count) == (busy.id, 6)
    assert load.used_cpu == pytest.approx(70.0)
    assert load.used_memory == pytest.approx(60.0)
    assert load.claimed_cpu == pytest.approx(75.0)
    assert view.imbalance > 10
    assert view.next_run_at == scene.clock() + timedelta(seconds=scene.service.config.interval_s)


def _like(one: Recommendation, vm_id: str, source: str, target: str) -> Recommendation:
    return replace(one, id=make_id(), vm_id=vm_id, source_node_id=source, target_node_id=target)


def _wish(target: str = "") -> MigrationWish:
    return MigrationWish(target_node_id=target)


def _caller(request_id: str, digest: str = "") -> Caller:
    return Caller(principal="balancer", request_id=request_id, request_digest=digest)
