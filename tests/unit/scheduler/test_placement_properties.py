"""What holds for every cluster and every batch of requests."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.node import Phase
from controlplane.scheduler.filters import FILTERS
from controlplane.scheduler.plan import Placement, SchedulerConfig, plan
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, Toleration
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from tests.unit.scheduler.placement_builders import MIB, a_candidate

NODE_IDS = [f"n{number}" for number in range(6)]
VM_IDS = ["a", "b", "c", "d", "e", "f"]
ZONES = ["north", "south"]
POOLS = ["fast", "slow"]

names = st.lists(st.sampled_from([*NODE_IDS, *(f"host-{node_id}" for node_id in NODE_IDS)]), max_size=2)
vms = st.lists(st.sampled_from(VM_IDS), max_size=2)
taints = st.builds(
    Taint, key=st.sampled_from(["gpu", "old"]), value=st.just("yes"), effect=st.sampled_from(Taint.Effect.values())
)
pools = st.lists(st.sampled_from(POOLS), max_size=2)


def seldom(strategy: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    """Mostly nothing, so that enough requests are placed for the properties to say something."""
    return st.one_of(st.just([]), st.just([]), st.just([]), strategy)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    return [
        a_candidate(
            node_id,
            vcpus=draw(st.integers(0, 8)),
            memory_mib=draw(st.integers(0, 8)),
            used_vcpus=draw(st.integers(0, 4)),
            used_memory_mib=draw(st.integers(0, 4)),
            phase=draw(st.sampled_from([Phase.READY] * 4 + [Phase.OFFLINE, Phase.MAINTENANCE])),
            schedulable=draw(st.integers(0, 5)) > 0,
            is_compute=draw(st.integers(0, 5)) > 0,
            taints=draw(st.one_of(st.just([]), st.lists(taints, max_size=2))),
            labels={"zone": draw(st.sampled_from(ZONES))},
            pools=draw(pools),
        )
        for node_id in draw(st.lists(st.sampled_from(NODE_IDS), unique=True))
    ]


@st.composite
def requests(draw: st.DrawFn) -> PlacementRequest:
    labels = draw(st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({"zone": st.sampled_from(ZONES)})))
    return PlacementRequest(
        vcpus=draw(st.integers(0, 4)),
        memory_bytes=draw(st.integers(0, 4 * MIB)),
        policy=PlacementPolicy(
            preferred_nodes=draw(names),
            required_nodes=draw(seldom(names)),
            excluded_nodes=draw(seldom(names)),
            required_labels=labels,
            affinity_vms=draw(seldom(vms)),
            anti_affinity_vms=draw(seldom(vms)),
        ),
        storage_pool_ids=frozenset(draw(seldom(pools))),
        tolerations=tuple(draw(st.lists(st.just(Toleration("gpu")), max_size=1))),
        pinned_node_id="".join(draw(seldom(st.sampled_from(NODE_IDS).map(lambda node_id: [node_id])))),
        vm_id=draw(st.sampled_from(["", *VM_IDS])),
    )


@st.composite
def tight_clusters(draw: st.DrawFn) -> list[Candidate]:
    """Few small willing nodes, soon full: what random clusters seldom are."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3))
    return [a_candidate(f"n{number}", vcpus=cpu, memory_mib=mib) for number, (cpu, mib) in enumerate(sizes)]


@st.composite
def quarrels(draw: st.DrawFn) -> list[PlacementRequest]:
    """Small VMs, every one of which wants to be away from some of those before it."""
    return [
        PlacementRequest(
            vcpus=draw(st.integers(1, 2)),
            memory_bytes=draw(st.integers(1, 2)) * MIB,
            policy=PlacementPolicy(anti_affinity_vms=draw(st.lists(st.sampled_from(VM_IDS[:number]), max_size=2))),
            vm_id=VM_IDS[number],
        )
        for number in range(1, len(VM_IDS))
    ]


batches = st.lists(requests(), max_size=6)
clusters_and_batches = st.one_of(
    st.tuples(candidates(), batches),
    st.tuples(tight_clusters(), quarrels()),
)
configs = st.builds(SchedulerConfig, st.sampled_from(Strategy), st.integers(1, 8))


