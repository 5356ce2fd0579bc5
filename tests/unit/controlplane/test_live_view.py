"""The view that lives on decides like one made anew, whatever was decided before."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.placement import StandingVm
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from controlplane.scheduler.decide import decide
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.snapshot import PlacementRequest, candidate_of, request_for
from controlplane.scheduler.view import ClusterView, placed_vm_of
from controlplane.services.live_view import LiveView
from controlplane.services.seen import SeenNode
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, PlacementPolicy, SpreadRule, VmAffinityRule, VmSpec
from tests.support.builders import make_id, make_node

APPS = ("a", "b")


def a_request(random: Random) -> PlacementRequest:
    rules = []
    if random.random() < 0.7:
        rules.append(
            VmAffinityRule(
                kind=random.choice([VmAffinityRule.APART, VmAffinityRule.TOGETHER]),
                labels={"app": random.choice(APPS)},
                topology_key=random.choice(["", "rack"]),
                weight=random.choice([0, 0, 50]),
            )
        )
    spread = [SpreadRule(topology_key="rack")] if random.random() < 0.3 else []
    spec = VmSpec(
        cpu=CpuConfig(cores=random.randint(1, 3)),
        memory=MemoryConfig(size_mib=128),
        placement=PlacementPolicy(vm_rules=rules, spread_rules=spread),
    )
    labels = {"app": random.choice(APPS)}
    return request_for(spec, vm_id=make_id(), node_of_vm={}, labels=labels, project_id=DEFAULT_PROJECT_ID)


def a_vm(random: Random, node_id: str) -> StandingVm:
    policy = PlacementPolicy()
    if random.random() < 0.3:
        policy.vm_rules.add(kind=VmAffinityRule.APART, labels={"app": random.choice(APPS)})
    labels = {"app": random.choice(APPS)}
    return StandingVm(make_id(), "v", DEFAULT_PROJECT_ID, node_id, 1, 1, 2**27, labels, VmSpec(placement=policy))


def said(outcome: Placement | Unplaced) -> object:
    if isinstance(outcome, Unplaced):
        return outcome.summary, outcome.per_node
    return [(ranked.node_id, round(ranked.score, 9)) for ranked in outcome.ranked]


def changed(random: Random, seen: dict[str, SeenNode]) -> dict[str, SeenNode]:
    """Let a moment pass: claims change, nodes come, go, fall silent and are labelled anew."""
    now = dict(seen)
    for node_id, each in list(now.items()):
        luck = random.random()
        if luck < 0.3:
            claims = Capacity(random.randint(0, 4), 0)
            now[node_id] = replace(each, candidate=each.candidate.with_allocated(claims))
        elif luck < 0.4:
            del now[node_id]
        elif luck < 0.5:
            phase = random.choice([Phase.READY, Phase.NOT_READY])
            now[node_id] = _seen(replace(each.node, phase=phase, labels={"rack": random.choice("123")}))
    while len(now) < 4 or random.random() < 0.3:
        node = make_node(vcpus=4, labels={"rack": random.choice("123")})
        now[node.id] = _seen(node)
    return now


def _seen(node: Node) -> SeenNode:
    return SeenNode(node, candidate_of(node))


@pytest.mark.parametrize("seed", range(30))
def test_live_view_decides_like_a_new_one(seed: int) -> None:
    random, live, config = Random(seed), LiveView(), SchedulerConfig()
    seen: dict[str, SeenNode] = {}
    for _ in range(25):
        seen = changed(random, seen)
        vms = [a_vm(random, random.choice(list(seen))) for _ in range(random.randint(0, 5))]
        request = a_request(random)
        fresh = ClusterView([each.candidate for each in seen.values()], [placed_vm_of(vm) for vm in vms])
        assert said(live.decide(seen, vms, request, config)) == said(decide(fresh, request, config))
