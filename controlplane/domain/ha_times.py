"""How long everything in high availability takes, and the inequality that keeps a VM from running twice.

A host may run protected VMs until its lease ends. It counts the lease from the moment it sent the heartbeat, so from
before any process can have granted it. A process grants a lease only if it read, not longer than `freshness_s` ago,
that the node is not being fenced. So once the intent to fence is recorded where every process reads it:

    last grant                         <= intent + freshness_s          (clock of the granting process)
    end of the last lease              <= last grant + lease_s          (clock of the host)
    protected VMs dead                 <= end of the lease + kill_s     (clock of the host)
    and the killer itself may be kept from running for pause_s.

Clocks are only taken to run at the right speed, within `clock_drift`: a span of `t` seconds on one is between
`t / (1 + clock_drift)` and `t * (1 + clock_drift)` of real time. The process that waits counts by its own clock, so

    proof_wait_s / (1 + clock_drift) >= (freshness_s + lease_s + kill_s + pause_s) * (1 + clock_drift)

Source: decision 23; the form is that of leases by Gray and Cheriton (1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

MIN_BEATS_PER_LEASE = 3
"""A lease lasts longer than this many heartbeat intervals: two lost heartbeats in a row kill nothing."""


class TimesUnsafe(ValueError):
    """The times do not keep a VM from running twice, or healthy hosts from killing theirs; the message says which."""


@dataclass(frozen=True, slots=True)
class HaTimes:
    """Times in seconds, `clock_drift` a share.

    Attributes:
        suspect_after_s: silence after which a node is suspected.
        objection_s: how long other processes may object, between the intent and cutting the power.
        kill_s: within which a host that runs has killed its protected VMs after the end of the lease.
        pause_s: for which a host's guard may be kept from running while its guests are not.
        proof_wait_s: from the recorded intent until the lease counts as ended.
    """

    heartbeat_interval_s: float = 2.0
    suspect_after_s: float = 7.0
    objection_s: float = 1.5
    lease_s: float = 9.0
    freshness_s: float = 2.0
    kill_s: float = 1.5
    pause_s: float = 1.0
    clock_drift: float = 0.001
    proof_wait_s: float = 13.6

    def least_proof_wait_s(self) -> float:
        """Return what `proof_wait_s` must not fall below."""
        return (self.freshness_s + self.lease_s + self.kill_s + self.pause_s) * (1 + self.clock_drift) ** 2

    @property
    def declared_wait_ms(self) -> int:
        """What every process must wait because of leases that a process with these times grants."""
        return math.ceil(self.least_proof_wait_s() * 1000)

    def with_wait_of(self, declared_wait_ms: int) -> HaTimes:
        """Return them with a wait that is no shorter than what some process declared."""
        return replace(self, proof_wait_s=max(self.proof_wait_s, declared_wait_ms / 1000))

    def check(self) -> None:
        """Check the inequality, and that a healthy host keeps its lease.

        Raises:
            TimesUnsafe: names the setting, the value and the limit.
        """
        least_s = self.least_proof_wait_s()
        if self.proof_wait_s < least_s:
            raise TimesUnsafe(
                f"proof_wait_s is {self.proof_wait_s:g}, but a host may run VMs for {least_s:.2f} s after it was given "
                "up (freshness_s + lease_s + kill_s + pause_s, with clocks that drift); it must not be less"
            )
        if self.lease_s <= MIN_BEATS_PER_LEASE * self.heartbeat_interval_s:
            raise TimesUnsafe(
                f"lease_s is {self.lease_s:g}; it must be more than {MIN_BEATS_PER_LEASE} heartbeat intervals "
                f"({MIN_BEATS_PER_LEASE * self.heartbeat_interval_s:g}), or two lost heartbeats kill VMs"
            )
        if self.suspect_after_s <= 2 * self.heartbeat_interval_s:
            raise TimesUnsafe(
                f"suspect_after_s is {self.suspect_after_s:g}; it must be more than 2 heartbeat intervals "
                f"({2 * self.heartbeat_interval_s:g}), or one lost heartbeat makes a node suspect"
            )
