"""Room for VMs of nodes that fail is left by changes of VMs and by drains, also by such as come at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from controlplane.domain.node import Capacity, Phase
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.kept_room import ROOM_FILTER
from controlplane.services.opinions import PlacementOpinions
from controlplane.services.placement import NodeMemory
from controlplane.services.room_rules import KeptRoomRules
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import placement_service_pb2 as api
from limiquantix.errors import ApiError, FailedPrecondition, Reason, ResourceExhausted
from tests.contract.store.test_kept_room_contract import KEEPING, draft, host, place
from tests.support.builders import GIB, START_OF_TIME
from tests.support.stores import add, open_store


def rules(config: SchedulerConfig = KEEPING) -> KeptRoomRules:
    return KeptRoomRules(config, NodeMemory())


def changed(vm: Vm, gib: int, *, protected: bool = True) -> Vm:
    return replace(vm, spec=draft(gib, protected=protected).spec)


async def change(store: Store, vm_id: str, gib: int, *, protected: bool = True) -> None:
    """Do with a VM what an update does."""

    async def work(tx: Transaction) -> None:
        before = await tx.get_vm(vm_id)
        assert before is not None
        after = changed(before, gib, protected=protected)
        await rules().require_for_change(tx, before, after)
        growth = Capacity(0, max(after.memory_bytes - before.memory_bytes, 0))
        assert await tx.claim(before.node_id, growth)
        await tx.update_vm(after)

    await store.run(work)


async def outcomes_of(*work: Awaitable[object]) -> list[object]:
    return await asyncio.gather(*work, return_exceptions=True)


def refused(outcomes: list[object]) -> list[str]:
    return [str(each.reason) for each in outcomes if isinstance(each, ApiError)]


async def test_growth_that_would_take_the_room_is_refused_with_numbers(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    vms = [await place(store, draft(2)) for _ in range(4)]

    with pytest.raises(ResourceExhausted, match=r"1 of 2 VMs would find no room") as caught:
        await change(store, vms[0].id, 3)

    assert caught.value.reason == Reason.NO_FAILOVER_ROOM
    assert caught.value.metadata["vm_id"] == vms[0].id


async def test_growth_of_a_vm_that_is_not_restarted_is_refused_all_the_same(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    unprotected = await place(store, draft(1, protected=False))
    for _ in range(3):
        await place(store, draft(2))

    with pytest.raises(ResourceExhausted, match="would find no room"):
        await change(store, unprotected.id, 4, protected=False)


async def test_vm_may_not_become_one_that_is_restarted_where_it_has_no_place(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    vms = [await place(store, draft(3, protected=False)) for _ in range(4)]

    with pytest.raises(ResourceExhausted, match=r"if h[12] failed, 1 of 1 VMs would find no room"):
        await change(store, vms[0].id, 3)


async def test_vm_may_shrink_and_be_restarted_no_more_however_little_room_there_is(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    free = SchedulerConfig()
    vms = [await place(store, draft(4), config=free) for _ in range(4)]

    await change(store, vms[0].id, 3)
    await change(store, vms[1].id, 4, protected=False)


async def test_growth_beyond_the_node_is_left_to_who_claims_it(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    vm = await place(store, draft(2))

    await store.run(lambda tx: rules().require_for_change(tx, vm, changed(vm, 9)))


async def test_changes_that_come_at_once_by_two_processes_do_not_take_the_room_together(store: Store, url: str) -> None:
    nodes = [host("h1"), host("h2")]
    await add(store, *nodes)
    restarted = await place(store, draft(2), on=nodes[0].id)
    beside = await place(store, draft(2, protected=False), on=nodes[1].id)
    # Either may grow to 5 GiB. Once both had, the first one would not fit beside the second on 8 GiB.
    async with open_store(url) as other:
        outcomes = await outcomes_of(change(store, restarted.id, 5), change(other, beside.id, 5, protected=False))

    assert refused(outcomes) == [Reason.NO_FAILOVER_ROOM]


async def test_drains_that_come_at_once_by_two_processes_do_not_take_the_room_together(store: Store, url: str) -> None:
    nodes = [host(f"h{number}") for number in range(4)]
    await add(store, *nodes)
    for node in nodes:
        await place(store, draft(3), on=node.id)

    async def drain(each: Store, node_id: str) -> None:
        async def work(tx: Transaction) -> None:
            await rules().require_for_drain(tx, node_id, "")
            node = await tx.get_node(node_id)
            assert node is not None
            await tx.update_node(replace(node, phase=Phase.DRAINING))

        await each.run(work)

    async with open_store(url) as other:
        outcomes = await outcomes_of(drain(store, nodes[0].id), drain(other, nodes[1].id))

    assert refused(outcomes) == [Reason.NO_FAILOVER_ROOM]
    with pytest.raises(FailedPrecondition, match="would find no room"):
        await drain(store, nodes[2].id)


async def test_plan_leaves_the_room_that_placing_would_leave(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(2):
        await place(store, draft(2))
    opinions = PlacementOpinions(store, KEEPING, lambda: START_OF_TIME, NodeMemory())
    request = api.PlanPlacementsRequest(mode=api.PlanPlacementsRequest.AS_MANY_AS_FIT)
    request.vms.extend(api.PlacementCandidate(name=f"vm-{number}", spec=draft(2).spec) for number in range(3))

    answer = await opinions.plan(request)

    assert answer.placed_count == 2
    assert [bool(each.node_id) for each in answer.placements] == [True, True, False]
    assert answer.placements[2].reason.startswith("the cluster keeps room for 1 failed node: with this VM, if h")
    request.mode = api.PlanPlacementsRequest.ALL_OR_NOTHING
    whole = await opinions.plan(request)
    assert whole.placed_count == 0
    assert "not all of its batch do" in whole.placements[0].reason


@pytest.mark.parametrize(
    ("fill", "count"),
    [
        pytest.param(lambda: [], 8, id="empty"),
        pytest.param(lambda: [draft(2), draft(2)], 4, id="half of it taken"),
        pytest.param(lambda: [draft(1, protected=False)], 7, id="by one that is not restarted"),
    ],
)
async def test_capacity_is_as_many_as_can_be_placed(store: Store, fill: Callable[[], list[Vm]], count: int) -> None:
    await add(store, host("h1"), host("h2"))
    for vm in fill():
        await place(store, vm)
    opinions = PlacementOpinions(store, KEEPING, lambda: START_OF_TIME, NodeMemory())

    answer = await opinions.capacity(api.GetCapacityRequest(vm=api.PlacementCandidate(spec=draft(1).spec)))

    assert answer.fitting_count == count
    assert ROOM_FILTER in answer.limit
    assert answer.failures[0].fitting_count >= count
    for _ in range(count):
        await place(store, draft(1))
    with pytest.raises(ResourceExhausted):
        await place(store, draft(1))
    claims = [each.memory_bytes for each in await store.read(lambda tx: tx.node_claims())]
    assert max(claims) <= 8 * GIB
