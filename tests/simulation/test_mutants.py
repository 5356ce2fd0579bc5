"""The checker proves itself: each rule, once broken, is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.cluster.history import Outcome
from tests.simulation.cluster.mutants import SEED_COUNT, mutants
from tests.simulation.cluster.runs import seek_all

pytestmark = pytest.mark.timeout(900)  # much is worked out at once, whatever else the machine does

FOUND_AT = Path(__file__).parent / "mutants.txt"


def _found_at() -> dict[str, int]:
    """Return by rule the seed at which its break was noticed last, where to look first."""
    lines = [line.split() for line in FOUND_AT.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(seed) for name, seed in lines}


@pytest.fixture(scope="module")
def found() -> dict[str, Outcome | None]:
    """All of them, sought in one process, since starting that takes longer than most of it."""
    return dict(seek_all(mutants(), range(SEED_COUNT), process_count=1, look_first_at=_found_at()))


def test_each_rule_has_a_seed_to_look_at_first() -> None:
    assert _found_at().keys() == mutants().keys()


@pytest.mark.parametrize("rule", sorted(mutants()))
def test_a_broken_rule_is_noticed(rule: str, found: dict[str, Outcome | None]) -> None:
    assert found[rule] is not None, f"nothing was violated in {SEED_COUNT} histories: make sim BROKEN={rule}"
