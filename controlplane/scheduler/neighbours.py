"""Where VMs are and what their rules say: asked for one request, answered without looking at every VM.

VMs are indexed by their labels, rules that keep others away by the labels or the id that they mean. Groups of VMs that
rules ask about are counted by node from the first question on. So adding a VM costs what its labels and rules cost,
and a question costs what the places of its group cost.

What rules mean here. *Together*, by labels: a place where at least one such VM is; where there is none anywhere and the
VM itself has those labels it is the first of its company, and may go anywhere. By ids: the place where all the named
VMs are, of those that are placed at all. *Apart*: none of the places where such a VM is; and as a VM's own rules keep
it away from others, they keep later ones away from it. *Spread*: the emptiest place is sought among the places of all
known nodes, whether they can take a VM or not. So a rule never gets easier to keep because a node went away.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from controlplane.domain.placement import StandingVm
from controlplane.scheduler.inventory import Needs, needs_of
from controlplane.scheduler.places import Places
from controlplane.scheduler.rejection import listed
from controlplane.scheduler.sight import (
    MAX_SPREAD_MULTIPLE,
    NOTHING_IN_SIGHT,
    ONE_NODE,
    SOFT_SPREAD,
    SOFT_VM_RULES,
    Even,
    Far,
    Liking,
    Near,
    Sight,
)
from controlplane.scheduler.snapshot import PlacementRequest
from limiquantix.compute.v1.vm_pb2 import SpreadRule, VmAffinityRule

Selector = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PlacedVm:
    """A VM on a node. The request has its id, project, labels, rules and size."""

    node_id: str
    request: PlacementRequest

    @property
    def id(self) -> str:
        """Id of the VM."""
        return self.request.vm_id


def placed_vm_of(vm: StandingVm) -> PlacedVm:
    """Reduce a stored VM to what placement reads."""
    return PlacedVm(
        vm.node_id,
        PlacementRequest(
            vcpus=vm.vcpus,
            memory_bytes=vm.memory_bytes,
            policy=vm.spec.placement,
            vm_id=vm.id,
            labels=vm.labels,
            project_id=vm.project_id,
            needs=needs_of(vm.spec),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Repulsion:
    """A rule that keeps VMs away: those of the project with these labels, or one by id, out of the owner's place."""

    project_id: str
    selector: Selector
    vm_id: str
    topology_key: str

    def means(self, request: PlacementRequest) -> bool:
        """Whether the VM to be placed is one of those."""
        if self.vm_id:
            return self.vm_id == request.vm_id
        return self.project_id == request.project_id and _matches(self.selector, request.labels)


