"""Scenarios of failing clusters: another HA manager's, where they are at hand, and our own.

Those of the other manager are read where they are and never copied. Where our rules end elsewhere on purpose,
`DIFFERENT_ON_PURPOSE` says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ha_scenarios.runner import Outcome, Runner
from tests.support.ha_scenarios.scenario import Scenario, VmSetting, read_json, read_text

_REPOSITORY = Path(__file__).resolve().parents[3]
_OTHERS = Path(os.environ.get("LIMIQUANTIX_HA_SCENARIOS", _REPOSITORY.parent / "shared" / "ha-scenarios"))
_OURS = _REPOSITORY / "tests" / "simulation" / "scenarios"

DIFFERENT_ON_PURPOSE: Mapping[str, str] = {}
"""Reason by name of the scenario."""


def _missing() -> object:
    reason = f"no scenarios in {_OTHERS}; LIMIQUANTIX_HA_SCENARIOS names their folder"
    return pytest.param(Path(), marks=pytest.mark.skip(reason=reason), id="others")


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in sorted(_OTHERS.glob("*.json"))] or [_missing()]
)
def test_scenario_of_the_other_manager_ends_where_it_does_there(path: Path) -> None:
    scenario = read_json(path)
    outcome = Runner(scenario).run()

    if reason := DIFFERENT_ON_PURPOSE.get(scenario.name):
        assert outcome.vms != scenario.final, f"is the same meanwhile, although: {reason}"
        return
    assert outcome.vms == scenario.final
    assert outcome.nodes == scenario.final_nodes


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(_OURS.glob("*.txt"))])
def test_scenario_of_our_own_ends_as_written(path: Path) -> None:
    scenario, expected = read_text(path)
    assert rendered(Runner(scenario).run()) == expected


def test_process_that_does_not_wait_for_the_lease_is_caught_running_a_vm_twice() -> None:
    vms = [VmSetting("vm:1", "c", "started")]
    scenario = Scenario("hasty", ["a", "b", "c"], vms, frozenset("abc"), script=[[], ["network c off"]])
    runner = Runner(scenario)
    runner.config = replace(runner.config, proof_wait_s=0.0)
    with pytest.raises(AssertionError, match="run on more than one host"):
        runner.run()


def rendered(outcome: Outcome) -> str:
    """Put an outcome into the words of our files."""
    lines = [
        f"{vm_id} {node_id} {state}" + ("" if vm_id in outcome.running or state != "started" else " (does not run)")
        for vm_id, (node_id, state) in sorted(outcome.vms.items())
    ]
    lines += [
        " ".join([node_id, state, *[f"(proven: {proof})" for proof in outcome.proofs.get(node_id, ())]])
        for node_id, state in sorted(outcome.nodes.items())
    ]
    return "\n".join([*lines, " ".join(["restarted elsewhere:", *(outcome.restarts or ["none"])])])
