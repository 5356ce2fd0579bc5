"""Room for VMs of nodes that fail is left by whatever would take it, on every kind of database."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from controlplane.domain.admission import KeptRoom
from controlplane.domain.node import Node, Phase
from controlplane.domain.vm import PowerState, Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.scheduler.scores import Strategy
from controlplane.services.ha_forecast import HaForecaster
from controlplane.services.kept_room import ROOM_FILTER, drain_refusal
from controlplane.services.opinions import PlacementOpinions
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.state.interface import Store
from limiquantix.compute.v1 import placement_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import StorageDomain
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, PlacementPolicy, VmSpec
from limiquantix.errors import Aborted, ResourceExhausted
from tests.support.builders import GIB, START_OF_TIME, make_node, make_vm
from tests.support.stores import add, open_store, vm_in

KEEPING = SchedulerConfig(kept_room=KeptRoom(failures=1))
PACKING = SchedulerConfig(Strategy.PACK, kept_room=KeptRoom(failures=1))


def draft(gib: int, *, protected: bool = True, starts_after: str = "", priority: int = 0, **fields: Any) -> Vm:
    policy = HaPolicy(auto_restart=protected, priority=priority, starts_after=[starts_after] if starts_after else [])
    spec = VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=gib * 1024),
        ha_policy=policy,
        placement=fields.pop("placement", None),
    )
    wanted = {"power_state": PowerState.RUNNING, "wanted_state": PowerState.RUNNING}
    return make_vm(spec=spec, **{**wanted, **fields})


def host(hostname: str, gib: int = 8, **fields: Any) -> Node:
    node = make_node(hostname=hostname, vcpus=64, memory_bytes=gib * GIB, **fields)
    node.spec.storage_domains.append(StorageDomain(id="shared"))
    return node


async def place(
    store: Store, vm: Vm, memory: NodeMemory | None = None, config: SchedulerConfig = KEEPING, on: str = ""
) -> Vm:
    known = memory or NodeMemory()
    placed = await store.run(lambda tx: place_vm(tx, vm, config, known, on))
    known.keep(placed)
    return placed.vm


async def test_vm_that_would_take_the_room_is_refused_with_node_and_numbers_and_leaves_nothing(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(4):
        await place(store, draft(2))
    refused = draft(2)

    with pytest.raises(ResourceExhausted) as caught:
        await place(store, refused)

    assert caught.value.reason == "NO_FAILOVER_ROOM"
    assert re.match(
        r"the cluster keeps room for 1 failed node: with this VM, if h[12] failed, 1 of 3 VMs would find no room "
        r"\(1 vCPUs and 2,048 MiB\); add a node",
        caught.value.message,
    )
    assert set(caught.value.metadata) == {"node.h1", "node.h2"}
    assert await vm_in(store, refused.id) is None
    claimed = {each.memory_bytes for each in await store.read(lambda tx: tx.node_claims())}
    assert claimed == {4 * GIB}


async def test_vm_that_is_not_restarted_itself_may_not_take_the_room_of_others(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(4):
        await place(store, draft(2))

    with pytest.raises(ResourceExhausted, match=r"1 of 2 VMs would find no room"):
        await place(store, draft(1, protected=False))


async def test_cluster_without_vms_to_restart_may_be_filled(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(8):
        await place(store, draft(2, protected=False))

    with pytest.raises(ResourceExhausted, match="lack memory"):
        await place(store, draft(2, protected=False))


async def test_one_node_alone_may_be_filled_and_a_second_one_brings_the_rule(store: Store) -> None:
    await add(store, host("h1"))
    for _ in range(4):
        await place(store, draft(2))
    await add(store, host("h2"))

    with pytest.raises(ResourceExhausted, match="if h1 failed, 1 of 4 VMs"):
        await place(store, draft(1, protected=False))


async def test_next_best_node_is_taken_where_the_best_one_must_be_left_free(store: Store) -> None:
    small, large = host("h1", 8), host("h2", 16)
    await add(store, small, large, host("h3", 16))
    await place(store, draft(10), on=large.id)
    # The emptiest node is the only one that could restart it.
    placed = await place(store, draft(7, protected=False))

    assert placed.node_id == small.id


async def test_two_that_come_at_once_by_two_processes_do_not_take_it_together(store: Store, url: str) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(3):
        await place(store, draft(2))
    async with open_store(url) as other:
        outcomes = await asyncio.gather(
            *(place(each, draft(2)) for each in (store, other, store, other)), return_exceptions=True
        )

    assert [type(each) for each in outcomes].count(Vm) == 1
    assert [type(each) for each in outcomes].count(ResourceExhausted) == 3


async def test_many_small_ones_at_once_share_the_turn_while_there_is_plenty_and_end_within_the_room(
    store: Store, url: str
) -> None:
    nodes = [host(f"h{number}", 64) for number in range(5)]
    await add(store, *nodes)
    memory = NodeMemory()
    async with open_store(url) as other:

        async def fill(each: Store) -> int:
            count = 0
            while True:
                try:
                    await place(each, draft(1), memory)
                except Aborted:
                    continue
                except ResourceExhausted as error:
                    assert error.reason == "NO_FAILOVER_ROOM"  # noqa: PT017 - all others end the test
                    return count
                count += 1

        counts = await asyncio.gather(*(fill(each) for each in (store, other, store, other)))

    # 64 vCPUs and 64 GiB a node, a VM takes one of each: what 4 nodes hold.
    assert sum(counts) == 4 * 64
    assert await HaForecaster(store, KEEPING, NodeMemory()).failures_survived() == 1


async def test_drain_that_would_take_the_room_is_foretold(store: Store) -> None:
    nodes = [host(f"h{number}") for number in range(3)]
    await add(store, *nodes)
    for number in range(6):
        await place(store, draft(2), on=nodes[number % 3].id)

    async def lack() -> str:
        return await store.read(lambda tx: drain_refusal(tx, nodes[0].id, "", KEEPING))

    assert "of 3 VMs would find no room" in await lack()
    await add(store, host("h3"))
    assert await lack() == ""


async def test_explanation_has_the_refusal_of_each_node_and_no_choice(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    for _ in range(4):
        await place(store, draft(2))
    opinions = PlacementOpinions(store, KEEPING, lambda: START_OF_TIME, NodeMemory())
    candidate = api.PlacementCandidate(name="new", spec=draft(2).spec)

    answer = await opinions.explain(api.ExplainPlacementRequest(candidate=candidate))

    assert answer.chosen_node_id == ""
    assert answer.summary.startswith("the cluster keeps room for 1 failed node: with this VM, if h")
    assert [[each.filter for each in node.rejections] for node in answer.nodes] == [[ROOM_FILTER]] * 2


async def test_explanation_of_a_vm_that_has_its_place_says_nothing_of_room(store: Store) -> None:
    await add(store, host("h1"), host("h2"))
    placed = [await place(store, draft(2)) for _ in range(4)]
    opinions = PlacementOpinions(store, KEEPING, lambda: START_OF_TIME, NodeMemory())

    answer = await opinions.explain(api.ExplainPlacementRequest(vm_id=placed[0].id))

    assert answer.chosen_node_id
    assert not any(node.rejections for node in answer.nodes)


async def test_forecast_has_targets_in_the_order_of_restart_and_obstacles_of_the_rest(store: Store) -> None:
    first, second = host("h1"), host("h2", 4)
    await add(store, first, second)
    free = SchedulerConfig()
    low = await place(store, draft(3, priority=1), config=free, on=first.id)
    high = await place(store, draft(2, priority=5), config=free, on=first.id)
    after = await place(store, draft(2, priority=9, starts_after=low.id), config=free, on=first.id)
    await place(store, draft(1, protected=False), config=free, on=first.id)
    forecaster = HaForecaster(store, KEEPING, NodeMemory())

    found = await forecaster.forecast(first.id)

    assert [(each.vm_id, each.target_node_id) for each in found] == [
        (high.id, second.id),
        (low.id, ""),
        (after.id, second.id),
    ]
    assert "needs" in found[1].obstacle or "need 3072 MiB" in found[1].obstacle
    assert await forecaster.forecast(second.id) == ()
    assert await forecaster.failures_survived() == 0


async def test_forecast_of_one_node_leaves_that_of_the_next_as_it_was(store: Store) -> None:
    nodes = [host(f"h{number}", 4) for number in range(3)]
    await add(store, *nodes)
    for node in nodes:
        await place(store, draft(2), config=SchedulerConfig(), on=node.id)
    forecaster = HaForecaster(store, KEEPING, NodeMemory())

    found = [await forecaster.forecast(node.id) for node in [*nodes, *nodes]]

    assert all(each.target_node_id for forecasts in found for each in forecasts)
    assert found[:3] == found[3:]


async def test_forecast_says_how_many_nodes_do_not_reach_the_disks(store: Store) -> None:
    first, second = host("h1"), make_node(hostname="h2")
    await add(store, first, second, host("h3", phase=Phase.NOT_READY))
    vm = await place(store, draft(2), config=SchedulerConfig(), on=first.id)

    (found,) = await HaForecaster(store, KEEPING, NodeMemory()).forecast(first.id)

    assert (found.vm_id, found.target_node_id) == (vm.id, "")
    assert found.obstacle.endswith("; 1 node does not reach its disks")


async def test_forecast_is_read_anew_after_a_while(store: Store) -> None:
    first, second = host("h1"), host("h2")
    await add(store, first, second)
    now_s = 0.0
    forecaster = HaForecaster(store, KEEPING, NodeMemory(), clock=lambda: now_s)
    assert await forecaster.forecast(first.id) == ()
    vm = await place(store, draft(2), config=SchedulerConfig(), on=first.id)
    assert await forecaster.forecast(first.id) == ()

    now_s = 2.0

    assert [each.vm_id for each in await forecaster.forecast(first.id)] == [vm.id]


async def test_requests_of_vms_with_rules_are_kept_off_by_them(store: Store) -> None:
    nodes = [host("h1"), host("h2"), host("h3")]
    await add(store, *nodes)
    other = await place(store, draft(1), config=SchedulerConfig(), on=nodes[1].id)
    vm = draft(1, placement=PlacementPolicy(anti_affinity_vms=[other.id]))
    await place(store, vm, config=SchedulerConfig(), on=nodes[0].id)

    (found,) = await HaForecaster(store, KEEPING, NodeMemory()).forecast(nodes[0].id)

    assert found.target_node_id == nodes[2].id
