"""How a simulated migration goes; and that it is the pre-copy that real hypervisors do."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.migration import Phase
from hypervisor.mock.migration_model import DEFAULT_DOWNTIME_S, SWITCH_S, Freight, plot, progress_at

MIB = 2**20
PLAIN = Freight(
    memory_bytes=1024 * MIB,
    disk_bytes=0,
    dirty_bytes_s=10 * MIB,
    bandwidth_bytes_s=100 * MIB,
    max_downtime_s=0.0,
    is_live=True,
    auto_converge=False,
    post_copy=False,
)


def test_passes_get_shorter_until_the_rest_is_short_enough() -> None:
    course = plot(PLAIN)

    sizes = [each.size_bytes // MIB for each in course.passes]
    assert sizes == [1024, 102]
    assert course.downtime_s <= DEFAULT_DOWNTIME_S + SWITCH_S
    assert course.switch_s < course.end_s < 13


def test_a_guest_that_writes_faster_than_the_network_carries_never_switches() -> None:
    busy = dataclasses.replace(PLAIN, dirty_bytes_s=200 * MIB)

    assert plot(busy).switch_s == math.inf
    assert plot(dataclasses.replace(busy, auto_converge=True)).switch_s < math.inf
    post_copy = plot(dataclasses.replace(busy, post_copy=True))
    assert len(post_copy.passes) == 1
    assert post_copy.downtime_s == SWITCH_S
    assert post_copy.end_s - post_copy.switch_s > 10


def test_a_cold_one_stands_still_all_the_time() -> None:
    course = plot(dataclasses.replace(PLAIN, is_live=False))

    assert course.switch_s == 0
    assert course.downtime_s == course.end_s


def test_disks_come_first() -> None:
    freight = dataclasses.replace(PLAIN, disk_bytes=500 * MIB)
    course = plot(freight)

    at_4_s = progress_at(freight, course, 4.0)
    assert at_4_s.disk_transferred_bytes == 400 * MIB
    assert (at_4_s.memory_page_count, at_4_s.pass_count) == (0, 0)
    assert progress_at(freight, course, 6.0).pass_count == 1


@given(st.floats(0, 60), st.floats(0, 60), st.integers(0, 200 * MIB), st.integers(0, 2**31), st.booleans())
def test_what_was_sent_never_falls(first: float, second: float, dirty: int, disk: int, post_copy: bool) -> None:
    freight = dataclasses.replace(PLAIN, dirty_bytes_s=dirty, disk_bytes=disk, post_copy=post_copy)
    course = plot(freight)
    earlier, later = (progress_at(freight, course, at_s) for at_s in sorted((first, second)))

    assert earlier.transferred_bytes <= later.transferred_bytes
    assert earlier.pass_count <= later.pass_count
    assert 0 <= later.remaining_bytes <= later.total_bytes
    assert 0 <= later.percent < 100
    assert later.phase in (Phase.TRANSFERRING, Phase.SWITCHING)
