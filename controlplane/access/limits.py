"""How fast callers may ask, and how many of their calls may go on: each who is known, and each address of strangers.

A stream lasts as long as its caller likes, and some calls wait; without a bound one caller could have all the calls
that a control plane answers at a time, be it ever so slow about it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from controlplane.domain import access_errors
from controlplane.domain.principal import Principal, PrincipalKind
from limiquantix.rpc.peers import counted_address

MAX_BUCKETS = 20_000
"""About 200 bytes each, of callers who are known, and as many of strangers."""

Ended = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second on the whole, so many of them in one moment, and so many that go on at a time."""

    per_s: float
    burst_count: float
    at_a_time_count: int = 1_000

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ValueError: it would let nobody call.
        """
        if not (0 < self.per_s < math.inf and 1 <= self.burst_count < math.inf and self.at_a_time_count >= 1):
            raise ValueError(f"{self} lets nobody call; all must be positive, and counts at least 1")


@dataclass(frozen=True, slots=True)
class CallRates:
    """Rates of each kind of caller."""

    people: Rate = field(default_factory=lambda: Rate(2_000, 4_000, 1_000))
    """Of each user or API key: above what one control plane can answer to one, so that no tool meets it by chance, and
    low enough that one caller in a loop leaves room for others. So does a fifth of the calls that gRPC takes at a time,
    and a program that watches every VM by itself may still watch hundreds."""
    hosts: Rate = field(default_factory=lambda: Rate(200, 1_000, 100))
    """Of each node: heartbeats every few seconds, and reports of all its VMs after a network was away."""
    strangers: Rate = field(default_factory=lambda: Rate(10, 60, 100))
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


class _Running:
    """How many calls of each caller go on."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}

    def begin(self, key: Hashable, most: int) -> bool:
        """Count one more, unless there are so many already."""
        count = self._counts.get(key, 0)
        if count >= most:
            return False
        self._counts[key] = count + 1
        return True

    def end(self, key: Hashable) -> None:
        """Count one less."""
        left = self._counts[key] - 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]


class CallLimits:
    """All buckets of this process; several control planes count each for itself.

    Strangers have theirs apart, so that a flood of them makes nobody who is known be forgotten.
    """

    def __init__(self, rates: CallRates | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates or CallRates()
        self._now_s = now_s
        self._known = Buckets()
        self._strangers = Buckets()
        self._running = _Running()

    def count_principal(self, principal: Principal) -> Ended:
        """Count a call of somebody who is known; returns what to call when it has ended.

        Raises:
            ResourceExhausted: it is one too many; the error says when to come again.
        """
        kind = principal.kind
        if kind is PrincipalKind.SYSTEM or kind is PrincipalKind.CONTROL_PLANE:
            return _nothing
        rate = self._rates.hosts if kind is PrincipalKind.NODE else self._rates.people
        key = (kind, principal.id)
        wait_s = self._known.take(key, rate, self._now_s())
        if wait_s:
            raise access_errors.too_many_requests(principal.text, rate.per_s, wait_s)
        return self._begin(key, rate, principal.text)

    def count_stranger(self, peer: str) -> Ended:
        """Count a call from an address that nobody vouches for; as `count_principal`."""
        address, rate = counted_address(peer), self._rates.strangers
        wait_s = self._strangers.take(address, rate, self._now_s())
        if wait_s:
            raise access_errors.too_many_requests(f"the address {address}", rate.per_s, wait_s)
        return self._begin(address, rate, f"the address {address}")

    def _begin(self, key: Hashable, rate: Rate, who: str) -> Ended:
        if not self._running.begin(key, rate.at_a_time_count):
            raise access_errors.too_many_at_a_time(who, rate.at_a_time_count)
        return partial(self._running.end, key)


def _nothing() -> None:
    """Nobody counted."""