class Neighbours:
    """The VMs that a view knows, by what rules ask about."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.vms: dict[str, PlacedVm] = {}
        self._on_node: defaultdict[str, dict[str, PlacedVm]] = defaultdict(dict)
        self._by_label: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._groups: dict[tuple[str, Selector], Counter[str]] = {}
        self._groups_by_label: defaultdict[tuple[str, str, str], list[Selector]] = defaultdict(list)
        self._repulsions: dict[_Repulsion, Counter[str]] = {}
        self._repulsions_by_label: defaultdict[tuple[str, str, str], dict[_Repulsion, None]] = defaultdict(dict)
        self._repulsions_by_id: defaultdict[str, dict[_Repulsion, None]] = defaultdict(dict)

    def on_node(self, node_id: str) -> Mapping[str, PlacedVm]:
        """VMs of a node by id, in the order in which they came."""
        return self._on_node.get(node_id, {})

    def needs_on(self, node_id: str) -> Mapping[str, Needs]:
        """Needs of a node's VMs by id."""
        return {vm_id: vm.request.needs for vm_id, vm in self.on_node(node_id).items()}

    def add(self, vm: PlacedVm) -> None:
        """Learn of a VM. Its id must be new."""
        self.vms[vm.id] = vm
        self._on_node[vm.node_id][vm.id] = vm
        project_id = vm.request.project_id
        for pair in vm.request.labels.items():
            self._by_label[project_id, *pair].add(vm.id)
        self._count(vm, 1)

    def remove(self, vm_id: str) -> PlacedVm:
        """Forget a VM.

        Raises:
            KeyError: there is no such VM.
        """
        vm = self.vms.pop(vm_id)
        on_node = self._on_node[vm.node_id]
        del on_node[vm_id]
        if not on_node:
            del self._on_node[vm.node_id]
        for pair in vm.request.labels.items():
            key = (vm.request.project_id, *pair)
            self._by_label[key].discard(vm_id)
            if not self._by_label[key]:
                del self._by_label[key]
        self._count(vm, -1)
        return vm

    def _count(self, vm: PlacedVm, step: int) -> None:
        request = vm.request
        for pair in request.labels.items():
            for selector in self._groups_by_label.get((request.project_id, *pair), ()):
                if _matches(selector, request.labels):
                    _bump(self._groups[request.project_id, selector], vm.node_id, step)
        if request.has_policy:
            for repulsion in _repulsions_of(request):
                self._count_repulsion(repulsion, vm.node_id, step)

    def _count_repulsion(self, repulsion: _Repulsion, node_id: str, step: int) -> None:
        if repulsion.vm_id:
            index = self._repulsions_by_id[repulsion.vm_id]
        else:
            index = self._repulsions_by_label[repulsion.project_id, *repulsion.selector[0]]
        index[repulsion] = None
        counts = self._repulsions.setdefault(repulsion, Counter())
        _bump(counts, node_id, step)
        if not counts:
            del self._repulsions[repulsion], index[repulsion]

    # -- questions

    def with_sight(self, request: PlacementRequest) -> PlacementRequest:
        """Return the request knowing what other VMs mean for it; the same one if nothing."""
        if request.sight is not None:
            request = request.seeing(None)
        if not self.vms and not request.has_policy:
            return request
        far = list(self._kept_off(request)) if self._repulsions else []
        if not request.has_policy:
            return request.seeing(Sight(far=tuple(far))) if far else request
        policy = request.policy
        beside, away = self._nodes_of(policy.affinity_vms), self._nodes_of(policy.anti_affinity_vms)
        near, likings, even = [], [], []
        for rule in policy.vm_rules:
            if rule.weight:
                likings.append(self._liking(rule, request))
            elif rule.kind == VmAffinityRule.TOGETHER:
                near.append(self._near(rule, request))
            else:
                far.append(self._far(rule, request))
        for spread_rule in policy.spread_rules:
            found = self._even(spread_rule, request)
            if found is not None and spread_rule.weight:
                likings.append(_evenness(found, spread_rule.weight))
            elif found is not None:
                even.append(found)
        sight = Sight(tuple(near), tuple(far), tuple(even), tuple(likings))
        if sight == NOTHING_IN_SIGHT and not beside and not away:
            return request
        if beside or away:
            beside, away = request.affinity_nodes | beside, request.anti_affinity_nodes | away
            request = replace(request, affinity_nodes=beside, anti_affinity_nodes=away)
        return request.seeing(None if sight == NOTHING_IN_SIGHT else sight)

    def _kept_off(self, request: PlacementRequest) -> Iterator[Far]:
        """Find rules of other VMs that keep this one away from them."""
        found: dict[_Repulsion, None] = dict(self._repulsions_by_id.get(request.vm_id, {})) if request.vm_id else {}
        for pair in request.labels.items():
            found |= self._repulsions_by_label.get((request.project_id, *pair), {})
        own = self.vms.get(request.vm_id)
        own_rules = set(_repulsions_of(own.request)) if own is not None and own.request.has_policy else set()
        ordered = sorted(found, key=lambda each: (each.topology_key, each.vm_id, each.selector))
        for repulsion in ordered:
            if not repulsion.means(request):
                continue
            counts = self._repulsions[repulsion]
            if own is not None and repulsion in own_rules:
                counts = _less(counts, own.node_id)
            if places := self._places_with(counts, repulsion.topology_key):
                yield Far(repulsion.topology_key, frozenset(places), "VMs whose rules keep it away")

    def _near(self, rule: VmAffinityRule, request: PlacementRequest) -> Near:
        key = rule.topology_key
        wanted: frozenset[str] | None = None
        if rule.vm_ids:
            named = (vm_id for vm_id in rule.vm_ids if vm_id in self.vms and vm_id != request.vm_id)
            at = {self._places.place_of(self.vms[vm_id].node_id, key) for vm_id in named}
            wanted = frozenset(place for place in at if place is not None) if len(at) == 1 else frozenset()
        if rule.labels:
            selector = _selector_of(rule.labels)
            places = frozenset(self._places_with(self._group(selector, request), key))
            is_first = not places and not self._group(selector, request) and _matches(selector, request.labels)
            if not is_first:
                wanted = places if wanted is None else wanted & places
        return Near(key, wanted, _who(rule))

    def _far(self, rule: VmAffinityRule, request: PlacementRequest) -> Far:
        counts = self._meant(rule, request)
        return Far(rule.topology_key, frozenset(self._places_with(counts, rule.topology_key)), _who(rule))

    def _liking(self, rule: VmAffinityRule, request: PlacementRequest) -> Liking:
        sign = 1 if rule.kind == VmAffinityRule.TOGETHER else -1
        places = self._places_with(self._meant(rule, request), rule.topology_key)
        return Liking(SOFT_VM_RULES, rule.topology_key, {place: float(sign * rule.weight) for place in places})

    def _even(self, rule: SpreadRule, request: PlacementRequest) -> Even | None:
        """Work a spread rule out; None if it counts nothing, since neither it nor the VM has labels."""
        selector = _selector_of(rule.labels or request.labels)
        if not selector:
            return None
        counts = self._places_with(self._group(selector, request), rule.topology_key)
        known = self._places.members(rule.topology_key)
        floor = min((counts.get(place, 0) for place in known), default=0) if len(counts) >= len(known) else 0
        who = "VMs with " + _labels_text(selector)
        own = int(_matches(selector, request.labels))
        return Even(rule.topology_key, counts, floor, own, rule.max_skew or 1, who)

    def _meant(self, rule: VmAffinityRule, request: PlacementRequest) -> Counter[str]:
        """Count by node the VMs that a rule means by labels or ids; one meant by both may count twice."""
        counts = Counter(self._group(_selector_of(rule.labels), request)) if rule.labels else Counter[str]()
        named = (self.vms[vm_id] for vm_id in rule.vm_ids if vm_id in self.vms and vm_id != request.vm_id)
        counts.update(vm.node_id for vm in named)
        return counts

    def _group(self, selector: Selector, request: PlacementRequest) -> Counter[str]:
        """Count by node the project's VMs with these labels, the VM itself aside."""
        key = (request.project_id, selector)
        counts = self._groups.get(key)
        if counts is None:
            members = [self._by_label.get((request.project_id, *pair), set()) for pair in selector]
            counts = Counter(self.vms[vm_id].node_id for vm_id in set.intersection(*members))
            self._groups[key] = counts
            self._groups_by_label[request.project_id, *selector[0]].append(selector)
        own = self.vms.get(request.vm_id)
        if own is not None and own.request.project_id == request.project_id and _matches(selector, own.request.labels):
            return _less(counts, own.node_id)
        return counts

    def _nodes_of(self, vm_ids: Iterable[str]) -> frozenset[str]:
        return frozenset(self.vms[vm_id].node_id for vm_id in vm_ids if vm_id in self.vms)

    def _places_with(self, counts: Mapping[str, int], topology_key: str) -> Mapping[str, int]:
        """Turn counts by node into counts by place; nodes that are in none are left out."""
        if topology_key == ONE_NODE:
            return dict(counts)
        found: dict[str, int] = {}
        for node_id, count in counts.items():
            place = self._places.place_of(node_id, topology_key)
            if place is not None:
                found[place] = found.get(place, 0) + count
        return found


