"""Forecasts of migrations, against the formula's own terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.migration_forecast import Load, Way, forecast

GIB = 2**30
MB = 1_000_000
GIGABIT = 125 * MB
IDLE = Load(memory_bytes=4 * GIB, dirty_bytes_per_s=0, disk_bytes=0)
WAY = Way(bandwidth_bytes_per_s=GIGABIT, max_downtime_ms=300)

loads = st.builds(
    Load,
    memory_bytes=st.integers(0, 2**42),
    dirty_bytes_per_s=st.integers(0, 2**36),
    disk_bytes=st.integers(0, 2**44),
)
ways = st.builds(
    Way,
    bandwidth_bytes_per_s=st.integers(0, 2**36),
    max_downtime_ms=st.integers(0, 60_000),
    live=st.booleans(),
    auto_converge=st.booleans(),
    post_copy=st.booleans(),
)


def test_idle_guest_takes_one_pass_and_hardly_stands_still() -> None:
    found = forecast(IDLE, WAY)
    assert found.duration_ms == pytest.approx(34_360 + 530, abs=10)
    assert (found.pass_count, found.downtime_ms, found.converges, found.ends) == (1, 30, True, True)


def test_passes_shrink_by_the_ratio_of_writing_to_sending() -> None:
    # 4 GiB at 125 MB/s with 25 MB/s written: passes of 34.4, 6.87, 1.37 and 0.27 s; the last is short enough.
    found = forecast(replace(IDLE, dirty_bytes_per_s=25 * MB), WAY)
    assert found.pass_count == 3
    assert found.downtime_ms == pytest.approx(275 + 30, abs=2)
    assert found.duration_ms == pytest.approx(34_360 + 6_872 + 1_374 + 275 + 530, abs=10)


def test_guest_that_writes_faster_than_the_network_carries_does_not_converge() -> None:
    fast = replace(IDLE, dirty_bytes_per_s=200 * MB)
    plain = forecast(fast, WAY)
    assert (plain.converges, plain.ends) == (False, False)
    slowed = forecast(fast, replace(WAY, auto_converge=True))
    assert (slowed.converges, slowed.ends) == (False, True)
    copied_after = forecast(fast, replace(WAY, post_copy=True))
    assert (copied_after.converges, copied_after.ends, copied_after.downtime_ms) == (False, True, 30)


def test_cold_one_stands_still_for_all_of_its_memory() -> None:
    found = forecast(replace(IDLE, dirty_bytes_per_s=200 * MB), replace(WAY, live=False))
    assert found.downtime_ms == pytest.approx(34_390, abs=10)
    assert found.ends


def test_vm_that_is_off_takes_the_time_of_its_disks() -> None:
    found = forecast(Load(0, 0, 125 * MB), WAY)
    assert (found.duration_ms, found.downtime_ms, found.pass_count) == (1500, 0, 0)


@given(loads, ways)
def test_figures_are_sound(load: Load, way: Way) -> None:
    found = forecast(load, way)
    assert 0 <= found.downtime_ms <= found.duration_ms
    assert found.ends or not found.converges


@given(loads, ways)
def test_more_disks_take_no_less_and_change_nothing_else(load: Load, way: Way) -> None:
    less, more = forecast(replace(load, disk_bytes=0), way), forecast(load, way)
    assert less.duration_ms <= more.duration_ms
    assert (less.downtime_ms, less.converges) == (more.downtime_ms, more.converges)


@given(loads, ways.filter(lambda way: way.live))
def test_one_that_converges_keeps_to_the_downtime_allowed(load: Load, way: Way) -> None:
    found = forecast(load, way)
    assert not found.converges or found.downtime_ms <= way.max_downtime_ms + 31
