"""Which VMs have to leave a node for its NO_EXECUTE taints, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.domain.node import Node
from controlplane.domain.vm import Vm
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import Toleration

_EFFECTS = (Toleration.ANY, Toleration.NO_EXECUTE)


@dataclass(frozen=True, slots=True)
class Eviction:
    """A VM has to leave its node from a time on, for the taint of a key."""

    vm: Vm
    node: Node
    taint_key: str
    due_at: datetime


def evicts(node: Node) -> bool:
    """Whether a node has a taint for which VMs have to leave it."""
    return any(taint.effect == Taint.NO_EXECUTE for taint in node.spec.scheduling.taints)


def eviction_of(vm: Vm, node: Node) -> Eviction | None:
    """Say when a VM has to leave its node, and for which taint; None if it may stay for ever.

    A taint counts from when the node got it, or from when the VM was made, if that was later.
    """
    found: list[Eviction] = []
    for taint in node.spec.scheduling.taints:
        stay = _stay(vm.spec.placement.tolerations, taint) if taint.effect == Taint.NO_EXECUTE else None
        if stay is not None:
            since = max(_added_at(taint), vm.created_at)
            found.append(Eviction(vm, node, taint.key, since + stay))
    return min(found, key=lambda each: (each.due_at, each.taint_key), default=None)


def _stay(tolerations: Iterable[Toleration], taint: Taint) -> timedelta | None:
    """How long a VM may stay beside a taint: of several tolerations the longest counts; None is for ever."""
    stays = [each for each in tolerations if _is_meant(each, taint)]
    if any(not each.HasField("stays_sec") for each in stays):
        return None
    return timedelta(seconds=max((each.stays_sec for each in stays), default=0))


def _is_meant(toleration: Toleration, taint: Taint) -> bool:
    return (
        toleration.effect in _EFFECTS
        and toleration.key in ("", taint.key)
        and (not toleration.HasField("value") or toleration.value == taint.value)
    )


def _added_at(taint: Taint) -> datetime:
    """When the node got a taint; of one from before that was noted, long ago."""
    return taint.added_at.ToDatetime(UTC)
