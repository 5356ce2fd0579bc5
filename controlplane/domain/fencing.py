"""Fences: the intent to take a node for dead, and the proof that nothing of ours runs there any more.

Nothing is ever started elsewhere without a proof. What makes one is in decision 23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from limiquantix.compute.v1.ha_service_pb2 import (
    FENCE_METHOD_HOST_REBOOTED,
    FENCE_METHOD_HOST_REPORTED,
    FENCE_METHOD_LEASE_EXPIRED,
    FENCE_METHOD_OPERATOR,
    FENCE_METHOD_POWER_OFF,
)
from limiquantix.compute.v1.ha_service_pb2 import Fence as FenceMessage
from limiquantix.compute.v1.ha_service_pb2 import FenceMethod as FenceMethodEnum

FenceState = FenceMessage.State
"""The contract's enum; values are plain ints in records."""

CURRENT_FENCES = frozenset({FenceState.OPEN, FenceState.PROVEN})
"""States in which no process may give the node a lease. A node has at most one fence in them."""

PROTECTED_ONLY = frozenset({FENCE_METHOD_LEASE_EXPIRED})
"""Methods that prove only protected VMs dead: those of which their host knows that they end with its lease."""

WHOLE_HOST = frozenset(
    {FENCE_METHOD_POWER_OFF, FENCE_METHOD_HOST_REBOOTED, FENCE_METHOD_HOST_REPORTED, FENCE_METHOD_OPERATOR}
)
"""Methods that prove every VM of the host dead."""


@dataclass(frozen=True, slots=True)
class FenceProof:
    """Why nothing of ours runs on a host any more.

    `evidence` says in words what was seen; `witness` is the process or person who saw it.
    """

    method: FenceMethodEnum.ValueType
    evidence: str
    witness: str
    epoch: int
    proven_at: datetime


@dataclass(frozen=True, slots=True)
class Fence:
    """One fencing of a node.

    Attributes:
        token: counts up with every fence of the cluster; commands to the node carry the newest of it, and its daemon
            refuses smaller ones, so that no command of before can arrive after.
        epoch: of the leader that opened it.
        heard_by: id of a process that heard the node since; "" for none. A fence with it is withdrawn, not proven, and
            what is proven of protected VMs only is not made a proof for the whole host.
        version: counts up with every write.
        asked_by: the person who asked for it, "" for none: it is not withdrawn because the node is heard.
        boot_id: of the boot in which the host was last heard before; "" where none is on record.
    """

    id: str
    node_id: str
    token: int
    epoch: int
    state: FenceMessage.State.ValueType
    reason: str
    opened_at: datetime
    heard_by: str = ""
    proof: FenceProof | None = None
    ended_at: datetime | None = None
    version: int = 1
    asked_by: str = ""
    boot_id: str = ""

    @property
    def is_current(self) -> bool:
        """Whether the node gets no lease because of it."""
        return self.state in CURRENT_FENCES

    @property
    def is_by_operator(self) -> bool:
        """Whether a person asked for it, whether the node is well or not."""
        return bool(self.asked_by)

    @property
    def proves_whole_host(self) -> bool:
        """Whether it is proven that nothing of ours runs on the host, protected or not."""
        return self.state == FenceState.PROVEN and self.proof is not None and self.proof.method in WHOLE_HOST


def proves_dead(fence: Fence, *, is_protected: bool) -> bool:
    """Whether a VM of the fenced node is known not to run there. Pure.

    Args:
        is_protected: whether the VM's host knows that it ends with the lease.
    """
    if fence.state != FenceState.PROVEN or fence.proof is None:
        return False
    return fence.proof.method in WHOLE_HOST or (fence.proof.method in PROTECTED_ONLY and is_protected)


@dataclass(frozen=True, slots=True)
class FenceFilter:
    """Which fences; an empty part does not filter."""

    node_id: str = ""
    only_current: bool = False


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who decides. `epoch` never falls, whatever becomes of etcd; 0 and "" before the first election."""

    epoch: int
    leader_id: str
    hostname: str = ""
    taken_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HaSettings:
    """What was said about high availability, for all processes.

    Attributes:
        version: counts up with every change that a person made, from 1.
        longest_wait_ms: what the process with the longest times needs as `proof_wait_s`; grows by itself, before that
            process grants its first lease, and is made shorter by a person only.
    """

    is_armed: bool = True
    reason: str = ""
    changed_by: str = ""
    changed_at: datetime | None = None
    version: int = 1
    longest_wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class NodeGuard:
    """What is recorded of a host's ability to fence itself; written when it changes, not with every heartbeat.

    Attributes:
        ha_version: largest `HaSettings.version` that the host told it knows.
        can_self_fence: whether the end of its lease kills its protected VMs, within the time that is configured.
        obstacle: why not.
        boot_id: of the boot in which it was last heard.
    """

    node_id: str
    ha_version: int
    can_self_fence: bool
    obstacle: str
    boot_id: str
    noted_at: datetime


def lease_proves(guard: NodeGuard | None, armed_version: int) -> bool:
    """Whether the end of a node's lease proves its protected VMs dead. Pure.

    It has to be on record that the host fences itself, and that it learnt of the last arming: one that only knows of a
    disarmament before that kills nothing.
    """
    return guard is not None and guard.can_self_fence and guard.ha_version >= armed_version


@dataclass(frozen=True, slots=True)
class Counters:
    """Numbers that never fall, as hosts or the coordination service know them; smaller ones than these they refuse.

    Attributes:
        ha_version: of `HaSettings`.
        tokens: of fences, by node.
    """

    epoch: int = 0
    ha_version: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_any(self) -> bool:
        """Whether there is a number at all."""
        return bool(self.epoch or self.ha_version or self.tokens)


@dataclass(frozen=True, slots=True)
class Marks:
    """What a process that grants leases must know, as it was at one moment.

    Attributes:
        revoked: ids of nodes with a current fence, and its token.
        tokens: of each node the token that its host shall know, where there is one: that of its newest fence, or the
            newest of all when it was registered. Its commands carry that too, but for one of a current fence.
    """

    epoch: int
    settings: HaSettings
    revoked: dict[str, int]
    tokens: dict[str, int]
