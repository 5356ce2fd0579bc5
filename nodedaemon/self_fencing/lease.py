"""What a host may do, from what it was told and when: pure, for the daemon, its tests and the simulation.

Times are nanoseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps and is set by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

_NS_PER_MS = 1_000_000

Clock = Callable[[], int]


def boottime_ns() -> int:
    """Read the clock that leases are counted by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Known:
    """What a host was told and never forgets; nothing in it ever falls.

    `ha_version` 0: it was never told anything, so it is not armed and kills nothing.
    """

    epoch: int = 0
    fence_token: int = 0
    ha_version: int = 0
    is_armed: bool = False

    def raised(self, epoch: int, fence_token: int) -> Known:
        """Return it with what a command carried."""
        return replace(self, epoch=max(self.epoch, epoch), fence_token=max(self.fence_token, fence_token))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the answer to a heartbeat says of the lease.

    Attributes:
        sent_ns: when the heartbeat was about to be sent; nobody can have granted anything upon it before.
        lease_ms: None for no lease.
        epoch, fence_token, ha_version: 0 where the answering process does not know them freshly enough.
    """

    sent_ns: int
    lease_ms: int | None = None
    epoch: int = 0
    fence_token: int = 0
    ha_version: int = 0
    is_armed: bool = False


@dataclass(frozen=True, slots=True)
class HostLease:
    """A host's right to run protected VMs, over the leases of all control planes: it ends with the last of them."""

    known: Known = Known()
    end_ns: int = 0

    def after(self, answer: Answer) -> HostLease:
        """Return what holds after an answer; one of a deposed leader's time, or from before a fence, changes nothing.

        That it is armed is only taken together with a lease: without one, its VMs would die at once.
        """
        known = self.known
        if answer.epoch and (answer.epoch < known.epoch or answer.fence_token < known.fence_token):
            return self
        known = known.raised(answer.epoch, answer.fence_token)
        is_leased = answer.lease_ms is not None
        if answer.ha_version > known.ha_version and (is_leased or not answer.is_armed):
            known = replace(known, ha_version=answer.ha_version, is_armed=answer.is_armed)
        end_ns = self.end_ns
        if answer.lease_ms is not None:
            end_ns = max(end_ns, answer.sent_ns + answer.lease_ms * _NS_PER_MS)
        return HostLease(known, end_ns)

    def must_kill(self, now_ns: int) -> bool:
        """Whether no protected VM may run now."""
        return self.known.is_armed and now_ns >= self.end_ns

    def left_ms(self, now_ns: int) -> int:
        """Return how long the lease still lasts, rounded down; 0 for none."""
        return max(0, self.end_ns - now_ns) // _NS_PER_MS
