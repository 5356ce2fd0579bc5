"""Ratios of pairs, percentiles and goals."""

from __future__ import annotations

import pytest

from benchmarks.measurement import Better, Goal, Limit, Pair, compare, percentile


def test_compare_takes_median_of_pair_ratios_not_ratio_of_medians() -> None:
    # A slow moment hits both sides of the second pair; the ratio of medians would hide the third one's.
    row = compare("calls", [Pair(2.0, 1.0), Pair(30.0, 10.0), Pair(4.0, 1.0)], "ms")
    assert (row.ratio.median, row.ratio.lowest, row.ratio.highest, row.ratio.pair_count) == (3.0, 2.0, 4.0, 3)
    assert (row.ours, row.reference) == (4.0, 1.0)


def test_compare_without_pairs_says_what_was_not_measured() -> None:
    with pytest.raises(ValueError, match="nothing was measured for 'start'"):
        compare("start", [], "ms")


def test_compare_with_reference_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        compare("start", [Pair(1.0, 0.0)], "ms")


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (0.995, 100.0), (1.0, 100.0)]
)
def test_percentile_of_a_hundred_values_is_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_percentile_of_nothing_or_out_of_range_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_goal_where_lower_is_better_is_met_at_its_limit() -> None:
    goal = Goal(limit=1.25, later=1.05)
    assert goal.is_met_by(1.25)
    assert not goal.is_met_by(1.26)


def test_goal_where_higher_is_better_is_met_from_its_limit_on() -> None:
    goal = Goal(limit=0.5, later=0.8, better="higher")
    assert goal.is_met_by(0.5)
    assert not goal.is_met_by(0.49)


@pytest.mark.parametrize(("better", "met", "missed"), [("lower", 10.0, 10.1), ("higher", 10.0, 9.9)])
def test_limit_is_met_at_its_value(better: Better, met: float, missed: float) -> None:
    limit = Limit(10.0, better)
    assert limit.is_met_by(met)
    assert not limit.is_met_by(missed)
