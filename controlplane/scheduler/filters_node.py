"""Filters that look at the node record alone: its name, its state, its labels and taints."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.domain.node import Phase
from controlplane.scheduler.rejection import Rejection, Words, listed
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule

_READY = Phase.READY
_HARD_EFFECTS = frozenset({Taint.NO_SCHEDULE, Taint.NO_EXECUTE})


PINNED_NODE = Words("pinned node", "is not the node asked for", "are not the node asked for")


def pinned_node(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse every node but the one the caller chose."""
    if candidate.id == request.pinned_node_id:
        return None
    wanted = request.pinned_node_id
    return Rejection(PINNED_NODE, f"the VM was asked for on node {wanted}", f"need {wanted}")


REQUIRED_NODES = Words("required nodes", "is not a required node", "are not required nodes")


def required_nodes(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that the policy's list of required ones does not name by id or host name."""
    if candidate.id in request.required_nodes or candidate.hostname in request.required_nodes:
        return None
    names = listed(request.required_nodes)
    return Rejection(REQUIRED_NODES, f"the VM may run only on {names}", f"need {names}")


EXCLUDED_NODES = Words("excluded nodes", "excluded by the policy", "excluded by the policy")


def excluded_nodes(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that the policy excludes by id or host name."""
    if candidate.id not in request.excluded_nodes and candidate.hostname not in request.excluded_nodes:
        return None
    return Rejection(EXCLUDED_NODES, "the VM's placement policy excludes this node")


PHASE = Words("phase", "not READY", "not READY")


def phase(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that are not READY."""
    if candidate.phase == _READY:
        return None
    name = Phase.Name(candidate.phase)
    return Rejection(PHASE, f"is {name}, must be READY", found=name)


COMPUTE_ROLE = Words("compute role", "lacks the compute role", "lack the compute role")


def compute_role(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not run VMs."""
    return None if candidate.is_compute else Rejection(COMPUTE_ROLE, "does not have the compute role")


SCHEDULABLE = Words("schedulable", "cordoned", "cordoned")


def schedulable(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse cordoned nodes."""
    return None if candidate.schedulable else Rejection(SCHEDULABLE, "is cordoned; enable the node first")


TAINTS = Words("taints", "tainted", "tainted")


def taints(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with a NO_SCHEDULE or NO_EXECUTE taint that the request does not tolerate."""
    if not candidate.taints:
        return None
    refusing = [taint for taint in candidate.taints if taint.effect in _HARD_EFFECTS and not request.tolerates(taint)]
    if not refusing:
        return None
    names = listed({f"{taint.key}={taint.value}:{Taint.Effect.Name(taint.effect)}" for taint in refusing})
    return Rejection(TAINTS, f"has {names}, which the VM does not tolerate", found=names)


REQUIRED_LABELS = Words("required labels", "lacks labels", "lack labels", "have {}")


def required_labels(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes without all the labels that the policy requires."""
    labels = candidate.labels
    required = request.required_labels
    unmet = [key for key, value in required.items() if labels.get(key) != value]
    if not unmet:
        return None
    missing = listed({f"{key}={required[key]}" for key in unmet})
    found = listed({f"{key}={labels[key]}" if key in labels else f"no {key}" for key in unmet})
    wanted = listed({f"{key}={value}" for key, value in required.items()})
    return Rejection(REQUIRED_LABELS, f"needs {missing} but has {found}", f"need {wanted}", found)


NODE_RULES = Words("node rules", "breaks a rule about its labels", "break a rule about their labels", "have {}")


def node_rules(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes whose labels break a rule of the policy that must hold."""
    broken = [
        rule for rule in request.policy.node_rules if not rule.weight and not label_rule_holds(rule, candidate.labels)
    ]
    if not broken:
        return None
    found = listed({_label_text(rule.key, candidate) for rule in broken})
    wanted = listed({rule_text(rule) for rule in broken})
    every = listed({rule_text(rule) for rule in request.policy.node_rules if not rule.weight})
    return Rejection(NODE_RULES, f"must have {wanted}, has {found}", f"need {every}", found)


def label_rule_holds(rule: NodeLabelRule, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is as the rule wants it; an operator unknown here holds nowhere."""
    match rule.operator:
        case NodeLabelRule.IN:
            return labels.get(rule.key) in rule.values
        case NodeLabelRule.NOT_IN:
            return labels.get(rule.key) not in rule.values
        case NodeLabelRule.EXISTS:
            return rule.key in labels
        case NodeLabelRule.DOES_NOT_EXIST:
            return rule.key not in labels
    return False


def rule_text(rule: NodeLabelRule) -> str:
    """Say what a rule wants: "zone in a/b", "no gpu"."""
    values = "/".join(rule.values)
    match rule.operator:
        case NodeLabelRule.IN:
            return f"{rule.key} in {values}"
        case NodeLabelRule.NOT_IN:
            return f"{rule.key} not in {values}"
        case NodeLabelRule.EXISTS:
            return f"a label {rule.key}"
    return f"no label {rule.key}"


def _label_text(key: str, candidate: Candidate) -> str:
    return f"{key}={candidate.labels[key]}" if key in candidate.labels else f"no {key}"
