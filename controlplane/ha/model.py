"""What the decision is made from, and what comes out of it.

`step(config, state, observed, now_s) -> (state, effects)` is called again and again by whoever decides, see `step`.
`state` is what only this process knows: since when by its own clock it has seen what. Everything that must outlive the
process is in `observed`, read from the database each time. Effects are level-triggered: they come again in every step
until what is observed shows that they were done, so whoever carries them out may fail or die over any of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


class NodeHealth(enum.IntEnum):
    """What is thought of a node; numbers are those of the contract's enum."""

    UNKNOWN = 1
    HEALTHY = 2
    SUSPECT = 3
    FENCING = 4
    FENCED = 5
    MAINTENANCE = 6
    SHUTTING_DOWN = 7


class Wanted(enum.Enum):
    """What shall become of a VM."""

    STARTED = "started"
    STOPPED = "stopped"
    IGNORED = "ignored"
    """Whatever it is, nothing is done about it."""


class Seen(enum.Enum):
    """What a VM is, as its host last said or as is proven."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    """It died, or its last start failed."""
    UNKNOWN = "unknown"


class ShutdownPolicy(enum.Enum):
    """What becomes of VMs whose host is shut down or rebooted on purpose."""

    CONDITIONAL = "conditional"
    """Fail over when it is shut down, freeze when it is rebooted."""
    FREEZE = "freeze"
    FAILOVER = "failover"
    MIGRATE = "migrate"


class Shutdown(enum.Enum):
    """What a host said it is about to do."""

    POWER_OFF = "power off"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class HaConfig:
    """Rules; times in seconds, shares of 1. The times must pass `HaTimes.check`, see `domain.ha_times`.

    Attributes:
        max_fencing_share: of all nodes that take part, at most this many are fenced at once, but always one.
        brake_share: if at least this many nodes are silent at once, the fault is taken to be on our side, and nothing
            is fenced until fewer are. Never counts a single node; above 1, there is no brake.
        at_once_s: a fence that this process has seen for longer is an event of its own: it no longer uses up the share,
            and its node no longer counts as one that fell silent with others.
        frozen_s: how long VMs of a host that said it reboots are left to it.
        power_retry_s: before the power is tried again after its controller failed.
        first_retry_s, max_retry_s: between attempts to restart a VM, doubling.
        max_wait_s: a VM waits no longer than this for those that it starts after.
    """

    suspect_after_s: float = 7.0
    objection_s: float = 1.5
    proof_wait_s: float = 13.6
    max_fencing_share: float = 0.34
    brake_share: float = 0.5
    at_once_s: float = 600.0
    shutdown_policy: ShutdownPolicy = ShutdownPolicy.CONDITIONAL
    frozen_s: float = 600.0
    power_retry_s: float = 5.0
    first_retry_s: float = 2.0
    max_retry_s: float = 60.0
    max_restarting_count: int = 64
    max_wait_s: float = 300.0


@dataclass(frozen=True, slots=True)
class OpenFence:
    """A current fence, as recorded.

    `is_proven` ends the waiting; `heard_by` is a process that heard the node since it was opened.
    """

    id: str
    is_proven: bool = False
    heard_by: str = ""
    is_by_operator: bool = False
    """Asked for by a person: it is not withdrawn because the node is heard."""


class PowerResult(enum.Enum):
    """How cutting the power went, as the process that decides last saw it for a fence."""

    NOT_TRIED = "not tried"
    UNDER_WAY = "under way"
    OFF = "off"
    """The controller says that the host is off, and said so after it was told to cut the power."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """One node, as observed. What is about proofs and power is looked up of nodes with a fence only.

    Attributes:
        heard_s: when this process last heard it itself, by the clock of `now_s`; None if it never did.
        takes_part: False in maintenance, while it is drained and once it is decommissioned: silence means nothing.
        lease_proves: whether the end of its lease proves its protected VMs dead, see `domain.fencing.lease_proves`.
        is_rebooted: it is heard, in another boot than the one that the fence was opened against, and says that no VM of
            ours runs there.
        has_ended_vms: it said, before it went silent, that it ended all VMs.
        has_power_agent: whether its power can be cut from here.
        knows_fence: its host said that it knows the token of its fence, so it refuses commands of before for good.
        shutdown: what it said that it is about to do; None for nothing.
    """

    id: str
    heard_s: float | None = None
    takes_part: bool = True
    fence: OpenFence | None = None
    lease_proves: bool = False
    is_rebooted: bool = False
    has_ended_vms: bool = False
    has_power_agent: bool = False
    power: PowerResult = PowerResult.NOT_TRIED
    power_evidence: str = ""
    knows_fence: bool = True
    shutdown: Shutdown | None = None


@dataclass(frozen=True, slots=True)
class VmSeen:
    """One VM that HA answers for, as observed.

    Attributes:
        is_busy: an operation on it is under way or waits; nothing is asked for meanwhile.
        proves_dead: the current fence of its node, if proven, proves this VM dead (a lease proves only protected ones).
        max_restarts: starts on one node that may fail in a row before another node is tried.
        max_relocations: other nodes that are tried then.
        failed_start_count, relocation_count: how many there were, since it last ran well.
        starts_after: VMs that must run first after a failure of a host.
        is_policy_restart: its policy has it started again elsewhere after a failure of its host.
    """

    id: str
    node_id: str
    wanted: Wanted = Wanted.STARTED
    seen: Seen = Seen.UNKNOWN
    is_busy: bool = False
    proves_dead: bool = False
    is_policy_restart: bool = True
    priority: int = 0
    restart_delay_s: float = 0.0
    max_restarts: int = 1
    max_relocations: int = 1
    failed_start_count: int = 0
    relocation_count: int = 0
    starts_after: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the scheduler would put a VM: `node_id` "" for nowhere, and why."""

    node_id: str = ""
    reason: str = ""


