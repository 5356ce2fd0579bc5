"""A fence is known to a host once what was begun before it is over."""

from __future__ import annotations

from nodedaemon.self_fencing.draining import Draining


def test_token_is_told_at_once_when_nothing_is_under_way() -> None:
    draining = Draining(3)
    draining.watch(lambda: ())
    draining.learn()
    assert draining.known(4) == 4


def test_token_is_told_when_all_that_was_under_way_is_over_whatever_was_begun_since() -> None:
    calls, threads = {"start-1", "start-2"}, {"libvirt-1"}
    draining = Draining(3)
    draining.watch(lambda: calls)
    draining.watch(lambda: threads)
    draining.learn()
    assert draining.known(4) == 3
    calls.clear()
    calls.add("start-3")
    assert draining.known(4) == 3, "the call was given up, and the hypervisor is still at it"
    threads.clear()
    threads.add("libvirt-2")
    assert draining.known(4) == 4


def test_second_fence_waits_for_what_the_first_one_waited_for() -> None:
    calls = {"start-1"}
    draining = Draining(3)
    draining.watch(lambda: calls)
    draining.learn()
    draining.learn()
    assert draining.known(5) == 3
    calls.clear()
    assert draining.known(5) == 5
