"""What a balancing plan sees and what it says: records without a clock, a database or a host behind them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from controlplane.domain.node import Capacity

CRITICAL_FROM_PERCENT = 95.0
HIGH_FROM_PERCENT = 90.0
MEDIUM_FROM_PERCENT = 85.0


class Priority(enum.IntEnum):
    """How urgent a move is; the numbers are those of the contract."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    @classmethod
    def of_load(cls, percent: float) -> Priority:
        """Judge a move by the load of the node that it relieves."""
        for least, priority in (
            (CRITICAL_FROM_PERCENT, cls.CRITICAL),
            (HIGH_FROM_PERCENT, cls.HIGH),
            (MEDIUM_FROM_PERCENT, cls.MEDIUM),
        ):
            if percent >= least:
                return priority
        return cls.LOW


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """One node: what it can take, what is claimed, what is in use.

    `excluded` says why the node takes no part, "" if it does; of such a node, `is_down` tells that its VMs have to find
    room elsewhere, because it is silent or shall be empty. `used_*` are of the host, VMs and all else on it.
    """

    id: str
    hostname: str
    capacity: Capacity
    claimed: Capacity
    thread_count: int
    memory_bytes: int
    used_threads: float = 0.0
    used_memory_bytes: float = 0.0
    excluded: str = ""
    moved_at_s: float | None = None
    is_down: bool = False


@dataclass(frozen=True, slots=True)
class VmLoad:
    """One VM on a node: what it claims and uses, and what moving it costs.

    `held` says why it must stay whatever it gains, "" if it may go. `moved_at_s` is when it was moved last, or when
    somebody refused to have it moved. `expected_s` is how long a move will take.
    """

    id: str
    name: str
    node_id: str
    claim: Capacity
    used_threads: float = 0.0
    used_memory_bytes: float = 0.0
    moved_bytes: int = 0
    dirty_bytes_per_s: int = 0
    expected_s: float = 0.0
    held: str = ""
    moved_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterLoad:
    """Everything a plan is made from. With `is_measured` False only claims count; ids are unique."""

    nodes: tuple[NodeLoad, ...]
    vms: tuple[VmLoad, ...]
    is_measured: bool = True
    moved_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each load counts; only their ratio matters."""

    used_cpu: float = 1.0
    used_memory: float = 1.0
    claimed_cpu: float = 1.0
    claimed_memory: float = 1.0


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    """What is worth a move.

    A move must be of use: with it made halfway, its source would still have to be `min_difference_points` busier than
    its target, and the squared distances of nodes from the cluster's load, summed up, must fall by the square of
    `min_gain_points`. Nothing is begun before the difference is larger by `hysteresis_points`, so that what is measured
    a little differently next time moves nothing back. No target gets above a threshold. Of steps whose gains
    are within `tie_share` of the best one's, the cheapest is taken. `headroom_failures` is how many nodes may fail,
    beside those that are down, with room for all their VMs elsewhere; a plan never takes that away. All points are
    percent of a node.

    Raises:
        ValueError: a number that makes no sense.
    """

    cpu_threshold_percent: float = 80.0
    memory_threshold_percent: float = 85.0
    min_gain_points: float = 1.0
    min_difference_points: float = 5.0
    hysteresis_points: float = 5.0
    max_moves: int = 20
    hold_s: float = 3600.0
    node_cool_down_s: float = 300.0
    cluster_cool_down_s: float = 0.0
    headroom_failures: int = 1
    tie_share: float = 0.1
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        points = (self.min_gain_points, self.min_difference_points, self.hysteresis_points, self.tie_share)
        times = (self.hold_s, self.node_cool_down_s, self.cluster_cool_down_s)
        if min(*points, *times, self.max_moves, self.headroom_failures) < 0 or self.min_gain_points == 0:
            raise ValueError("a balancing configuration has no negative numbers, and a least gain above 0")


@dataclass(frozen=True, slots=True)
class LoadOfNode:
    """Loads of one node in percent: of the host, and of what may be claimed there."""

    node_id: str
    hostname: str
    used_cpu: float
    used_memory: float
    claimed_cpu: float
    claimed_memory: float
    vm_count: int
    is_measured: bool = True

    @property
    def busiest(self) -> float:
        """The load that is told of a node: the larger one of what is measured, or of what is claimed."""
        if self.is_measured:
            return max(self.used_cpu, self.used_memory)
        return max(self.claimed_cpu, self.claimed_memory)


@dataclass(frozen=True, slots=True)
class Move:
    """One move of a plan. Loads are those right before and right after this move, in percent.

    `imbalance_*` are of the cluster. `exchanged_with` is the id of a VM whose move belongs to this one: neither of the
    two is of use without the other, and each is given half of what they gain. `gain_percent` is of the imbalance that
    the cluster had before the plan.
    """

    vm: VmLoad
    source: LoadOfNode
    target: LoadOfNode
    source_after: LoadOfNode
    target_after: LoadOfNode
    imbalance_before: float
    imbalance_after: float
    gain_percent: float
    priority: Priority
    exchanged_with: str = ""


@dataclass(frozen=True, slots=True)
class BalancePlan:
    """Moves in the order in which each of them has room; `message` says why there are none, or no more."""

    moves: tuple[Move, ...]
    imbalance_before: float
    imbalance_after: float
    message: str
    loads: tuple[LoadOfNode, ...] = ()
