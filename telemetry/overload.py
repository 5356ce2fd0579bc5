"""Decides from a host's load, measured again and again, whether it is overloaded. Pure.

A host counts as overloaded only after several measures in a row, and as recovered only well below the limit: of a load
that swings about the limit nobody is told twice a minute that all is well and that it is not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OverloadRules:
    """Limits in percent of all processors and of the memory.

    `margin_points` is how far below its limit a load must be to count as recovered, `measure_count` how many measures
    in a row it takes to change one's mind.
    """

    cpu_percent: float = 90.0
    memory_percent: float = 95.0
    margin_points: float = 10.0
    measure_count: int = 3


@dataclass(frozen=True, slots=True)
class Load:
    """One measure: 0 to 100."""

    cpu_percent: float
    memory_percent: float


@dataclass(frozen=True, slots=True)
class OverloadState:
    """What is thought of a host, and how many measures in a row have contradicted that."""

    is_overloaded: bool = False
    contradiction_count: int = 0


def step(rules: OverloadRules, state: OverloadState, load: Load) -> OverloadState:
    """Return what is thought of a host after one more measure."""
    contradicts = _is_calm(rules, load) if state.is_overloaded else _is_above(rules, load)
    if not contradicts and not state.contradiction_count:
        return state
    count = state.contradiction_count + 1 if contradicts else 0
    if count >= rules.measure_count:
        return OverloadState(not state.is_overloaded)
    return OverloadState(state.is_overloaded, count)


def reason_of(rules: OverloadRules, load: Load) -> str:
    """Say what of a load is at or above its limit, such as "CPU at 97 % (limit 90 %)"; "" if nothing is."""
    parts = [
        f"{name} at {value:.0f} % (limit {limit:.0f} %)"
        for name, value, limit in (
            ("CPU", load.cpu_percent, rules.cpu_percent),
            ("memory", load.memory_percent, rules.memory_percent),
        )
        if value >= limit
    ]
    return ", ".join(parts)


def _is_above(rules: OverloadRules, load: Load) -> bool:
    return load.cpu_percent >= rules.cpu_percent or load.memory_percent >= rules.memory_percent


def _is_calm(rules: OverloadRules, load: Load) -> bool:
    return (
        load.cpu_percent < rules.cpu_percent - rules.margin_points
        and load.memory_percent < rules.memory_percent - rules.margin_points
    )
