"""The checker proves itself: each rule, once broken, is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.cluster.mutants import SEED_COUNT, mutants
from tests.simulation.cluster.runs import seek_all

FOUND_AT = Path(__file__).parent / "mutants.txt"


def _found_at() -> dict[str, int]:
    """Return by rule the seed at which its break was noticed last, where to look first."""
    lines = [line.split() for line in FOUND_AT.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(seed) for name, seed in lines}


@pytest.mark.parametrize("rule", sorted(_found_at()))
def test_a_broken_rule_is_noticed(rule: str) -> None:
    seeds = [_found_at()[rule], *range(SEED_COUNT)]

    found = dict(seek_all({rule: mutants()[rule]}, seeds, process_count=1))

    assert found[rule] is not None, f"nothing was violated in {SEED_COUNT} histories: make sim BROKEN={rule}"
