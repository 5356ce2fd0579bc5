"""Who is silent, what that makes of a node, and when so many are that the fault may be ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.ha.model import HaConfig, NodeHealth, NodeSeen, NodeState, Shutdown, ShutdownPolicy

_LATE_SHARE = 0.5
"""Of the silence that makes a node suspect. A fault on our side silences all nodes within one heartbeat interval, which
is less than half of it: when the first node is suspect all others are late already, and the brake holds."""


@dataclass(frozen=True, slots=True)
class Ear:
    """What silence means to a process. All times by its own clock.

    Attributes:
        listening_s: since when it listens without a gap.
        began_s: when it began to decide, not earlier than that.
        known_s: since when it knows of each node: one that was just registered had no time to be heard.
    """

    config: HaConfig
    listening_s: float
    began_s: float
    now_s: float
    known_s: Mapping[str, float] = field(default_factory=dict)

    def silence_s(self, node: NodeSeen) -> float:
        """How long nothing was heard, as far as this process can tell: not longer than it listens and knows of it.

        Nor, of one that it never heard, than it decides: that one may have come just before.
        """
        return self._silence_s(node, self.began_s)

    def _silence_s(self, node: NodeSeen, unheard_since_s: float) -> float:
        heard_s = node.heard_s
        since_s = unheard_since_s if heard_s is None else self.listening_s
        known_s = self.known_s.get(node.id)
        if known_s is not None and known_s > since_s:
            since_s = known_s
        # Asked several times of each node in each round, and comparing is half of what `max` takes.
        return self.now_s - (since_s if heard_s is None or heard_s < since_s else heard_s)

    def is_silent(self, node: NodeSeen) -> bool:
        """Whether a node was not heard for so long that it is suspected."""
        return self.silence_s(node) >= self.config.suspect_after_s

    def is_late(self, node: NodeSeen) -> bool:
        """Whether a node would have been heard by now, most likely.

        One that was never heard too, for as long as this process listens: it is a sign of a fault on our side.
        """
        return self._silence_s(node, self.listening_s) >= self.config.suspect_after_s * _LATE_SHARE

    def is_heard(self, node: NodeSeen) -> bool:
        """Whether this process itself heard a node lately."""
        return node.heard_s is not None and self.now_s - node.heard_s < self.config.suspect_after_s

    def health(self, node: NodeSeen) -> NodeHealth:
        """Say what is thought of a node now."""
        if node.fence is not None:
            return NodeHealth.FENCED if node.fence.is_proven else NodeHealth.FENCING
        if not node.takes_part:
            return NodeHealth.MAINTENANCE
        is_silent = self.is_silent(node)
        if node.shutdown is not None and (not is_silent or self._is_left_alone(node)):
            return NodeHealth.SHUTTING_DOWN
        if is_silent:
            return NodeHealth.SUSPECT
        return NodeHealth.HEALTHY if self.is_heard(node) else NodeHealth.UNKNOWN

    def _is_left_alone(self, node: NodeSeen) -> bool:
        """Whether the VMs of a host that went on purpose wait for it.

        One that is shut down is waited for until a person says otherwise, one that reboots for `frozen_s`.
        """
        policy = self.config.shutdown_policy
        if node.shutdown is Shutdown.REBOOT:
            freezes = policy in (ShutdownPolicy.FREEZE, ShutdownPolicy.CONDITIONAL)
            return freezes and self.silence_s(node) < self.config.frozen_s
        return policy is ShutdownPolicy.FREEZE


@dataclass(frozen=True, slots=True)
class Brakes:
    """What keeps nodes from being fenced because there are too many of them.

    Attributes:
        is_braking: so many are late that the fault may be ours.
        why: in words, once so many are silent for good; "" before.
        room_count: how many more may be fenced at once.
        limit_count: how many may in all.
    """

    is_braking: bool
    why: str
    room_count: int
    limit_count: int


def brakes(ear: Ear, nodes: Sequence[NodeSeen], known: Mapping[str, NodeState]) -> Brakes:
    """Count who is silent and who is fenced.

    Nodes that said that they go, and those that do not take part, count for nothing: their silence is no sign. Nor
    do those that are fenced for longer than `at_once_s`; otherwise few that stay away would stop everything for good.
    """
    config = ear.config
    counted = [node for node in nodes if node.takes_part and node.shutdown is None and not _is_past(ear, node, known)]
    threshold = max(2, math.ceil(config.brake_share * len(counted) - 1e-9))
    late = [node for node in counted if ear.is_late(node)]
    late_count, silent_count = len(late), sum(ear.is_silent(node) for node in late)  # who is silent is late, too
    why = ""
    if silent_count >= threshold:
        why = (
            f"{silent_count} of {len(counted)} nodes are silent at once, and from {threshold} on the fault is taken to "
            "be on this side: nothing is fenced until fewer are; nodes that are known to be off can be put into "
            "maintenance, or confirmed dead"
        )
    limit_count = max(1, math.floor(config.max_fencing_share * len(counted) + 1e-9))
    fenced_count = sum(node.fence is not None and not node.has_ended_vms for node in counted)
    return Brakes(late_count >= threshold, why, max(0, limit_count - fenced_count), limit_count)


def _is_past(ear: Ear, node: NodeSeen, known: Mapping[str, NodeState]) -> bool:
    state = known.get(node.id)
    if node.fence is None or state is None or state.fence_id != node.fence.id:
        return False
    return ear.now_s - state.fence_seen_s >= ear.config.at_once_s
