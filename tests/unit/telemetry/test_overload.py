"""Whether a host is overloaded, from one measure after another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from telemetry.overload import Load, OverloadRules, OverloadState, reason_of, step

RULES = OverloadRules(cpu_percent=90, memory_percent=95, margin_points=10, measure_count=3)


def after(*cpu_percents: float, memory_percent: float = 0, state: OverloadState | None = None) -> OverloadState:
    state = state or OverloadState()
    for percent in cpu_percents:
        state = step(RULES, state, Load(percent, memory_percent))
    return state


def test_host_is_overloaded_after_some_measures_in_a_row_and_not_before() -> None:
    assert not after(90, 99).is_overloaded
    assert after(90, 99, 100).is_overloaded


def test_one_measure_below_the_limit_begins_the_count_anew() -> None:
    assert not after(99, 99, 89.9, 99, 99).is_overloaded


def test_memory_alone_overloads() -> None:
    assert after(0, 0, 0, memory_percent=95).is_overloaded


def test_host_recovers_only_well_below_both_limits() -> None:
    overloaded = OverloadState(is_overloaded=True)

    assert after(80, 80, 80, 80, state=overloaded).is_overloaded
    assert after(79, 79, 79, memory_percent=86, state=overloaded).is_overloaded
    assert not after(79, 79, 79, memory_percent=84, state=overloaded).is_overloaded


def test_reason_names_what_is_above_its_limit() -> None:
    assert reason_of(RULES, Load(97.4, 10)) == "CPU at 97 % (limit 90 %)"
    assert reason_of(RULES, Load(95, 96)) == "CPU at 95 % (limit 90 %), memory at 96 % (limit 95 %)"
    assert reason_of(RULES, Load(1, 1)) == ""


@given(st.lists(st.floats(80, 90, exclude_max=True), max_size=50), st.booleans())
def test_load_between_the_limits_never_changes_what_is_thought(percents: list[float], was_overloaded: bool) -> None:
    assert after(*percents, state=OverloadState(was_overloaded)).is_overloaded == was_overloaded


@given(st.lists(st.floats(0, 100), max_size=60))
def test_what_is_thought_changes_at_most_once_in_as_many_measures_as_it_takes(percents: list[float]) -> None:
    state, changed_at = OverloadState(), -RULES.measure_count
    for at, percent in enumerate(percents):
        new = step(RULES, state, Load(percent, 0))
        if new.is_overloaded != state.is_overloaded:
            assert at - changed_at >= RULES.measure_count or changed_at < 0
            changed_at = at
        state = new
