"""Whole decisions as text: every file in `scenarios` is a cluster, what is asked of it, and the plan that follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.scheduler.scenario import parse, run

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario_cluster_and_requests_give_the_expected_plan(path: Path) -> None:
    scenario = parse(path.read_text(encoding="utf-8"))

    assert scenario.expected, f"{path.name} has nothing after its dashes"
    assert run(scenario) == scenario.expected


@pytest.mark.parametrize("line", ["nod n1", "node n1 memory=4", "vm a cpu=1 mem=1 cordoned", "strategy best"])
def test_scenario_misspelt_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"scenario|Strategy"):
        parse(f"{line}\n----\n")
