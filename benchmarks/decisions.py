"""Placement decisions a second: a view kept up to date, against every filter asked about every node.

Every decision is asked for alone and carried out before the next, as when VMs come one by one. Only time on the
processor counts, since neighbours on a shared machine say nothing about the scheduler.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.cluster import tell
from benchmarks.measurement import Goal, Limit, Pair, Row, Section, compare
from controlplane.domain.node import Capacity, Phase
from controlplane.scheduler.decide import decide, decide_among
from controlplane.scheduler.inventory import Inventory, MachineAbilities
from controlplane.scheduler.outcomes import Placement, SchedulerConfig
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView, PlacedVm
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, PlacementPolicy, SpreadRule, Toleration, VmAffinityRule

TITLE = "placement decisions a second, a view kept up to date against every filter asked about every node"
VMS_PER_NODE = 20
LIMITS: Mapping[int, Limit | None] = {
    100: None,
    1_000: Limit(20_000, "higher"),
    10_000: Limit(10_000, "higher"),
}
"""Nodes, and the decisions a second that are wanted of them for requests without rules."""
BELOW_LINEAR = Goal(limit=10)
_MIB = 2**20
_NODES_PER_RACK = 20
_REFERENCE_COUNT = {100: 200, 1_000: 40, 10_000: 5}
"""Decisions of the slow side in a round: about as long as one of ours."""
_SEED = 20_240_501


@dataclass(frozen=True, slots=True)
class DecisionEffort:
    """How much is measured."""

    round_count: int
    decision_count: int


async def measure_decisions(effort: DecisionEffort) -> Section:
    """Run this part."""
    return await asyncio.to_thread(_measure, effort)


def _measure(effort: DecisionEffort) -> Section:
    rows: list[Row] = []
    updates: dict[str, Mapping[str, float]] = {}
    seconds: dict[tuple[str, int], list[float]] = {}
    for node_count, limit in LIMITS.items():
        tell(f"decisions among {node_count:,} nodes")
        view = a_cluster(node_count)
        for sort, make in (("plain", plain_request), ("mixed", mixed_request)):
            pairs = []
            requests = _requests(make, node_count)
            _decide_alone(view, requests, effort.decision_count)  # what is worked out once is not counted
            for _ in range(effort.round_count):
                ours_s = _decide_alone(view, requests, effort.decision_count)
                seconds.setdefault((sort, node_count), []).append(ours_s)
                reference_s = _decide_plainly(view, requests, _REFERENCE_COUNT[node_count])
                pairs.append(Pair(1 / ours_s, 1 / reference_s))
            rows.append(compare(f"{node_count:,} nodes, {sort}", pairs, "/s", limit=limit if sort == "plain" else None))
        updates[f"{node_count:,} nodes, us for one change"] = _update_us(view)
    for sort in ("plain", "mixed"):
        grown = [Pair(*pair) for pair in zip(seconds[sort, 10_000], seconds[sort, 1_000], strict=True)]
        in_us = [Pair(1e6 * pair.ours, 1e6 * pair.reference) for pair in grown]
        rows.append(compare(f"{sort}, 10,000 nodes to 1,000", in_us, "us", BELOW_LINEAR))
    return Section("decisions", TITLE, tuple(rows), figures=updates)


def a_cluster(node_count: int) -> ClusterView:
    """Make nodes of three sizes with 20 VMs each, in racks and zones; some VMs keep others of their sort away."""
    source = random.Random(_SEED)  # noqa: S311 - a cluster to measure on
    nodes, vms = [], []
    for number in range(node_count):
        node_id, claims = f"n{number:05}", Capacity(0, 0)
        for index in range(VMS_PER_NODE):
            request = _size(source.choice([1, 1, 2, 4]), source.choice([1024, 2048, 4096]))
            app = {"app": f"a{source.randrange(node_count)}"}
            policy = PlacementPolicy(vm_rules=[_apart(app)]) if source.random() < 0.1 else PlacementPolicy()
            request = replace(request, vm_id=f"v{number}-{index}", project_id="p", labels=app, policy=policy)
            vms.append(PlacedVm(node_id, request))
            claims = Capacity(claims.vcpus + request.vcpus, claims.memory_bytes + request.memory_bytes)
        nodes.append(
            Candidate(
                id=node_id,
                hostname=f"host-{number:05}",
                phase=Phase.READY,
                schedulable=number % 50 != 0,
                is_compute=True,
                capacity=source.choice([Capacity(128, 2**39), Capacity(192, 2**39), Capacity(256, 2**40)]),
                allocated=claims,
                taints=(Taint(key="gpu", value="yes"),) if number % 25 == 1 else (),
                labels={"zone": f"z{number % 3}", "rack": f"r{number // _NODES_PER_RACK}"},
                storage_pool_ids=frozenset({"pool"}),
                inventory=Inventory(
                    bridges=frozenset({"br0"}),
                    machine=MachineAbilities(has_uefi=True, displays=frozenset({"vnc"}), max_vcpus=240),
                ),
            )
        )
    return ClusterView(nodes, vms)


def plain_request(source: random.Random, node_count: int) -> PlacementRequest:
    """Make a request of one of 12 sizes, with labels and without rules."""
    request = _size(source.choice([1, 2, 4, 8]), source.choice([1024, 2048, 4096]))
    return replace(
        request,
        project_id="p",
        labels={"app": f"a{source.randrange(node_count)}"},
        storage_pool_ids=frozenset({"pool"}),
    )


def mixed_request(source: random.Random, node_count: int) -> PlacementRequest:
    """Make one that in half of all cases has rules, each sort as often as another."""
    request = plain_request(source, node_count)
    app = request.labels
    policies = [
        PlacementPolicy(vm_rules=[_apart(app)]),
        PlacementPolicy(spread_rules=[SpreadRule(topology_key="zone", labels=app, max_skew=2)]),
        PlacementPolicy(
            vm_rules=[VmAffinityRule(kind=VmAffinityRule.TOGETHER, labels=app, topology_key="rack", weight=20)]
        ),
        PlacementPolicy(
            node_rules=[NodeLabelRule(key="zone", operator=NodeLabelRule.IN, values=["z0", "z1"])],
            tolerations=[Toleration(key="gpu")],
        ),
        PlacementPolicy(
            required_labels={"zone": "z1"}, preferred_nodes=[f"n{source.randrange(node_count):05}" for _ in range(3)]
        ),
    ]
    return replace(request, policy=source.choice(policies)) if source.random() < 0.5 else request


def _size(vcpus: int, memory_mib: int) -> PlacementRequest:
    return PlacementRequest(vcpus, memory_mib * _MIB)


def _apart(app: Mapping[str, str]) -> VmAffinityRule:
    return VmAffinityRule(kind=VmAffinityRule.APART, labels=app)


Make = Callable[[random.Random, int], PlacementRequest]


def _requests(make: Make, node_count: int) -> Iterator[PlacementRequest]:
    source = random.Random(_SEED)  # noqa: S311 - requests to measure with
    number = 0
    while True:
        number += 1
        yield replace(make(source, node_count), vm_id=f"new-{number}")


def _decide_alone(view: ClusterView, requests: Iterator[PlacementRequest], count: int) -> float:
    """Decide and place one after the other; return the seconds of one. The view is the same afterwards."""
    batch = [next(requests) for _ in range(count)]
    config, placed = SchedulerConfig(), []
    began_s = time.thread_time()
    for request in batch:
        outcome = decide(view, request, config)
        if isinstance(outcome, Placement):
            view.place(PlacedVm(outcome.node_id, request))
            placed.append(request.vm_id)
    taken_s = (time.thread_time() - began_s) / count
    for vm_id in placed:
        view.unplace(vm_id)
    return taken_s


def _decide_plainly(view: ClusterView, requests: Iterator[PlacementRequest], count: int) -> float:
    batch = [next(requests) for _ in range(count)]
    candidates, config = view.candidates, SchedulerConfig()
    began_s = time.thread_time()
    for request in batch:
        decide_among(candidates, view.neighbours.with_sight(request), config)
    return (time.thread_time() - began_s) / count


def _update_us(view: ClusterView) -> Mapping[str, float]:
    """Time one change of each sort, in the middle of decisions."""
    node = view.candidates[0]
    count = 500
    vms = [
        PlacedVm(node.id, replace(_size(1, 64), vm_id=f"update-{number}", labels={"app": "a1"}))
        for number in range(count)
    ]
    times: dict[str, float] = {}
    times["place"] = _each_us(count, lambda number: view.place(vms[number]))
    times["unplace"] = _each_us(count, lambda number: view.unplace(vms[number].id))
    cordoned = replace(node, schedulable=not node.schedulable)
    times["node changed"] = _each_us(count, lambda number: view.upsert_node(cordoned if number % 2 else node))

    def go_and_come_back(_number: int) -> None:
        view.remove_node(node.id)
        view.upsert_node(node)

    times["node gone and back"] = _each_us(count, go_and_come_back)
    return times


def _each_us(count: int, change: Callable[[int], object]) -> float:
    began_s = time.thread_time()
    for number in range(count):
        change(number)
    return 1e6 * (time.thread_time() - began_s) / count
