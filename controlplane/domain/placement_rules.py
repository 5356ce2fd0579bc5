"""Rules about where a VM may run that contradict each other, or cannot matter, found when they are made.

`violations_of` looks at one policy alone: what it finds could never be kept. `contradictions_of` also looks at the
rules of the VMs that a VM must run beside. `findings_of` tells what has no effect as the cluster is now: a label that
no node has, a VM that does not exist. That may change, so it is told and not refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, PlacementPolicy, SpreadRule, Toleration, VmAffinityRule
from limiquantix.errors import FieldViolation

ONE_HOST = ""
"""The topology key of rules whose place is a single host."""
MAX_TIED_VMS = 1000
"""VMs followed from one to the next by rules that tie them together; more are one company that no host can hold."""

_TOGETHER, _APART = VmAffinityRule.TOGETHER, VmAffinityRule.APART
_KIND_NAMES: Mapping[int, str] = {_TOGETHER: "TOGETHER", _APART: "APART"}

Selector = tuple[tuple[str, str], ...]
"""Labels that a VM must have, in order, so that equal selectors are equal keys."""


@dataclass(frozen=True, slots=True)
class RuledVm:
    """A VM as its rules and those of others see it; `project_id` bounds what labels select."""

    id: str
    name: str
    project_id: str
    labels: Mapping[str, str]
    policy: PlacementPolicy


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What rules could refer to.

    `node_names` are ids and host names, `node_labels` the values that each label has on some node, `vms_by_selector`
    how many other VMs of the project each selector of the policy matches, `vm_ids` those of the named VMs that exist.
    """

    node_names: frozenset[str] = frozenset()
    node_labels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    vms_by_selector: Mapping[Selector, int] = field(default_factory=dict)
    vm_ids: frozenset[str] = frozenset()


def selector_of(labels: Mapping[str, str]) -> Selector:
    """Write labels as a selector."""
    return tuple(sorted(labels.items()))


