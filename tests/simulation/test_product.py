"""Clusters of the product's own processes from seeds: nothing that never may happens, and broken rules are noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulation.product.broken import RULES, SEED_COUNT
from tests.simulation.product.runs import Told, run_many, seek

pytestmark = pytest.mark.timeout(900)  # much is worked out at once, whatever else the machine does

HERE = Path(__file__).parent
LONG_COUNT = 100
MORE_SEED_COUNT = 5
"""Tried after the noted one, at which a change of the product may have something else happen."""
is_long = os.environ.get("LIMIQUANTIX_HA", "") == "all"


def _lines(name: str) -> list[list[str]]:
    lines = (HERE / name).read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def told() -> list[Told]:
    """Run all in one go, since to import the product takes longer than a history; the first of them twice."""
    found = [int(words[0]) for words in _lines("product-seeds.txt")]
    seeds = [found[0], *found, *(range(LONG_COUNT) if is_long else ())]
    return list(run_many(seeds, process_count=1))


def test_histories_of_the_product_violate_nothing_and_mend(told: list[Told]) -> None:
    violated = {each["seed"]: each["violation"] for each in told if each["violation"]}

    assert not violated, "; ".join(f"make sim ARGS=--product SEED={seed}: {what}" for seed, what in violated.items())
    assert sum(each["move_count"] for each in told) >= 1
    assert sum(each["ack_count"] for each in told) >= len(told)


def test_a_history_of_the_product_run_twice_is_the_same_step_for_step(told: list[Told]) -> None:
    first, second = told[:2]

    assert first["step_count"] > 1000
    assert first == second


@pytest.mark.parametrize(
    ("rule", "seed"),
    [
        pytest.param(
            rule,
            int(seed),
            marks=() if number == 0 else pytest.mark.skipif(not is_long, reason="LIMIQUANTIX_HA=all runs it"),
        )
        for number, (rule, seed) in enumerate(_lines("product-mutants.txt"))
    ],
)
def test_a_broken_rule_of_the_product_is_noticed(rule: str, seed: int) -> None:
    told = seek(rule, [seed, *range(SEED_COUNT if is_long else MORE_SEED_COUNT)])

    assert told is not None, f"seek it anew: make sim MUTANTS=1 BROKEN={rule} ARGS=--product"


def test_seeds_are_noted_for_rules_that_there_are() -> None:
    assert {rule for rule, _ in _lines("product-mutants.txt")} <= RULES.keys()
