"""How a node's life goes on: which orders it takes in which phase, and what it is after them. Pure.

Every function returns the node as it is then, and the very same object if the order changes nothing: so an order that
is repeated writes nothing and tells nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain import errors
from controlplane.domain.documents import timestamp
from controlplane.domain.node import CapacityPolicy, Node, Phase, capacity_of_node
from controlplane.domain.node_conditions import CORDON_REASON, CORDON_SINCE, OVERLOAD_REASON, OVERLOAD_SINCE
from limiquantix.compute.v1.node_pb2 import NodeSpec, SchedulingConfig, Taint
from limiquantix.compute.v1.node_service_pb2 import UpdateNodeRequest
from limiquantix.errors import FieldViolation, InvalidArgument

CORDONED_PHASES = frozenset({Phase.MAINTENANCE, Phase.DRAINING})
"""Phases an operator chose; neither a heartbeat nor a registration ends them."""

MAX_LABEL_COUNT = 64
MAX_TAINT_COUNT = 64
MAX_CPU_RATIO = 64.0
MAX_MEMORY_RATIO = 16.0
"""As of the configuration's own ratios: what is promised beyond that is a slip of the keyboard."""

_CHANGEABLE = ("scheduling", "role")


def is_cordoned(node: Node) -> bool:
    """Whether it takes no new VMs by order."""
    return node.phase in CORDONED_PHASES or not node.spec.scheduling.schedulable


def cordoned(node: Node, reason: str, now: datetime) -> Node:
    """Return the node in maintenance: no new VMs, those there go on. One that is being drained stays so.

    Args:
        reason: "" keeps the reason that was given before, if it is cordoned already.
    """
    phase = node.phase if node.phase == Phase.DRAINING else Phase.MAINTENANCE
    return _without_new_vms(node, phase, reason, now)


def draining(node: Node, reason: str, now: datetime) -> Node:
    """Return the node while its VMs are moved away."""
    return _without_new_vms(node, Phase.DRAINING, reason, now)


def drained(node: Node, now: datetime) -> Node:
    """Return the node when nothing more is moved away: in maintenance, whatever is still on it."""
    return _if_changed(node, replace(node, phase=Phase.MAINTENANCE), now) if node.phase == Phase.DRAINING else node


def enabled(node: Node, now: datetime, *, is_heard: bool, drain_id: str = "") -> Node:
    """Return the node taking VMs again.

    Args:
        is_heard: whether its heartbeats come.
        drain_id: the operation that drains it; "" for none.

    Raises:
        FailedPrecondition: it is being drained.
    """
    if drain_id:
        hint = f"cancel operation {drain_id}, or wait for it, first"
        raise errors.node_state_forbids(node, "enable", "DRAINING", hint)
    phase = node.phase
    if phase in CORDONED_PHASES or phase == Phase.OFFLINE:
        phase = Phase.READY if is_heard else Phase.NOT_READY
    kept = {key: text for key, text in node.annotations.items() if key not in (CORDON_REASON, CORDON_SINCE)}
    return _if_changed(node, replace(node, phase=phase, spec=_with_schedulable(node.spec, True), annotations=kept), now)


def _without_new_vms(node: Node, phase: Phase.ValueType, reason: str, now: datetime) -> Node:
    annotations = dict(node.annotations)
    annotations.setdefault(CORDON_SINCE, now.isoformat())
    if reason:
        annotations[CORDON_REASON] = reason
    changed = replace(node, phase=phase, spec=_with_schedulable(node.spec, False), annotations=annotations)
    return _if_changed(node, changed, now)


def overloaded(node: Node, reason: str, now: datetime) -> Node:
    """Return the node with more load than it should have, and why one thinks so."""
    notes = {**node.annotations, OVERLOAD_REASON: reason, OVERLOAD_SINCE: now.isoformat()}
    return _if_changed(node, replace(node, annotations=notes), now)


def recovered(node: Node, now: datetime) -> Node:
    """Return the node with a load that it can carry."""
    notes = {key: text for key, text in node.annotations.items() if key not in (OVERLOAD_REASON, OVERLOAD_SINCE)}
    return _if_changed(node, replace(node, annotations=notes), now)


def tainted(node: Node, taint: Taint, now: datetime) -> Node:
    """Return the node with a taint, in place of the one with its key.

    Raises:
        InvalidArgument: it has too many.
    """
    old = node.spec.scheduling.taints
    wanted = [each for each in old if each.key != taint.key]
    wanted.insert(next((at for at, each in enumerate(old) if each.key == taint.key), len(old)), taint)
    return _with_taints(node, wanted, "taint", now)


def untainted(node: Node, key: str, now: datetime) -> Node:
    """Return the node without the taint of a key."""
    rest = [each for each in node.spec.scheduling.taints if each.key != key]
    return _with_taints(node, rest, "taint_key", now)


def stamped(taints: Iterable[Taint], before: Iterable[Taint], now: datetime) -> list[Taint]:
    """Return taints with the time at which the node got each; a changed value or effect makes another taint of it."""
    known = {(each.key, each.value, each.effect): each.added_at for each in before if each.HasField("added_at")}
    result = []
    for taint in taints:
        since = known.get((taint.key, taint.value, taint.effect), timestamp(now))
        result.append(Taint(key=taint.key, value=taint.value, effect=taint.effect, added_at=since))
    return result


