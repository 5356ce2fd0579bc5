"""What the log of events says of fences, and of high availability being disarmed and armed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.fencing import Counters, Fence, HaSettings
from limiquantix.compute.v1.ha_service_pb2 import FenceMethod


def facts_of(fence: Fence) -> Mapping[str, str]:
    """Name what programs find a fence by: `fence_id`, `token`, and `method` once there is a proof."""
    facts = {"fence_id": fence.id, "token": str(fence.token)}
    return facts if fence.proof is None else {**facts, "method": FenceMethod.Name(fence.proof.method)}


def fencing(fence: Fence, hostname: str) -> Event:
    """Say that a node gets no lease any more."""
    said = f"node {hostname} is being fenced: {fence.reason}"
    return Event(EventType.NODE_FENCING, said, Severity.WARNING, metadata=facts_of(fence))


def fenced_by_person(fence: Fence, hostname: str, actor: str) -> Event:
    """Say that somebody states that a host is off."""
    said = fence.proof.evidence if fence.proof is not None else ""
    words = f"node {hostname} is fenced: {actor} says that it is off: {said}"
    return Event(EventType.NODE_FENCED, words, Severity.CRITICAL, actor, facts_of(fence))


def of_counters(raised: Counters) -> Event:
    """Say that the database had smaller numbers than were given out already."""
    numbers = [
        f"epoch {raised.epoch}" if raised.epoch else "",
        f"version {raised.ha_version} of the settings" if raised.ha_version else "",
        f"fence tokens of {len(raised.tokens)} nodes" if raised.tokens else "",
    ]
    words = (
        "the database knew less than hosts were told, as one that was restored from an older backup does; it counts on "
        f"from {', '.join(filter(None, numbers))}; what it says of VMs may be old too until all hosts have reported"
    )
    facts = {"epoch": str(raised.epoch), "ha_version": str(raised.ha_version), "node_count": str(len(raised.tokens))}
    return Event(EventType.HA_COUNTERS_RAISED, words, Severity.CRITICAL, metadata=facts)


def of_settings(settings: HaSettings) -> Event:
    """Say that nothing is fenced and restarted any more, or that it is again."""
    facts = {"version": str(settings.version)}
    if settings.is_armed:
        return Event(EventType.HA_ARMED, "high availability is armed", actor=settings.changed_by, metadata=facts)
    words = f"high availability is disarmed: {settings.reason}"
    return Event(EventType.HA_DISARMED, words, Severity.WARNING, settings.changed_by, facts)
