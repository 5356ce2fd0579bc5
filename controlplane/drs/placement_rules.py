"""The rules of placement, as a balancing plan keeps them: every filter of the scheduler, and what VMs want of others.

What depends on the VM and the node alone is asked of the scheduler, once a pair. What depends on where other VMs
are changes with every move, and is looked up here. Where a rule could be kept in a way that needs more than
this move (a company that would have to move together), the VM stays: balancing is never worth a broken rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from controlplane.domain.node import Capacity
from controlplane.domain.placement_rules import RuledVm
from controlplane.scheduler.plan import Placement, SchedulerConfig, plan
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, SpreadRule, VmAffinityRule

_ROOMY: Final = Capacity(2**31, 2**62)
"""Room is the plan's own business: it knows what its earlier moves left."""


@dataclass(frozen=True, slots=True)
class MovableVm:
    """A placed VM with its rules, and the request by which the scheduler would place it."""

    vm: RuledVm
    node_id: str
    request: PlacementRequest


@dataclass(frozen=True, slots=True)
class _Tie:
    """Something that must hold between a VM and others, which are near or far in places that a label makes."""

    kind: int
    topology_key: str
    others: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Spread:
    """VMs of which no place has many more than another."""

    topology_key: str
    counted: frozenset[str]


@dataclass(slots=True)
class PlacementRules:
    """Answers what `controlplane.drs.rules.Rules` asks.

    `reaches` tells whether a VM's disks, cards and devices can follow it from its node to another.
    """

    candidates: Mapping[str, Candidate]
    vms: Mapping[str, MovableVm]
    reaches: Callable[[str, str], bool] = lambda _vm_id, _node_id: True
    _place: dict[str, str] = field(init=False)
    _ties: dict[str, list[_Tie]] = field(default_factory=dict)
    _spreads: dict[str, list[_Spread]] = field(default_factory=dict)
    _selected: dict[tuple[str, tuple[tuple[str, str], ...]], frozenset[str]] = field(default_factory=dict)
    _by_label: dict[tuple[str, str, str], set[str]] = field(default_factory=dict)
    _static: dict[tuple[str, str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place = {vm_id: each.node_id for vm_id, each in self.vms.items()}
        for vm_id, each in self.vms.items():
            for key, value in each.vm.labels.items():
                self._by_label.setdefault((each.vm.project_id, key, value), set()).add(vm_id)
        for each in self.vms.values():
            self._note(each.vm)

    def allows(self, vm_id: str, target_node_id: str) -> bool:
        """Whether the VM may run there, and all others may go on where they are."""
        pair = (vm_id, target_node_id)
        allowed = self._static.get(pair)
        if allowed is None:
            allowed = self._static[pair] = self._suits(vm_id, target_node_id)
        return (
            allowed
            and all(self._keeps(tie, vm_id, target_node_id) for tie in self._ties.get(vm_id, ()))
            and all(self._evens(spread, vm_id, target_node_id) for spread in self._spreads.get(vm_id, ()))
        )

    def moved(self, vm_id: str, target_node_id: str) -> None:
        """Note that a VM is elsewhere now."""
        self._place[vm_id] = target_node_id

    # -- the VM and the node alone

    def _suits(self, vm_id: str, node_id: str) -> bool:
        each, candidate = self.vms[vm_id], self.candidates.get(node_id)
        if candidate is None or not self.reaches(vm_id, node_id) or self._is_disliked(each, candidate):
            return False
        roomy = replace(candidate, capacity=_ROOMY, allocated=Capacity(0, 0))
        outcome = plan([roomy], [_alone(each.request)], SchedulerConfig()).outcomes[0]
        return isinstance(outcome, Placement)

    def _is_disliked(self, each: MovableVm, candidate: Candidate) -> bool:
        """Whether the VM would leave a node that it prefers, or come to one that is better left alone."""
        preferred = each.request.preferred_nodes
        here = self.candidates.get(each.node_id)
        leaves = here is not None and bool(preferred & {here.id, here.hostname})
        if leaves and not preferred & {candidate.id, candidate.hostname}:
            return True
        return any(
            taint.effect == Taint.PREFER_NO_SCHEDULE and not each.request.tolerates(taint) for taint in candidate.taints
        )

    # -- what depends on other VMs

    def _note(self, owner: RuledVm) -> None:
        """Index what must hold, at the VM that has the rule and at those that it means."""
        policy = owner.policy
        named: Sequence[tuple[int, Iterable[str]]] = (
            (VmAffinityRule.TOGETHER, policy.affinity_vms),
            (VmAffinityRule.APART, policy.anti_affinity_vms),
        )
        for kind, ids in named:
            self._tie(owner.id, kind, "", frozenset(ids))
        for rule in policy.vm_rules:
            if not rule.weight:
                meant = frozenset(rule.vm_ids) | self._matching(owner.project_id, rule.labels)
                self._tie(owner.id, rule.kind, rule.topology_key, meant)
        for spread in policy.spread_rules:
            if not spread.weight:
                self._spread(owner, spread)

    def _tie(self, owner_id: str, kind: int, topology_key: str, meant: frozenset[str]) -> None:
        others = (meant - {owner_id}) & self.vms.keys()
        if others:
            self._ties.setdefault(owner_id, []).append(_Tie(kind, topology_key, frozenset(others)))
            back = _Tie(kind, topology_key, frozenset({owner_id}))
            for other in others:
                self._ties.setdefault(other, []).append(back)

    def _spread(self, owner: RuledVm, rule: SpreadRule) -> None:
        counted = self._matching(owner.project_id, rule.labels or owner.labels) | {owner.id}
        spread = _Spread(rule.topology_key, counted)
        for vm_id in counted:
            known = self._spreads.setdefault(vm_id, [])
            if spread not in known:
                known.append(spread)

    def _matching(self, project_id: str, labels: Mapping[str, str]) -> frozenset[str]:
        """Ids of the project's VMs that have all of these labels; none for no labels."""
        key = (project_id, tuple(sorted(labels.items())))
        if key not in self._selected:
            sets = [self._by_label.get((project_id, name, value), set()) for name, value in labels.items()]
            self._selected[key] = frozenset(set.intersection(*sets)) if sets else frozenset()
        return self._selected[key]

    def _keeps(self, tie: _Tie, vm_id: str, target: str) -> bool:
        there = self._domain(target, tie.topology_key)
        if tie.kind == VmAffinityRule.TOGETHER:
            return there == self._domain(self._place[vm_id], tie.topology_key)
        return there is None or all(self._domain(self._place[other], tie.topology_key) != there for other in tie.others)

    def _evens(self, spread: _Spread, vm_id: str, target: str) -> bool:
        """Whether the move leaves the VMs as evenly spread as they are: within a place, or to one with fewer."""
        here = self._domain(self._place[vm_id], spread.topology_key)
        there = self._domain(target, spread.topology_key)
        if here == there:
            return True
        if there is None:
            return False
        counts = {here: 0, there: 0}
        for other in spread.counted:
            domain = self._domain(self._place[other], spread.topology_key)
            if domain in counts:
                counts[domain] += 1
        return here is None or counts[there] + 1 <= counts[here]

    def _domain(self, node_id: str, topology_key: str) -> str | None:
        """The place that a node is in; None if it has no such label."""
        if not topology_key:
            return node_id
        candidate = self.candidates.get(node_id)
        return None if candidate is None else candidate.labels.get(topology_key)


def _alone(request: PlacementRequest) -> PlacementRequest:
    """Return the request without what it says about other VMs."""
    policy = PlacementPolicy()
    policy.CopyFrom(request.policy)
    for name in ("affinity_vms", "anti_affinity_vms", "vm_rules", "spread_rules"):
        policy.ClearField(name)
    return replace(request, policy=policy, affinity_nodes=frozenset(), anti_affinity_nodes=frozenset())