def selects(rule: VmAffinityRule, vm_id: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a rule of a VM of the same project means the VM with this id and these labels."""
    if vm_id and vm_id in rule.vm_ids:
        return True
    return bool(rule.labels) and all(labels.get(key) == value for key, value in rule.labels.items())


def named_vm_ids(policy: PlacementPolicy) -> frozenset[str]:
    """Ids of all VMs that a policy names."""
    ids = {*policy.affinity_vms, *policy.anti_affinity_vms}
    return frozenset(ids.union(*(rule.vm_ids for rule in policy.vm_rules)))


def vm_selectors(policy: PlacementPolicy, own_labels: Mapping[str, str]) -> frozenset[Selector]:
    """The selectors by which a policy means other VMs; a spread rule without one means VMs with all of this VM's."""
    found = {selector_of(rule.labels) for rule in policy.vm_rules if rule.labels}
    found |= {selector_of(rule.labels or own_labels) for rule in policy.spread_rules}
    return frozenset(selector for selector in found if selector)


def is_bound_to_others(policy: PlacementPolicy) -> bool:
    """Tell whether something that must hold depends on where other VMs are."""
    if policy.affinity_vms or policy.anti_affinity_vms:
        return True
    return any(not rule.weight for rule in policy.vm_rules) or any(not rule.weight for rule in policy.spread_rules)


def keeps_off_beyond_its_host(policy: PlacementPolicy) -> bool:
    """Tell whether a VM's rules keep others out of more than its own host, such as its whole rack."""
    return any(rule.kind == _APART and not rule.weight and rule.topology_key != ONE_HOST for rule in policy.vm_rules)


def must_be_near(policy: PlacementPolicy) -> tuple[frozenset[Selector], frozenset[str]]:
    """Give the selectors and the ids of the VMs near to which a VM must be, on one host or in one larger place."""
    targets = [tie.target for tie in _hard_ties(policy, "") if tie.kind == _TOGETHER]
    ids = frozenset(target for target in targets if isinstance(target, str))
    return frozenset(target for target in targets if not isinstance(target, str)), ids


# -- one policy alone


def violations_of(policy: PlacementPolicy, path: str, vm_id: str = "") -> list[FieldViolation]:
    """List what of a policy could never be kept, or says nothing.

    Args:
        path: how the caller names the policy in its request.
        vm_id: of the VM whose policy it is; "" while it has none.
    """
    return [
        *_node_names(policy, path),
        *_own_name(policy, path, vm_id),
        *_named_twice(policy, path),
        *_vm_rules(policy, path),
        *_node_rules(policy, path),
        *_tolerations(policy, path),
    ]


def _node_names(policy: PlacementPolicy, path: str) -> Iterator[FieldViolation]:
    required = set(policy.required_nodes)
    for index, name in enumerate(policy.excluded_nodes):
        if name in required:
            yield FieldViolation(f"{path}.excluded_nodes[{index}]", f"{name} is in required_nodes too; take one out")


def _own_name(policy: PlacementPolicy, path: str, vm_id: str) -> Iterator[FieldViolation]:
    message = "names the VM itself; take it out"
    for name in ("affinity_vms", "anti_affinity_vms"):
        for index, other in enumerate(getattr(policy, name)):
            if vm_id and other == vm_id:
                yield FieldViolation(f"{path}.{name}[{index}]", message)
    for number, rule in enumerate(policy.vm_rules):
        for index, other in enumerate(rule.vm_ids):
            if vm_id and other == vm_id:
                yield FieldViolation(f"{path}.vm_rules[{number}].vm_ids[{index}]", message)


@dataclass(frozen=True, slots=True)
class _Tie:
    """One thing that must hold between a VM and those meant by an id or a selector, and where it is written."""

    kind: int
    topology_key: str
    target: str | Selector
    path: str

    @property
    def place(self) -> str:
        """Where it is seen from."""
        return "one host" if self.topology_key == ONE_HOST else f"one {self.topology_key}"


def _hard_ties(policy: PlacementPolicy, path: str) -> Iterator[_Tie]:
    for kind, name in ((_TOGETHER, "affinity_vms"), (_APART, "anti_affinity_vms")):
        for index, vm_id in enumerate(getattr(policy, name)):
            yield _Tie(kind, ONE_HOST, vm_id, f"{path}.{name}[{index}]")
    for number, rule in enumerate(policy.vm_rules):
        if rule.weight:
            continue
        where = f"{path}.vm_rules[{number}]"
        for index, vm_id in enumerate(rule.vm_ids):
            yield _Tie(rule.kind, rule.topology_key, vm_id, f"{where}.vm_ids[{index}]")
        if rule.labels:
            yield _Tie(rule.kind, rule.topology_key, selector_of(rule.labels), f"{where}.labels")


def _named_twice(policy: PlacementPolicy, path: str) -> Iterator[FieldViolation]:
    """Find what must be together and apart at once."""
    first: dict[tuple[str, str | Selector], _Tie] = {}
    for tie in _hard_ties(policy, path):
        other = first.setdefault((tie.topology_key, tie.target), tie)
        if other.kind != tie.kind:
            what = f"VM {tie.target}" if isinstance(tie.target, str) else f"VMs with {_labels(tie.target)}"
            message = f"{what} must be {_word(tie.kind)} here, and {_word(other.kind)} by {other.path}; take one out"
            yield FieldViolation(tie.path, message)


def _word(kind: int) -> str:
    return "together with this VM" if kind == _TOGETHER else "apart from it"


def _vm_rules(policy: PlacementPolicy, path: str) -> Iterator[FieldViolation]:
    for number, rule in enumerate(policy.vm_rules):
        if not rule.labels and not rule.vm_ids:
            yield FieldViolation(f"{path}.vm_rules[{number}]", "says which VMs by neither labels nor vm_ids; give one")


def _node_rules(policy: PlacementPolicy, path: str) -> Iterator[FieldViolation]:
    takes_values = (NodeLabelRule.IN, NodeLabelRule.NOT_IN)
    for number, rule in enumerate(policy.node_rules):
        where = f"{path}.node_rules[{number}]"
        if rule.operator in takes_values and not rule.values:
            yield FieldViolation(f"{where}.values", "needs at least one value")
        elif rule.operator not in takes_values and rule.values:
            name = NodeLabelRule.Operator.Name(rule.operator)
            yield FieldViolation(f"{where}.values", f"{name} takes no values; take IN or NOT_IN, or leave them out")
    for key, wanted in sorted(_wanted_labels(policy, path).items()):
        yield from _unmeetable(key, wanted)


@dataclass(slots=True)
class _Wanted:
    """What must hold of one label of a node: of these values if not None, none of those, and whether it is there."""

    values: set[str] | None = None
    unwanted: set[str] = field(default_factory=set)
    must_exist: bool = False
    must_be_absent: bool = False
    last_path: str = ""

    def narrow(self, values: Collection[str]) -> None:
        """Allow only these of the values."""
        self.values = set(values) if self.values is None else self.values & set(values)
        self.must_exist = True


def _wanted_labels(policy: PlacementPolicy, path: str) -> Mapping[str, _Wanted]:
    wanted: dict[str, _Wanted] = {}
    for key, value in policy.required_labels.items():
        entry = wanted.setdefault(key, _Wanted())
        entry.narrow([value])
        entry.last_path = f"{path}.required_labels[{key}]"
    for number, rule in enumerate(policy.node_rules):
        if rule.weight or (rule.operator in (NodeLabelRule.IN, NodeLabelRule.NOT_IN) and not rule.values):
            continue
        entry = wanted.setdefault(rule.key, _Wanted())
        entry.last_path = f"{path}.node_rules[{number}]"
        match rule.operator:
            case NodeLabelRule.IN:
                entry.narrow(rule.values)
            case NodeLabelRule.NOT_IN:
                entry.unwanted.update(rule.values)
            case NodeLabelRule.EXISTS:
                entry.must_exist = True
            case NodeLabelRule.DOES_NOT_EXIST:
                entry.must_be_absent = True
    return wanted


def _unmeetable(key: str, wanted: _Wanted) -> Iterator[FieldViolation]:
    if wanted.must_exist and wanted.must_be_absent:
        message = f"no node can have the label {key} and not have it; take one of the rules out"
        yield FieldViolation(wanted.last_path, message)
    elif wanted.values is not None and not wanted.values - wanted.unwanted:
        message = f"together with the other rules about the label {key} no value of it is left; take one of them out"
        yield FieldViolation(wanted.last_path, message)


def _tolerations(policy: PlacementPolicy, path: str) -> Iterator[FieldViolation]:
    for number, toleration in enumerate(policy.tolerations):
        where = f"{path}.tolerations[{number}]"
        if toleration.HasField("value") and not toleration.key:
            yield FieldViolation(f"{where}.value", "needs a key; without one every taint is tolerated")
        if toleration.HasField("stays_sec") and toleration.effect not in (Toleration.ANY, Toleration.NO_EXECUTE):
            yield FieldViolation(f"{where}.stays_sec", "is about NO_EXECUTE only; leave it out, or change the effect")


# -- the rules of other VMs too


def tied_vm_ids(policy: PlacementPolicy) -> frozenset[str]:
    """Ids of the VMs that a policy's VM must share its host with, of which `contradictions_of` needs the rules too."""
    return frozenset(
        str(tie.target)
        for tie in _hard_ties(policy, "")
        if tie.kind == _TOGETHER and tie.topology_key == ONE_HOST and isinstance(tie.target, str)
    )


def contradictions_of(subject: RuledVm, others: Mapping[str, RuledVm], path: str) -> list[FieldViolation]:
    """Find VMs that must share one host, as a chain of rules says, and of which one must not be beside another.

    Args:
        others: by id, the VMs to which `tied_vm_ids` leads from the subject, from these, and so on.
        path: how the caller names the subject's policy in its request.
    """
    company = _company(subject, others)
    names = {subject.id: "this VM", **{vm.id: f"VM {vm.name}" for vm in others.values()}}
    found: list[FieldViolation] = []
    for vm in (subject, *(others[vm_id] for vm_id in sorted(company - {subject.id}) if vm_id in others)):
        for tie in _hard_ties(vm.policy, path):
            if tie.kind != _APART or tie.topology_key != ONE_HOST:
                continue
            for other_id in sorted(_meant(tie, vm, subject, others) & company - {vm.id}):
                where = tie.path if vm is subject else _first_tie(subject, path)
                message = (
                    f"{names[vm.id]} must not be beside {names[other_id]}, but the rules of both, one after the other, "
                    "put them on the same host; take one of the rules out"
                )
                found.append(FieldViolation(where, message))
    return _without_repetition(found)


def _company(subject: RuledVm, others: Mapping[str, RuledVm]) -> set[str]:
    """Ids of all VMs that must share the subject's host."""
    company, waiting = {subject.id}, [subject]
    while waiting:
        for vm_id in sorted(tied_vm_ids(waiting.pop().policy) - company):
            company.add(vm_id)
            if vm_id in others:
                waiting.append(others[vm_id])
    return company


def _meant(tie: _Tie, owner: RuledVm, subject: RuledVm, others: Mapping[str, RuledVm]) -> set[str]:
    if isinstance(tie.target, str):
        return {tie.target}
    labels = dict(tie.target)
    return {
        vm.id
        for vm in (subject, *others.values())
        if vm.project_id == owner.project_id and all(vm.labels.get(key) == value for key, value in labels.items())
    }


def _first_tie(subject: RuledVm, path: str) -> str:
    ties = (tie for tie in _hard_ties(subject.policy, path) if tie.kind == _TOGETHER and tie.topology_key == ONE_HOST)
    return next((tie.path for tie in ties), path)


def _without_repetition(found: Sequence[FieldViolation]) -> list[FieldViolation]:
    return list({(violation.field, violation.description): violation for violation in found}.values())


# -- what has no effect as things are


def findings_of(policy: PlacementPolicy, labels: Mapping[str, str], facts: ClusterFacts) -> list[str]:
    """Say what of a policy cannot matter: for ever, or as the cluster is now."""
    return [
        *_idle_node_names(policy, facts),
        *_idle_labels(policy, facts),
        *_idle_vm_rules(policy, labels, facts),
        *_idle_spread_rules(policy, labels, facts),
        *_repetitions(policy),
    ]


def _idle_node_names(policy: PlacementPolicy, facts: ClusterFacts) -> Iterator[str]:
    required, excluded = set(policy.required_nodes), set(policy.excluded_nodes)
    for name in dict.fromkeys(policy.preferred_nodes):
        if name in excluded:
            yield f"preferred_nodes: {name} is excluded, so it is never chosen"
        elif required and name not in required:
            yield f"preferred_nodes: {name} is not among the required nodes, so it is never chosen"
    for field_name in ("required_nodes", "preferred_nodes", "excluded_nodes"):
        for name in dict.fromkeys(getattr(policy, field_name)):
            if name not in facts.node_names:
                yield f"{field_name}: there is no node {name}"


def _idle_labels(policy: PlacementPolicy, facts: ClusterFacts) -> Iterator[str]:
    for key, value in sorted(policy.required_labels.items()):
        if value not in facts.node_labels.get(key, ()):
            yield f"required_labels: no node has the label {key}={value}"
    for number, rule in enumerate(policy.node_rules):
        known = facts.node_labels.get(rule.key, frozenset())
        if not known:
            yield f"node_rules[{number}]: no node has the label {rule.key}"
            continue
        for value in dict.fromkeys(rule.values):
            if value not in known:
                yield f"node_rules[{number}]: no node has the label {rule.key}={value}"
    for name in ("vm_rules", "spread_rules"):
        for number, place_rule in enumerate(getattr(policy, name)):
            key = place_rule.topology_key
            if key != ONE_HOST and not facts.node_labels.get(key):
                yield f"{name}[{number}]: no node has the label {key}, which is to make the places"


def _idle_vm_rules(policy: PlacementPolicy, labels: Mapping[str, str], facts: ClusterFacts) -> Iterator[str]:
    for name in ("affinity_vms", "anti_affinity_vms"):
        yield from (f"{name}: there is no VM {vm_id}" for vm_id in getattr(policy, name) if vm_id not in facts.vm_ids)
    hard = {(tie.topology_key, tie.target): tie.kind for tie in _hard_ties(policy, "")}
    for number, rule in enumerate(policy.vm_rules):
        where = f"vm_rules[{number}]"
        yield from (f"{where}: there is no VM {vm_id}" for vm_id in rule.vm_ids if vm_id not in facts.vm_ids)
        # One that means VMs like this one is for those that come after the first.
        is_own = bool(rule.labels) and selects(rule, "", labels)
        if rule.labels and not is_own and not facts.vms_by_selector.get(selector_of(rule.labels)):
            yield f"{where}: no other VM of the project has {_labels(selector_of(rule.labels))}"
        if not rule.weight:
            continue
        targets: list[str | Selector] = [*rule.vm_ids, *([selector_of(rule.labels)] if rule.labels else [])]
        for target in targets:
            kind = hard.get((rule.topology_key, target))
            if kind is not None:
                yield f"{where}: is preferred only, and a rule that must hold says {_KIND_NAMES[kind]} of the same VMs"


def _idle_spread_rules(policy: PlacementPolicy, labels: Mapping[str, str], facts: ClusterFacts) -> Iterator[str]:
    seen: dict[tuple[str, Selector], int] = {}
    for number, rule in enumerate(policy.spread_rules):
        where = f"spread_rules[{number}]"
        selector = _spread_selector(rule, labels)
        if not selector:
            yield f"{where}: counts VMs with this VM's labels, of which it has none"
        elif not all(labels.get(key) == value for key, value in selector):
            yield f"{where}: counts VMs with {_labels(selector)}, which this VM does not have itself"
        first = seen.setdefault((rule.topology_key, selector), number)
        if first != number:
            yield f"{where}: is about the same VMs and places as spread_rules[{first}]"


def _spread_selector(rule: SpreadRule, labels: Mapping[str, str]) -> Selector:
    return selector_of(rule.labels or labels)


def _repetitions(policy: PlacementPolicy) -> Iterator[str]:
    for name in ("preferred_nodes", "required_nodes", "excluded_nodes", "affinity_vms", "anti_affinity_vms"):
        values = list(getattr(policy, name))
        yield from (f"{name}: {value} is listed twice" for value in dict.fromkeys(values) if values.count(value) > 1)
    for name in ("vm_rules", "node_rules", "tolerations"):
        rules = [rule.SerializeToString(deterministic=True) for rule in getattr(policy, name)]
        for number, rule in enumerate(rules):
            if rule in rules[:number]:
                yield f"{name}[{number}]: is the same as {name}[{rules.index(rule)}]"


def _labels(selector: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in selector)


def must_be_apart(one: RuledVm, other: RuledVm) -> bool:
    """Tell whether two VMs may not share a host by the rules of either."""
    return _keeps_off(one, other) or _keeps_off(other, one)


def is_reached_by(vm: RuledVm, owner: RuledVm) -> bool:
    """Tell whether the owner's rules keep a VM out of more than the owner's host."""
    ties = (tie for tie in _hard_ties(owner.policy, "") if tie.kind == _APART and tie.topology_key != ONE_HOST)
    return any(_means(tie, owner, vm) for tie in ties)


def _keeps_off(owner: RuledVm, vm: RuledVm) -> bool:
    ties = (tie for tie in _hard_ties(owner.policy, "") if tie.kind == _APART and tie.topology_key == ONE_HOST)
    return any(_means(tie, owner, vm) for tie in ties)


def _means(tie: _Tie, owner: RuledVm, vm: RuledVm) -> bool:
    if isinstance(tie.target, str):
        return tie.target == vm.id
    return owner.project_id == vm.project_id and all(vm.labels.get(key) == value for key, value in tie.target)
