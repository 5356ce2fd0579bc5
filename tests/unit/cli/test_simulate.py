"""`limiquantix simulate`: exit status, output, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from controlplane.cli.simulate_views import MAX_ROWS
from tests.support.fake_http_api import FakeApi, Run

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
CLUSTER = "nodes: [{name: n1, cpus: 4, memory: 8GiB}, {name: n2, cpus: 4, memory: 8GiB}]\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER + "vms: [{name: a, node: n1, memory: 2GiB}]\n")
    return path


def test_example_is_simulated_and_drawn(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "loads.svg"
    result = run(
        "simulate", "run", str(EXAMPLES / "cluster.yaml"), str(EXAMPLES / "scenario.yaml"), "--picture", str(picture)
    )

    assert result.exit_code == 0, result.output
    assert "drain host-2" in result.output
    assert picture.read_text().startswith("<svg")


def test_vm_without_a_place_is_exit_status_1_with_the_reason(run: Run, cluster: Path) -> None:
    result = run("simulate", "run", str(cluster), "--do", "place big memory=1TiB")

    assert result.exit_code == 1
    assert "WITHOUT A PLACE" in result.output
    assert "2 lack memory" in result.output


def test_events_happen_in_their_order(run: Run, cluster: Path) -> None:
    result = run("simulate", "run", str(cluster), "--do", "wait 5m", "--do", "drain n1", "-o", "json")

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["allPlaced"] is True
    assert [event["title"] for event in document["events"]] == ["wait 300 s", "drain n1"]
    assert document["events"][1]["beganSec"] == 300
    assert [node["vms"] for node in document["nodesAfter"]] == [[], ["a"]]


def test_output_of_the_whole_command_counts_too(run: Run, cluster: Path) -> None:
    result = run("-o", "yaml", "simulate", "run", str(cluster))

    assert yaml.safe_load(result.stdout)["allPlaced"] is True


def test_same_run_twice_prints_the_same(run: Run, cluster: Path) -> None:
    arguments = ("simulate", "run", str(cluster), "--do", "drain n1", "--do", "balance", "-o", "json")

    assert run(*arguments).stdout == run(*arguments).stdout


def test_cluster_comes_from_standard_input(run: Run) -> None:
    assert run("simulate", "run", "-", input=CLUSTER).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("nowhere.yaml",), 2, "nowhere.yaml"),
        (("CLUSTER", "--do", "explode"), 1, "does not begin with place, drain"),
        (("CLUSTER", "--do", "drain n9"), 1, "event 1: there is no node 'n9'"),
        (("CLUSTER", "CLUSTER"), 1, "is not known"),
        (("CLUSTER", "--picture", "/nowhere/x.svg"), 1, "cannot write /nowhere/x.svg"),
        (("CLUSTER", "-o", "xml"), 2, "is not one of"),
    ],
)
def test_what_is_wrong_is_said(run: Run, cluster: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    result = run("simulate", "run", *(str(cluster) if each == "CLUSTER" else each for each in arguments))

    assert result.exit_code == status
    assert message in result.output


def test_file_with_faults_names_each_line(run: Run) -> None:
    result = run("simulate", "run", "-", input="nodes:\n- {name: a, cpus: -1, memory: 1GiB}\n- {nmae: b}\n")

    assert result.exit_code == 1
    assert "line 2: nodes[0].cpus" in result.output
    assert "line 3: nodes[1].nmae: is not known" in result.output


def test_directory_is_no_cluster(run: Run, tmp_path: Path) -> None:
    result = run("simulate", "run", str(tmp_path))

    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


def test_long_tables_are_cut_unless_all_is_asked_for(run: Run) -> None:
    text = "nodes:\n" + "".join(f"- {{name: n{n}, cpus: 4, memory: 8GiB}}\n" for n in range(MAX_ROWS + 10))

    assert "and 10 more; --all shows them" in run("simulate", "run", "-", input=text).output
    assert "more" not in run("simulate", "run", "-", "--all", input=text).output


def test_control_characters_of_a_file_do_not_reach_the_terminal(run: Run) -> None:
    text = CLUSTER + 'vms: [{name: "a\\u202eb", node: n1, memory: 8GiB}]\n'
    result = run("simulate", "run", "-", "--do", "drain n1", "--do", "fail n2", input=text)

    assert "\u202e" not in result.output


def test_export_can_be_simulated(run: Run, api: FakeApi, tmp_path: Path) -> None:
    api.answers["ListNodes"] = lambda _: {
        "nodes": [
            {
                "id": "n-1",
                "hostname": "host-1",
                "spec": {
                    "cpu": {"totalThreads": 4},
                    "memory": {"totalBytes": str(2**33)},
                    "scheduling": {"schedulable": True},
                },
                "status": {
                    "phase": "READY",
                    "resources": {"cpu": {"allocatableVcpus": 6}, "memory": {"allocatableBytes": str(2**33)}},
                },
            }
        ]
    }
    api.answers["ListVMs"] = lambda _: {
        "vms": [
            {
                "id": "v-1",
                "name": "web",
                "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": "1024"}},
                "status": {"state": "RUNNING", "nodeId": "n-1"},
            }
        ]
    }
    exported = run("simulate", "export")
    assert exported.exit_code == 0, exported.output
    path = tmp_path / "cluster.yaml"
    path.write_text(exported.stdout)

    result = run("simulate", "run", str(path), "-o", "json")

    document = json.loads(result.stdout)
    assert document["nodesBefore"] == document["nodesAfter"]
    assert document["nodesAfter"][0]["claimedMemoryBytes"] == 2**30


@pytest.mark.parametrize("command", [(), ("run",), ("export",)])
def test_every_command_has_help_with_an_example(run: Run, command: tuple[str, ...]) -> None:
    result = run("simulate", *command, "--help")

    assert result.exit_code == 0
    assert "Example:\n" in result.output
