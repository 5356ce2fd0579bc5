"""Which heartbeats are worth writing down: not each, but what changed, and now and then a sign of life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controlplane.domain.node import Heartbeat, NodeUsage

CPU_POINTS = 5.0
"""A load that moved less is the same load."""
MEMORY_SHARE = 0.02
DISK_SHARE = 0.01


def differs(old: NodeUsage, new: NodeUsage) -> bool:
    """Whether usage changed so much that others should know. Pure."""
    return (
        abs(old.cpu_percent - new.cpu_percent) >= CPU_POINTS
        or old.running_vm_count != new.running_vm_count
        or old.memory_total_bytes != new.memory_total_bytes
        or old.disk_total_bytes != new.disk_total_bytes
        or abs(old.memory_used_bytes - new.memory_used_bytes) > MEMORY_SHARE * new.memory_total_bytes
        or abs(old.disk_used_bytes - new.disk_used_bytes) > DISK_SHARE * new.disk_total_bytes
    )


@dataclass(slots=True)
class UsageBook:
    """The newest heartbeat of each node, and what this process wrote down last.

    Attributes:
        keep_for: how old what is written down may become while nothing changes.
        settle_for: how long at least between two writes about a node, however much changes.
    """

    keep_for: timedelta = timedelta(seconds=60)
    settle_for: timedelta = timedelta(seconds=10)
    _newest: dict[str, Heartbeat] = field(default_factory=dict)
    _stored: dict[str, Heartbeat] = field(default_factory=dict)

    def note(self, heartbeat: Heartbeat) -> None:
        """Take note of a heartbeat."""
        self._newest[heartbeat.node_id] = heartbeat

    def due(self, now: datetime, limit: int) -> Sequence[Heartbeat]:
        """Return up to `limit` heartbeats that should be written down now."""
        found = [each for each in self._newest.values() if self._is_due(each, now)]
        return found[:limit]

    def _is_due(self, heartbeat: Heartbeat, now: datetime) -> bool:
        stored = self._stored.get(heartbeat.node_id)
        if stored is None:
            return True
        if stored is heartbeat:
            return False
        age = now - stored.at
        return age >= self.keep_for or (age >= self.settle_for and differs(stored.usage, heartbeat.usage))

    def stored(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Take note of what was written down."""
        for each in heartbeats:
            self._stored[each.node_id] = each

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self._newest.pop(node_id, None)
        self._stored.pop(node_id, None)