Choose = Callable[[str, frozenset[str]], Choice]
"""`choose(vm_id, excluded_node_ids)`: the scheduler's word, with what it chose in the same step taken into account.
Pure: made by whoever observes, from one snapshot."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything at one moment.

    Attributes:
        restarting_count: restarts elsewhere that are under way of VMs that are not among these, being placed already.
        is_armed: False while somebody said that nothing shall be done.
        obstacle: why nothing can be decided ("etcd does not answer"); "" when it can.
    """

    nodes: Sequence[NodeSeen]
    vms: Sequence[VmSeen] = ()
    choose: Choose = lambda vm_id, excluded: Choice(reason="nobody to ask")
    is_armed: bool = True
    obstacle: str = ""
    restarting_count: int = 0


# -- state


@dataclass(frozen=True, slots=True)
class NodeState:
    """What this process thinks of a node, and since when by its own clock.

    `fence_seen_s` is when this process first saw the current fence with nothing in the way of deciding: the wait for
    the lease counts from there, so a new leader begins it anew. `power_tried_s` is when cutting the power was last
    asked for or seen to be under way. `known_s` is when it learnt that there is such a node.
    """

    health: NodeHealth = NodeHealth.UNKNOWN
    since_s: float = 0.0
    reason: str = ""
    fence_id: str = ""
    fence_seen_s: float = 0.0
    power_tried_s: float | None = None
    known_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VmState:
    """How often a restart was asked for in a row, and when the next may be.

    Attributes:
        fence_id: of the fence that all this is about.
        waits_for: a VM that must run first; since `waits_since_s`.
        ready_s: since when nothing is waited for; its restart delay counts from there.
        asked_s: when the last attempt was first asked for, while it is not known what became of it.
        was_busy: whether that attempt was seen under way.
        refusal: why it fitted nowhere when last looked for.
    """

    attempt_count: int = 0
    next_s: float = 0.0
    waits_for: str = ""
    waits_since_s: float | None = None
    fence_id: str = ""
    ready_s: float | None = None
    asked_s: float | None = None
    was_busy: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class HaState:
    """What only this process knows.

    Attributes:
        began_s: when it began to decide; nodes of its first step were there then.
        listening_s: since when it listens without a gap, if that is longer: the silence of a node that it has heard
            counts from before it decided. None counts nothing of before.
    """

    began_s: float
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    vms: Mapping[str, VmState] = field(default_factory=dict)
    is_braking: bool = False
    has_looked: bool = False
    listening_s: float | None = None

    @property
    def since_s(self) -> float:
        """From when on silence counts."""
        return self.began_s if self.listening_s is None else min(self.listening_s, self.began_s)


# -- effects


@dataclass(frozen=True, slots=True)
class OpenAFence:
    """Record the intent to fence a node, and publish it everywhere leases are granted from."""

    node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WithdrawFence:
    """End a fence that is not proven: its node is heard."""

    node_id: str
    fence_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CutPower:
    """Have the power cut, and confirmed."""

    node_id: str
    fence_id: str


class ProofMethod(enum.IntEnum):
    """Numbers are those of the contract's enum."""

    POWER_OFF = 1
    LEASE_EXPIRED = 2
    HOST_REBOOTED = 3
    HOST_REPORTED = 4


@dataclass(frozen=True, slots=True)
class ProveFence:
    """Record the proof; refused if somebody heard the node meanwhile."""

    node_id: str
    fence_id: str
    method: ProofMethod
    evidence: str


@dataclass(frozen=True, slots=True)
class EndFence:
    """Give the node back: it is heard, and may have a lease again."""

    node_id: str
    fence_id: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Start a VM of a fenced node on another one."""

    vm_id: str
    fence_id: str
    from_node_id: str
    to_node_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartInPlace:
    """Start a VM where it is."""

    vm_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Relocate:
    """Move a VM that does not start where it is to another node, and start it there."""

    vm_id: str
    from_node_id: str
    to_node_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a VM where it is."""

    vm_id: str
    node_id: str


class AlertOf(enum.StrEnum):
    """Kinds of alerts."""

    NODE_LOST = "ha.node_lost"
    FENCE_UNPROVEN = "ha.fence_unproven"
    VM_FITS_NOWHERE = "ha.vm_fits_nowhere"
    VM_NOT_RESTARTED = "ha.vm_not_restarted"
    BRAKE = "ha.brake"
    DISARMED = "ha.disarmed"
    NOTHING_DECIDED = "ha.nothing_decided"


@dataclass(frozen=True, slots=True)
class Alerting:
    """Something is wrong now; an alert that is not among the effects of a step any more has ended."""

    kind: AlertOf
    resource_id: str
    message: str


Effect = (
    OpenAFence | WithdrawFence | CutPower | ProveFence | EndFence | Restart | StartInPlace | Relocate | Stop | Alerting
)
