"""Which of the nodes that may take a VM should: points, each with a name, added up.

A scorer is a function from a candidate and a request to points. The strategy gives 0 to 100 and is measured as the
node would be *after* taking the VM, else a small node looks as good as a large one. Adding a scorer is one function,
one line in `scorers_for` and one test.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.scheduler.filters_node import label_rule_holds
from controlplane.scheduler.sight import SOFT_SPREAD, SOFT_VM_RULES, points_of
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import Taint

FULL_POINTS = 100.0
PREFERRED_NODE_POINTS = 20.0
POOL_POINTS = 10.0
MAX_POOL_POINTS = 30.0
_GRAIN = 2.0**30
"""Points of strategies are multiples of 1/_GRAIN, and all others are whole: so sums of points are exact, whatever their
order, and columns of a view and single candidates give the same to the last bit."""
_PACKED = FULL_POINTS / 2 * _GRAIN
SOFT_TAINT_POINTS = -50.0
"""As much as a preferred node and its pools can gain together: no bonus outweighs a taint, only load does."""


class Strategy(enum.StrEnum):
    """What a cluster should look like; the values are those of the configuration."""

    SPREAD = "spread"
    """Load even over all nodes: a failed one takes little with it."""
    PACK = "pack"
    """Few nodes full, the others empty: room for large VMs, hosts that can sleep."""
    BALANCED = "balanced"
    """Half spread, half an even use of CPU and memory: neither is left over without the other."""


@dataclass(frozen=True, slots=True)
class ScorePart:
    """Some of a node's points and what they are for."""

    name: str
    points: float


Floats = NDArray[np.float64]
Score = Callable[[Candidate, PlacementRequest], float]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scoring function and the name of its points."""

    name: str
    score: Score


def spread(candidate: Candidate, request: PlacementRequest) -> float:
    """More points the less of CPU and memory would be claimed, both weighing the same."""
    return FULL_POINTS - pack(candidate, request)


def pack(candidate: Candidate, request: PlacementRequest) -> float:
    """More points the more of CPU and memory would be claimed, both weighing the same."""
    # As `_loads_after`, without a call: this is asked of every node.
    capacity, allocated = candidate.capacity, candidate.allocated
    cpu = (allocated.vcpus + request.vcpus) / capacity.vcpus if capacity.vcpus > 0 else 1.0
    there = capacity.memory_bytes
    memory = (allocated.memory_bytes + request.memory_bytes) / there if there > 0 else 1.0
    return round((cpu + memory) * _PACKED) / _GRAIN


def balanced(candidate: Candidate, request: PlacementRequest) -> float:
    """Points for what would remain, and as many for CPU and memory being claimed to the same degree."""
    cpu, memory = _loads_after(candidate, request)
    return FULL_POINTS - round((cpu + memory + 2.0 * abs(cpu - memory)) * (_PACKED / 2)) / _GRAIN


def column_of_points(strategy: Strategy, cpu_loads: Floats, memory_loads: Floats) -> Floats:
    """Give many nodes the points of a strategy, from the shares of vCPUs and memory that would be claimed.

    To the last bit what the functions above give a single one.
    """
    points: Floats = cpu_loads + memory_loads
    if strategy is Strategy.BALANCED:
        points += 2.0 * np.abs(cpu_loads - memory_loads)
        points *= _PACKED / 2
    else:
        points *= _PACKED
    np.rint(points, out=points)
    points /= _GRAIN
    return points if strategy is Strategy.PACK else np.subtract(FULL_POINTS, points, out=points)


def preferred_node(candidate: Candidate, request: PlacementRequest) -> float:
    """Reward a node that the policy prefers by id or host name."""
    preferred = request.preferred_nodes
    return PREFERRED_NODE_POINTS if candidate.id in preferred or candidate.hostname in preferred else 0.0


def storage_pools(candidate: Candidate, request: PlacementRequest) -> float:
    """Reward each of the VM's storage pools that the node reaches, up to a limit."""
    matching_count = len(request.storage_pool_ids & candidate.storage_pool_ids)
    return min(matching_count * POOL_POINTS, MAX_POOL_POINTS)


