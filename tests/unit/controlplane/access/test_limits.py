"""How fast callers may ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.access.limits import MAX_BUCKETS, Buckets, CallLimits, CallRates, Ended, Rate
from controlplane.domain.principal import Principal, PrincipalKind
from limiquantix.errors import Reason, ResourceExhausted
from tests.support.access_scene import node, user

TWO = CallRates(people=Rate(2, 3), hosts=Rate(1, 1), strangers=Rate(0.5, 1))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_burst_is_let_through_and_then_the_rate() -> None:
    clock = Clock()
    limits = CallLimits(TWO, clock)
    for _ in range(3):
        limits.count_principal(user("alice"))

    with pytest.raises(ResourceExhausted) as caught:
        limits.count_principal(user("alice"))

    assert caught.value.reason == Reason.TOO_MANY_REQUESTS
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now_s += caught.value.retry_after_s or 0.0
    limits.count_principal(user("alice"))
    with pytest.raises(ResourceExhausted):
        limits.count_principal(user("alice"))


def test_each_caller_has_its_own() -> None:
    limits = CallLimits(TWO, Clock())
    for who in (user("alice"), user("bob"), node("a"), node("b")):
        limits.count_principal(who)
    with pytest.raises(ResourceExhausted):
        limits.count_principal(node("a"))
    limits.count_stranger("ipv4:192.0.2.1:1")
    limits.count_stranger("ipv4:192.0.2.2:1")
    with pytest.raises(ResourceExhausted):
        limits.count_stranger("ipv4:192.0.2.1:2")


def test_our_own_processes_are_not_counted() -> None:
    limits = CallLimits(TWO, Clock())
    for _ in range(10):
        limits.count_principal(Principal(PrincipalKind.SYSTEM, "ha", "ha"))


def test_many_addresses_do_not_fill_the_memory() -> None:
    clock = Clock()
    limits = CallLimits(TWO, clock)
    for number in range(MAX_BUCKETS + 100):
        limits.count_stranger(f"ipv4:10.{number >> 16}.{number >> 8 & 255}.{number & 255}:1")

    assert len(limits._strangers) <= MAX_BUCKETS


def test_many_callers_are_told_apart_and_room_is_made_for_the_newest() -> None:
    buckets, rate = Buckets(max_count=1000), Rate(1, 1)
    for number in range(10_000):
        assert buckets.take(number, rate, 100.0) == 0
        assert len(buckets) <= 1000

    assert buckets.take(9_999, rate, 100.0) > 0
    assert buckets.take(9_500, rate, 100.0) > 0
    assert buckets.take(0, rate, 100.0) == 0


def test_those_who_waited_are_forgotten_before_those_who_did_not() -> None:
    buckets, rate = Buckets(max_count=4), Rate(1, 1)
    for key, now_s in (("old", 100.0), ("new", 101.5), ("newer", 101.6), ("newest", 101.7)):
        buckets.take(key, rate, now_s)

    buckets.take("one more", rate, 101.8)

    assert len(buckets) == 4
    assert buckets.take("new", rate, 101.8) > 0


def test_room_is_made_for_many_at_once() -> None:
    """Not for each new caller of a flood, since all others are looked at for it."""
    buckets, rate = Buckets(max_count=400), Rate(1, 1)
    for number in range(401):
        buckets.take(number, rate, 100.0)

    assert len(buckets) == 301


def test_strangers_do_not_make_those_who_are_known_be_forgotten() -> None:
    limits = CallLimits(TWO, Clock())
    limits.count_principal(node("a"))
    for number in range(MAX_BUCKETS + 100):
        limits.count_stranger(f"ipv6:[2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1]:1")

    with pytest.raises(ResourceExhausted):
        limits.count_principal(node("a"))


def test_no_more_calls_go_on_at_a_time_than_a_caller_may_have() -> None:
    few = Rate(1000, 1000, 2)
    limits = CallLimits(CallRates(people=few, hosts=few, strangers=few), Clock())
    counts: tuple[Callable[[], Ended], ...] = (
        lambda: limits.count_principal(user("alice")),
        lambda: limits.count_principal(node("alice")),
        lambda: limits.count_stranger("ipv4:192.0.2.1:1"),
    )
    for count in counts:
        first, _ = count(), count()
        for _ in range(2):
            with pytest.raises(ResourceExhausted, match="2 calls and streams open") as caught:
                count()
            assert caught.value.retry_after_s
        first()
        again = count()
        with pytest.raises(ResourceExhausted):
            count()
        again()
        count()


@pytest.mark.parametrize("rate", [(0, 1), (-1, 1), (1, 0), (float("inf"), 1), (1, float("nan")), (1, 1, 0)])
def test_rate_that_lets_nobody_call_is_refused(rate: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lets nobody call"):
        Rate(*rate)  # type: ignore[arg-type]