def labelled(node: Node, added: Mapping[str, str], removed: Collection[str], now: datetime) -> Node:
    """Return the node with labels added or replaced, and others removed.

    Raises:
        InvalidArgument: the same label is added and removed, or it has too many.
    """
    both = sorted(set(added) & set(removed))
    if both:
        text = f"cannot add and remove the same label: {', '.join(both)}"
        raise InvalidArgument.from_violations([FieldViolation("remove_labels", text)])
    labels = {**{key: value for key, value in node.labels.items() if key not in removed}, **added}
    if len(labels) > MAX_LABEL_COUNT:
        text = f"leaves the node with {len(labels)} labels; it can have {MAX_LABEL_COUNT}"
        raise InvalidArgument.from_violations([FieldViolation("add_labels", text)])
    return _if_changed(node, replace(node, labels=labels), now)


def paths_of(request: UpdateNodeRequest) -> list[str]:
    """Say what a request changes: its mask, or without one all that it has set.

    Raises:
        InvalidArgument: it changes nothing, or what cannot be changed.
    """
    paths = list(request.update_mask.paths)
    if not paths:
        for name in _CHANGEABLE:
            if request.HasField(name):  # type: ignore[arg-type]
                paths += [f"{name}.{field.name}" for field, _ in getattr(request, name).ListFields()]
        if not paths:
            text = "has neither scheduling nor role set; name what is to be changed in update_mask"
            raise InvalidArgument.from_violations([FieldViolation("update_mask", text)])
    known = FieldMask(paths=paths).IsValidForDescriptor(UpdateNodeRequest.DESCRIPTOR)
    faults = [path for path in paths if path.partition(".")[0] not in _CHANGEABLE or not (known or _is_known(path))]
    if faults:
        text = f"cannot change {', '.join(faults)}; only scheduling and role, and what is in them"
        raise InvalidArgument.from_violations([FieldViolation("update_mask", text)])
    return paths


def updated(node: Node, request: UpdateNodeRequest, policy: CapacityPolicy, now: datetime) -> Node:
    """Return the node with another role or scheduling, and the capacity that follows.

    Raises:
        InvalidArgument: the request changes nothing, or to what cannot be.
    """
    paths = paths_of(request)
    wanted = UpdateNodeRequest(scheduling=node.spec.scheduling, role=node.spec.role)
    source = UpdateNodeRequest()
    source.CopyFrom(request)
    for path in paths:
        _with_parents(source, path)
    FieldMask(paths=paths).MergeMessage(source, wanted, True, True)
    faults = list(_scheduling_violations(wanted.scheduling))
    if faults:
        raise InvalidArgument.from_violations(faults)
    spec = _copy(node.spec)
    spec.scheduling.CopyFrom(wanted.scheduling)
    spec.role.CopyFrom(wanted.role)
    _set_taints(spec, stamped(wanted.scheduling.taints, node.spec.scheduling.taints, now))
    return _if_changed(node, replace(node, spec=spec, capacity=capacity_of_node(spec, policy)), now)


def _scheduling_violations(scheduling: SchedulingConfig) -> Iterator[FieldViolation]:
    ratios = scheduling.overcommit
    for name, ratio, most in (
        ("cpu_ratio", ratios.cpu_ratio, MAX_CPU_RATIO),
        ("memory_ratio", ratios.memory_ratio, MAX_MEMORY_RATIO),
    ):
        if ratio > most:
            yield FieldViolation(f"scheduling.overcommit.{name}", f"must be at most {most:g}")
    keys = [taint.key for taint in scheduling.taints]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield FieldViolation("scheduling.taints", f"has several taints with the key {key!r}; a node has one of each")


def _with_taints(node: Node, wanted: Sequence[Taint], field: str, now: datetime) -> Node:
    if len(wanted) > MAX_TAINT_COUNT:
        text = f"would be one too many; a node can have {MAX_TAINT_COUNT}"
        raise InvalidArgument.from_violations([FieldViolation(field, text)])
    spec = _copy(node.spec)
    _set_taints(spec, stamped(wanted, node.spec.scheduling.taints, now))
    return _if_changed(node, replace(node, spec=spec), now)


def _set_taints(spec: NodeSpec, taints: Iterable[Taint]) -> None:
    del spec.scheduling.taints[:]
    spec.scheduling.taints.extend(taints)


def _with_schedulable(spec: NodeSpec, schedulable: bool) -> NodeSpec:
    changed = _copy(spec)
    changed.scheduling.schedulable = schedulable
    return changed


def _copy(spec: NodeSpec) -> NodeSpec:
    copy = NodeSpec()
    copy.CopyFrom(spec)
    return copy


def _with_parents(request: UpdateNodeRequest, path: str) -> None:
    """Make the messages that a path goes through present: named in the mask and absent, a field gets its default."""
    message = request
    for name in path.split(".")[:-1]:
        message = getattr(message, name)
        message.SetInParent()


def _is_known(path: str) -> bool:
    return FieldMask(paths=[path]).IsValidForDescriptor(UpdateNodeRequest.DESCRIPTOR)


def _if_changed(before: Node, after: Node, now: datetime) -> Node:
    """Return the new node as of now, the old one if they are equal."""
    return before if after == before else replace(after, updated_at=now)
