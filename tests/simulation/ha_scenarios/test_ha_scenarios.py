"""Scenarios of failing clusters: another HA manager's, where they are at hand, and our own.

Those of the other manager are read where they are and never copied. Where our rules end elsewhere on purpose,
`DIFFERENT_ON_PURPOSE` says why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ha_scenarios.commands import UnknownCommand
from tests.support.ha_scenarios.other_suite import UnknownSetting, read_json
from tests.support.ha_scenarios.runner import Runner
from tests.support.ha_scenarios.scenario import Outcome, Scenario, VmSetting, read_text

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
    runner.config = replace(runner.config, suspect_after_s=20.0, proof_wait_s=0.0)
    with pytest.raises(AssertionError, match="run on more than one host"):
        runner.run()


def test_what_the_runner_does_not_know_is_refused_and_not_left_out(tmp_path: Path) -> None:
    cluster = {"nodes": {"a": {}, "b": {}, "c": {}}, "vms": {"vm:1": {"node": "a"}}, "final": {}, "final_nodes": {}}

    def refused(script: Sequence[Sequence[str]] = (), **more: object) -> None:
        path = tmp_path / "scenario.json"
        path.write_text(json.dumps({**cluster, "script": script, **more}))
        with pytest.raises((UnknownCommand, UnknownSetting)):
            Runner(read_json(path)).run()

    for command in (
        "explode a",
        "power nobody on",
        "cfs a rw maybe",
        "crm a sing",
        "service vm:1 dance",
        "service x stop 0",
    ):
        refused([[command]])
    refused(vms={"vm:1": {"node": "a", "colour": "red"}})
    refused(rules_config="moon-affinity: one\n\tresources vm:1\n")
    refused(rules_config="node-affinity: one\n\tresources vm:1\n\tnodes a\n\tmood good\n")
    refused(groups="group: one\n\tnodes a\n\tmood good\n")
    refused(**{"datacenter.cfg": json.dumps({"crs": {"ha": "static"}})})
    refused(weather="rain")


def test_groups_are_rules_about_nodes(tmp_path: Path) -> None:
    nodes = {each: {"power": "on"} for each in "abc"}
    groups = "group: one\n\tnodes b:2,c:1\n\tnofailback 1\n\ngroup: two\n\tnodes c\n\trestricted 1\n"
    vms = {"vm:1": {"node": "a", "state": "started", "group": "one"}, "vm:2": {"node": "c", "group": "two"}}
    script = [["service vm:2 started"], ["network c off"]]
    path = tmp_path / "scenario.json"
    parts = {"nodes": nodes, "vms": vms, "groups": groups, "script": script, "final": {}, "final_nodes": {}}
    path.write_text(json.dumps(parts))

    assert Runner(read_json(path)).run().vms == {"vm:1": ("a", "started"), "vm:2": ("c", "recovery")}


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
