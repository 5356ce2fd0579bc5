"""The arithmetic of leases: what may never fall, and when VMs must not run any more."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nodedaemon.self_fencing.lease import Answer, HostLease, Known

MS = 1_000_000
SECOND = 1_000 * MS


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Answers of several control planes, in any order, some of which know little."""
    is_vague = draw(st.booleans())
    return Answer(
        sent_ns=draw(st.integers(0, 20)) * SECOND,
        lease_ms=draw(st.none() | st.integers(0, 9000)),
        epoch=0 if is_vague else draw(st.integers(0, 4)),
        fence_token=0 if is_vague else draw(st.integers(0, 4)),
        ha_version=0 if is_vague else draw(st.integers(0, 4)),
        is_armed=not is_vague and draw(st.booleans()),
    )


@given(st.lists(answers(), max_size=12))
def test_nothing_that_was_told_ever_falls_and_no_lease_gets_shorter(told: list[Answer]) -> None:
    lease = HostLease()
    for answer in told:
        after = lease.after(answer)
        assert after.known.epoch >= lease.known.epoch
        assert after.known.fence_token >= lease.known.fence_token
        assert after.known.ha_version >= lease.known.ha_version
        assert after.end_ns >= lease.end_ns
        if after.known.ha_version == lease.known.ha_version:
            assert after.known.is_armed == lease.known.is_armed
        lease = after


@given(st.lists(answers(), max_size=12))
def test_lease_never_outlasts_the_longest_grant_counted_from_its_sending(told: list[Answer]) -> None:
    lease = HostLease()
    for answer in told:
        lease = lease.after(answer)
    grants = [answer.sent_ns + answer.lease_ms * MS for answer in told if answer.lease_ms is not None]
    assert lease.end_ns <= max(grants, default=0)


@given(st.lists(answers(), max_size=12), st.integers(0, 40 * SECOND))
def test_host_that_was_never_armed_kills_nothing(told: list[Answer], now_ns: int) -> None:
    lease = HostLease()
    for answer in told:
        lease = lease.after(replace(answer, is_armed=False))
    assert not lease.must_kill(now_ns)


def test_host_that_knows_nothing_kills_nothing() -> None:
    assert not HostLease().must_kill(10**18)


def test_arming_counts_only_together_with_a_lease() -> None:
    told = Answer(SECOND, None, epoch=1, ha_version=1, is_armed=True)
    assert HostLease().after(told).known == Known(epoch=1)
    leased = HostLease().after(replace(told, lease_ms=9000))
    assert leased.known == Known(epoch=1, ha_version=1, is_armed=True)
    assert not leased.must_kill(10 * SECOND - 1)
    assert leased.must_kill(10 * SECOND)


def test_disarming_counts_without_a_lease_and_an_older_arming_does_not_undo_it() -> None:
    armed = HostLease().after(Answer(0, 9000, epoch=1, ha_version=1, is_armed=True))
    disarmed = armed.after(Answer(SECOND, None, epoch=1, ha_version=2))
    assert not disarmed.must_kill(10**18)
    assert not disarmed.after(Answer(2 * SECOND, 9000, epoch=1, ha_version=1, is_armed=True)).known.is_armed


def test_answer_of_a_deposed_leaders_time_or_from_before_a_fence_renews_nothing() -> None:
    now = HostLease(Known(epoch=3, fence_token=7, ha_version=1, is_armed=True), end_ns=SECOND)
    assert now.after(Answer(SECOND, 9000, epoch=2, fence_token=7)) == now
    assert now.after(Answer(SECOND, 9000, epoch=3, fence_token=6)) == now
    assert now.after(Answer(SECOND, 9000, epoch=3, fence_token=7)).end_ns == 10 * SECOND


def test_answer_of_a_process_that_reads_no_database_now_renews_the_lease_and_teaches_nothing() -> None:
    now = HostLease(Known(epoch=3, fence_token=7, ha_version=1, is_armed=True), end_ns=SECOND)
    assert now.after(Answer(SECOND, 9000)) == HostLease(now.known, 10 * SECOND)


def test_lease_ends_with_the_last_grant_of_several_control_planes() -> None:
    lease = HostLease().after(Answer(5 * SECOND, 9000)).after(Answer(2 * SECOND, 9000))
    assert lease.end_ns == 14 * SECOND
    assert lease.left_ms(13 * SECOND) == 1000
    assert lease.left_ms(15 * SECOND) == 0
