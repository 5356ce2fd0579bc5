"""Whole clusters from seeds: nothing that never may happens, and each broken rule is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.cluster.runs import run_many

pytestmark = pytest.mark.timeout(900)  # much is worked out at once, whatever else the machine does

HISTORY_COUNT = 200
SEEDS = Path(__file__).parent / "seeds.txt"


def _lines(path: Path) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_histories_from_seeds_violate_nothing_and_mend() -> None:
    found = [int(words[0]) for words in _lines(SEEDS)]

    outcomes = list(run_many([*found, *range(HISTORY_COUNT)], process_count=1))

    violated = {outcome.seed: outcome.violation for outcome in outcomes if outcome.violation}
    assert not violated, "; ".join(f"make sim SEED={seed}: {what}" for seed, what in violated.items())
    assert sum(outcome.failover_count for outcome in outcomes) > HISTORY_COUNT / 20
    assert sum(outcome.proven_count for outcome in outcomes) > HISTORY_COUNT / 20


def test_a_history_run_twice_is_the_same_event_for_event() -> None:
    first, second = (next(iter(run_many([7], process_count=1))) for _ in range(2))

    assert first == second