def _repulsions_of(request: PlacementRequest) -> Iterator[_Repulsion]:
    """List what a VM's own rules keep away from it."""
    policy = request.policy
    for vm_id in policy.anti_affinity_vms:
        yield _Repulsion(request.project_id, (), vm_id, ONE_NODE)
    for rule in policy.vm_rules:
        if rule.weight or rule.kind != VmAffinityRule.APART:
            continue
        for vm_id in rule.vm_ids:
            yield _Repulsion(request.project_id, (), vm_id, rule.topology_key)
        if rule.labels:
            yield _Repulsion(request.project_id, _selector_of(rule.labels), "", rule.topology_key)


def _evenness(even: Even, weight: int) -> Liking:
    """Turn a spread rule into points: its weight is lost for every VM too many."""
    points = {
        place: -float(weight * min(even.excess(place), MAX_SPREAD_MULTIPLE))
        for place in even.counts
        if even.excess(place) > 0
    }
    return Liking(SOFT_SPREAD, even.topology_key, points)


def _selector_of(labels: Mapping[str, str]) -> Selector:
    return tuple(sorted(labels.items()))


def _matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector)


def _bump(counts: Counter[str], node_id: str, step: int) -> None:
    counts[node_id] += step
    if not counts[node_id]:
        del counts[node_id]


def _less(counts: Counter[str], node_id: str) -> Counter[str]:
    fewer = Counter(counts)
    _bump(fewer, node_id, -1)
    return fewer


def _who(rule: VmAffinityRule) -> str:
    named = f"VMs {listed(rule.vm_ids)}" if rule.vm_ids else ""
    labelled = f"VMs with {_labels_text(_selector_of(rule.labels))}" if rule.labels else ""
    return " and ".join(text for text in (named, labelled) if text)


def _labels_text(selector: Selector) -> str:
    return listed([f"{key}={value}" for key, value in selector])
