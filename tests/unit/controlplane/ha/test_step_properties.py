"""What holds of the decision whatever is seen: nothing is proven or started without a reason, nor too many fenced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.ha.model import (
    CutPower,
    Effect,
    EndFence,
    HaState,
    NodeHealth,
    NodeSeen,
    Observed,
    OpenAFence,
    OpenFence,
    PowerResult,
    ProofMethod,
    ProveFence,
    Restart,
    Shutdown,
    VmSeen,
    Wanted,
    WithdrawFence,
)
from controlplane.ha.step import step
from tests.support.ha_core import CONFIG, first_healthy, of_kind

NODE_IDS = [f"n{number}" for number in range(1, 6)]
BEGAN_S = 100.0

_fences = st.none() | st.builds(
    OpenFence,
    st.sampled_from(["f1", "f2"]),
    is_proven=st.booleans(),
    heard_by=st.sampled_from(["", "", "replica-2"]),
    is_by_operator=st.booleans(),
)


def _nodes(node_id: str) -> st.SearchStrategy[NodeSeen]:
    return st.builds(
        NodeSeen,
        st.just(node_id),
        heard_s=st.none() | st.floats(50, 300).map(lambda value: round(value, 1)),
        takes_part=st.booleans(),
        fence=_fences,
        lease_proves=st.booleans(),
        is_rebooted=st.booleans(),
        has_ended_vms=st.booleans(),
        has_power_agent=st.booleans(),
        power=st.sampled_from(PowerResult),
        shutdown=st.none() | st.sampled_from(Shutdown),
    )


_vms = st.builds(
    VmSeen,
    st.sampled_from(["v1", "v2", "v3", "v4"]),
    st.sampled_from(NODE_IDS),
    wanted=st.sampled_from(Wanted),
    is_busy=st.booleans(),
    proves_dead=st.booleans(),
    is_policy_restart=st.booleans(),
    priority=st.integers(0, 3),
    starts_after=st.lists(st.sampled_from(["v1", "v2", "v3", "v4"]), max_size=2),
)
_sights = st.builds(
    Observed,
    st.tuples(*[_nodes(node_id) for node_id in NODE_IDS]),
    st.lists(_vms, max_size=4, unique_by=lambda vm: vm.id),
    choose=st.just(first_healthy),
    is_armed=st.booleans(),
    obstacle=st.sampled_from(["", "", "etcd does not answer"]),
)
_histories = st.lists(st.tuples(st.floats(0, 30).map(lambda value: round(value, 1)), _sights), min_size=1, max_size=8)


@given(_histories)
@settings(max_examples=60, deadline=None)
def test_every_effect_has_a_reason_in_what_was_seen(history: Sequence[tuple[float, Observed]]) -> None:
    state, now_s, first_seen_s = HaState(BEGAN_S), BEGAN_S, dict[str, tuple[str, float]]()
    for gap_s, seen in history:
        now_s += gap_s
        state, effects = step(CONFIG, state, seen, now_s)
        nodes = {node.id: node for node in seen.nodes}
        for node in seen.nodes:
            if node.fence is None:
                first_seen_s.pop(node.id, None)
            elif not seen.obstacle and first_seen_s.get(node.id, ("", 0.0))[0] != node.fence.id:
                first_seen_s[node.id] = (node.fence.id, now_s)
        for effect in effects:
            _check(effect, seen, nodes, now_s, state)
        for proof in of_kind(effects, ProveFence):
            if proof.method is ProofMethod.LEASE_EXPIRED:
                assert first_seen_s[proof.node_id][0] == proof.fence_id
                assert now_s - first_seen_s[proof.node_id][1] >= CONFIG.proof_wait_s


def _check(effect: Effect, seen: Observed, nodes: dict[str, NodeSeen], now_s: float, state: HaState) -> None:
    match effect:
        case OpenAFence(node_id=node_id):
            node = nodes[node_id]
            assert seen.is_armed
            assert node.takes_part
            assert node.fence is None
            assert now_s - max(node.heard_s or BEGAN_S, BEGAN_S) >= CONFIG.suspect_after_s
        case ProveFence(node_id=node_id):
            _check_proof(effect, nodes[node_id])
        case CutPower(node_id=node_id) | WithdrawFence(node_id=node_id):
            assert not nodes[node_id].fence.is_proven  # type: ignore[union-attr]
        case EndFence(node_id=node_id):
            node = nodes[node_id]
            assert node.fence is not None
            assert node.fence.is_proven
            assert node.heard_s is not None
            assert now_s - node.heard_s < CONFIG.suspect_after_s
        case Restart():
            vm = next(vm for vm in seen.vms if vm.id == effect.vm_id)
            fence = nodes[vm.node_id].fence
            assert vm.proves_dead
            assert vm.wanted is Wanted.STARTED
            assert fence is not None
            assert fence.is_proven
            assert fence.id == effect.fence_id
            assert seen.is_armed
            assert state.nodes[effect.to_node_id].health is NodeHealth.HEALTHY
        case _:
            return
    assert not seen.obstacle


def _check_proof(proof: ProveFence, node: NodeSeen) -> None:
    assert node.fence is not None
    assert not node.fence.is_proven
    assert proof.fence_id == node.fence.id
    assert not node.fence.heard_by or node.fence.is_by_operator
    assert {
        ProofMethod.POWER_OFF: node.power is PowerResult.OFF,
        ProofMethod.LEASE_EXPIRED: node.lease_proves,
        ProofMethod.HOST_REBOOTED: node.is_rebooted,
        ProofMethod.HOST_REPORTED: node.has_ended_vms,
    }[proof.method]


@given(_histories)
@settings(max_examples=50, deadline=None)
def test_step_repeated_asks_for_the_same(history: Sequence[tuple[float, Observed]]) -> None:
    state, now_s = HaState(BEGAN_S), BEGAN_S
    for gap_s, seen in history:
        now_s += gap_s
        before = state
        state, effects = step(CONFIG, before, seen, now_s)
        assert step(CONFIG, before, seen, now_s) == (state, effects), "pure"
        _, again = step(CONFIG, state, seen, now_s)
        # Power whose controller failed is tried at intervals, which begin when it is asked for.
        assert [each for each in again if not isinstance(each, CutPower)] == [
            each for each in effects if not isinstance(each, CutPower)
        ]


@given(_sights, st.floats(0, 100_000))
@settings(max_examples=50, deadline=None)
def test_process_that_just_began_never_takes_silence_for_a_proof_or_a_failure(seen: Observed, began_s: float) -> None:
    _, effects = step(CONFIG, HaState(began_s), seen, began_s)
    assert not of_kind(effects, OpenAFence)
    assert all(proof.method is not ProofMethod.LEASE_EXPIRED for proof in of_kind(effects, ProveFence))


@dataclass
class Cluster:
    """Carries out what is decided: nodes fall silent and come back, fences are recorded."""

    count: int
    heard_s: dict[str, float] = field(default_factory=dict)
    fences: dict[str, OpenFence] = field(default_factory=dict)
    opened_count: int = 0

    def observed(self) -> Observed:
        return Observed(
            [
                NodeSeen(
                    f"n{number}", self.heard_s[f"n{number}"], fence=self.fences.get(f"n{number}"), lease_proves=True
                )
                for number in range(self.count)
            ]
        )

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case OpenAFence():
                    self.opened_count += 1
                    self.fences[effect.node_id] = OpenFence(f"f{self.opened_count}")
                case ProveFence():
                    self.fences[effect.node_id] = replace(self.fences[effect.node_id], is_proven=True)
                case WithdrawFence() | EndFence():
                    del self.fences[effect.node_id]


@given(st.integers(1, 12), st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_never_more_nodes_are_fenced_at_once_than_the_share_and_all_are_given_back(
    count: int, silences: Sequence[set[int]]
) -> None:
    cluster, state = Cluster(count, {f"n{number}": 0.0 for number in range(count)}), HaState(0.0)
    limit = max(1, math.floor(CONFIG.max_fencing_share * count + 1e-9))
    now_s = 0.0
    for silent in [*silences, set[int]()]:
        for _ in range(50):
            now_s += 0.5
            cluster.heard_s |= {f"n{number}": now_s for number in range(count) if number not in silent}
            state, effects = step(CONFIG, state, cluster.observed(), now_s)
            cluster.carry_out(effects)
            assert len(cluster.fences) <= limit
    assert cluster.fences == {}
    assert {node.health for node in state.nodes.values()} == {NodeHealth.HEALTHY}
