"""How fast callers may ask: a bucket of tokens for all who are known, and for every address of those who are not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import islice

from controlplane.domain import access_errors
from controlplane.domain.principal import Principal, PrincipalKind
from limiquantix.rpc.peers import counted_address

MAX_BUCKETS = 20_000
"""About 200 bytes each, of callers who are known, and as many of strangers."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second on the whole, and so many at once."""

    per_s: float
    burst_count: float

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ValueError: it would let nobody call.
        """
        if not (0 < self.per_s < math.inf and 1 <= self.burst_count < math.inf):
            raise ValueError(f"{self} lets nobody call; both must be positive, and burst_count at least 1")


@dataclass(frozen=True, slots=True)
class CallRates:
    """Rates of each kind of caller."""

    people: Rate = field(default_factory=lambda: Rate(2_000, 4_000))
    """Of each user or API key: above what one control plane can answer to one, so that no tool meets it by chance, and
    low enough that one caller in a loop leaves room for others."""
    hosts: Rate = field(default_factory=lambda: Rate(200, 1_000))
    """Of each node: heartbeats every few seconds, and reports of all its VMs after a network was away."""
    strangers: Rate = field(default_factory=lambda: Rate(10, 60))
    """Of each address that does not say who calls, or not truly. Logins have limits of their own beside it."""


class Bucket:
    """Tokens of one caller: each call takes one, and they come back with time."""

    __slots__ = ("_at_s", "_rate", "_tokens")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._rate = rate
        self._tokens = rate.burst_count
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take a token; returns 0, or in how many seconds there is one."""
        rate = self._rate
        # A clock that was asked by another thread a moment later may have been first.
        passed_s = now_s - self._at_s if now_s > self._at_s else 0.0
        tokens = min(rate.burst_count, self._tokens + passed_s * rate.per_s)
        self._at_s = now_s
        if tokens >= 1:
            self._tokens = tokens - 1
            return 0.0
        self._tokens = tokens
        return (1 - tokens) / rate.per_s

    def is_full(self, now_s: float) -> bool:
        """Whether it may be forgotten, and made anew when it is needed."""
        return self._tokens + (now_s - self._at_s) * self._rate.per_s >= self._rate.burst_count


class Buckets:
    """Those of many callers, by whatever tells them apart; never more than `max_count`.

    When there are so many, those that are full again are dropped, and of the others the oldest, a quarter at a time:
    looking at all of them for each new caller would be what a flood of callers wants.
    """

    def __init__(self, max_count: int = MAX_BUCKETS) -> None:
        self._max_count = max_count
        self._buckets: dict[Hashable, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, rate: Rate, now_s: float) -> float:
        """Take a token of one caller, who begins with all; returns 0, or in how many seconds there is one."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._max_count:
                self._make_room(now_s)
            bucket = self._buckets[key] = Bucket(rate, now_s)
        return bucket.take(now_s)

    def _make_room(self, now_s: float) -> None:
        kept = {key: bucket for key, bucket in self._buckets.items() if not bucket.is_full(now_s)}
        surplus = len(kept) - self._max_count * 3 // 4
        self._buckets = dict(islice(kept.items(), max(0, surplus), None))


class CallLimits:
    """All buckets of this process; several control planes count each for itself.

    Strangers have theirs apart, so that a flood of them makes nobody who is known be forgotten.
    """

    def __init__(self, rates: CallRates | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates or CallRates()
        self._now_s = now_s
        self._known = Buckets()
        self._strangers = Buckets()

    def count_principal(self, principal: Principal) -> None:
        """Count a call of somebody who is known.

        Raises:
            ResourceExhausted: it is one too many; the error says when to come again.
        """
        kind = principal.kind
        if kind is PrincipalKind.SYSTEM or kind is PrincipalKind.CONTROL_PLANE:
            return
        rate = self._rates.hosts if kind is PrincipalKind.NODE else self._rates.people
        wait_s = self._known.take((kind, principal.id), rate, self._now_s())
        if wait_s:
            raise access_errors.too_many_requests(principal.text, rate.per_s, wait_s)

    def count_stranger(self, peer: str) -> None:
        """Count a call from an address that nobody vouches for. Raises as `count_principal`."""
        address, rate = counted_address(peer), self._rates.strangers
        wait_s = self._strangers.take(address, rate, self._now_s())
        if wait_s:
            raise access_errors.too_many_requests(f"the address {address}", rate.per_s, wait_s)