def soft_taints(candidate: Candidate, request: PlacementRequest) -> float:
    """Take points for each PREFER_NO_SCHEDULE taint that the request does not tolerate."""
    if not candidate.taints:
        return 0.0
    return SOFT_TAINT_POINTS * sum(
        taint.effect == Taint.PREFER_NO_SCHEDULE and not request.tolerates(taint) for taint in candidate.taints
    )


def node_rules(candidate: Candidate, request: PlacementRequest) -> float:
    """Give the weight of each rule about labels that is only preferred and that the node keeps."""
    rules = request.policy.node_rules
    return float(sum(rule.weight for rule in rules if rule.weight and label_rule_holds(rule, candidate.labels)))


def vm_rules(candidate: Candidate, request: PlacementRequest) -> float:
    """Give or take the weight of each rule about other VMs that is only preferred, where such VMs are."""
    likings = request.sight.likings if request.sight else ()
    return points_of(likings, SOFT_VM_RULES, candidate.id, candidate.labels)


def spread_rules(candidate: Candidate, request: PlacementRequest) -> float:
    """Take the weight of each spread rule that is only preferred, for every VM too many."""
    likings = request.sight.likings if request.sight else ()
    return points_of(likings, SOFT_SPREAD, candidate.id, candidate.labels)


STRATEGIES: Mapping[Strategy, Score] = {
    Strategy.SPREAD: spread,
    Strategy.PACK: pack,
    Strategy.BALANCED: balanced,
}


def scorers_for(strategy: Strategy, request: PlacementRequest) -> tuple[Scorer, ...]:
    """The scorers that can give points to this request's candidates, strategy first."""
    scorers = [Scorer(strategy.value, STRATEGIES[strategy]), Scorer("soft taints", soft_taints)]
    if request.preferred_nodes:
        scorers.append(Scorer("preferred node", preferred_node))
    if request.storage_pool_ids:
        scorers.append(Scorer("storage pools", storage_pools))
    if request.has_policy and request.policy.node_rules:
        scorers.append(Scorer("node rules", node_rules))
    if request.sight is not None and request.sight.likings:
        scorers += [Scorer(SOFT_VM_RULES, vm_rules), Scorer(SOFT_SPREAD, spread_rules)]
    return tuple(scorers)


def static_points(candidate: Candidate, request: PlacementRequest) -> float:
    """Add up the points that depend on the node and `PlacementRequest.static_key` alone."""
    points = soft_taints(candidate, request)
    if request.storage_pool_ids:
        points += storage_pools(candidate, request)
    if request.has_policy:
        points += node_rules(candidate, request)
    return points


def totals_of(
    candidates: Sequence[Candidate], request: PlacementRequest, scorers: tuple[Scorer, ...]
) -> Sequence[float]:
    """Each candidate's points in all, the sum of its parts; one scorer after the other, as that is the fastest."""
    columns = [[scorer.score(candidate, request) for candidate in candidates] for scorer in scorers]
    return [sum(points) for points in zip(*columns, strict=True)]


def parts_of(candidate: Candidate, request: PlacementRequest, scorers: tuple[Scorer, ...]) -> tuple[ScorePart, ...]:
    """The candidate's points by name; parts of 0 are left out, but for the strategy's."""
    points = [ScorePart(scorer.name, scorer.score(candidate, request)) for scorer in scorers]
    return (points[0], *(part for part in points[1:] if part.points != 0.0))


def _loads_after(candidate: Candidate, request: PlacementRequest) -> tuple[float, float]:
    """Claimed shares of vCPUs and memory once the request is there; a node without any counts as full."""
    capacity, allocated = candidate.capacity, candidate.allocated
    cpu = (allocated.vcpus + request.vcpus) / capacity.vcpus if capacity.vcpus > 0 else 1.0
    there = capacity.memory_bytes
    memory = (allocated.memory_bytes + request.memory_bytes) / there if there > 0 else 1.0
    return cpu, memory