@given(clusters_and_batches, configs)
def test_plan_any_batch_never_exceeds_a_capacity(
    case: tuple[list[Candidate], list[PlacementRequest]], config: SchedulerConfig
) -> None:
    nodes, batch = case
    vcpus = {node.id: node.allocated.vcpus for node in nodes}
    memory_bytes = {node.id: node.allocated.memory_bytes for node in nodes}
    by_id = {node.id: node for node in nodes}

    for placement in plan(nodes, batch, config).placements:
        vcpus[placement.node_id] += placement.request.vcpus
        memory_bytes[placement.node_id] += placement.request.memory_bytes
        assert vcpus[placement.node_id] <= by_id[placement.node_id].capacity.vcpus
        assert memory_bytes[placement.node_id] <= by_id[placement.node_id].capacity.memory_bytes


@given(candidates(), batches, configs)
def test_plan_any_batch_ranks_only_nodes_every_filter_lets_through(
    nodes: list[Candidate], batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    current = {node.id: node for node in nodes}

    for placement in plan(nodes, batch, config).placements:
        request = placement.request
        for ranked in placement.ranked:
            for entry in FILTERS:
                if entry.concerns(request):
                    assert entry.check(current[ranked.node_id], request) is None
        current[placement.node_id] = current[placement.node_id].after(request)


@given(clusters_and_batches, configs, st.randoms(use_true_random=False))
def test_plan_any_order_of_nodes_gives_the_same_plan(
    case: tuple[list[Candidate], list[PlacementRequest]], config: SchedulerConfig, random: Random
) -> None:
    nodes, batch = case
    shuffled = sorted(nodes, key=lambda _: random.random())

    assert plan(shuffled, batch, config) == plan(nodes, batch, config)


@given(candidates(), batches, configs)
def test_plan_any_unplaced_request_has_one_reason_for_every_node(
    nodes: list[Candidate], batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    decided = plan(nodes, batch, config)

    assert len(decided.outcomes) == len(batch)
    for unplaced in decided.unplaced:
        assert sorted(reason.node_id for reason in unplaced.reasons) == sorted(node.id for node in nodes)
        assert all(reason.rejections for reason in unplaced.reasons)
        assert unplaced.summary.startswith("no node fits: ")


@given(candidates(), batches, configs)
def test_plan_any_ranking_is_by_points_then_id_and_points_add_up(
    nodes: list[Candidate], batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    for placement in plan(nodes, batch, config).placements:
        keys = [(-ranked.score, ranked.node_id) for ranked in placement.ranked]
        assert keys == sorted(keys)
        assert 1 <= len(placement.ranked) <= config.max_ranked_count
        for ranked in placement.ranked:
            assert ranked.score == sum(part.points for part in ranked.parts)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=6),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_spread_equal_nodes_never_picks_one_more_loaded_in_both(
    loads: list[tuple[int, int]], vcpus: int, memory_mib: int
) -> None:
    nodes = [
        a_candidate(f"n{number}", memory_mib=8, used_vcpus=cpu, used_memory_mib=memory)
        for number, (cpu, memory) in enumerate(loads)
    ]
    request = PlacementRequest(vcpus, memory_mib * MIB)

    for placement in plan(nodes, [request]).placements:
        chosen = next(node for node in nodes if node.id == placement.node_id).allocated
        for node in nodes:
            is_freer = node.allocated.vcpus < chosen.vcpus and node.allocated.memory_bytes < chosen.memory_bytes
            assert not is_freer, f"{node.id} is freer in both than {placement.node_id}"


@given(clusters_and_batches, configs)
def test_plan_any_batch_keeps_hostile_vms_apart(
    case: tuple[list[Candidate], list[PlacementRequest]], config: SchedulerConfig
) -> None:
    nodes, batch = case
    nodes_of_vm: dict[str, str] = defaultdict(str)
    for outcome in plan(nodes, batch, config).outcomes:
        if not isinstance(outcome, Placement):
            continue
        for enemy in outcome.request.policy.anti_affinity_vms:
            assert outcome.node_id != nodes_of_vm[enemy]
        if outcome.request.vm_id:
            nodes_of_vm[outcome.request.vm_id] = outcome.node_id
