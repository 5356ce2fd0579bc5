"""Cluster and scenario files: what they say, and what hostile ones get."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controlplane.simulator.cluster_file import read_cluster, to_document
from controlplane.simulator.scenario import Event, read_event, read_scenario
from controlplane.simulator.yaml_tree import FileUnusable, read_tree

EXAMPLES = Path(__file__).parents[4] / "docs" / "examples"
NODE = "nodes: [{name: n1, cpus: 4, memory: 8GiB}]\n"


def faults_of(text: str) -> tuple[str, ...]:
    with pytest.raises(FileUnusable) as caught:
        read_cluster(text.encode(), "c.yaml")
    assert caught.value.name == "c.yaml"
    return caught.value.faults


def test_example_files_are_read() -> None:
    cluster = read_cluster((EXAMPLES / "cluster.yaml").read_bytes())
    scenario = read_scenario((EXAMPLES / "scenario.yaml").read_bytes())

    assert [node.name for node in cluster.nodes] == ["host-1", "host-2", "host-3", "host-4"]
    assert scenario.events[-1].balance is not None


def test_document_written_and_read_again_is_the_same_cluster() -> None:
    cluster = read_cluster((EXAMPLES / "cluster.yaml").read_bytes())

    assert read_cluster(yaml.safe_dump(to_document(cluster)).encode()) == cluster


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nodes:\n- {name: n1, cpus: 4, memory: 8GiB, colour: red}", "line 2: nodes[0].colour: is not known"),
        ("nodes:\n- {name: n1, cpus: -4, memory: 8GiB}", "line 2: nodes[0].cpus: Input should be greater"),
        ("nodes:\n- {name: n1, cpus: true, memory: 8GiB}", "line 2: nodes[0].cpus: Input should be a valid integer"),
        ("nodes:\n- {name: n1, cpus: 4, memory: -8GiB}", "nodes[0].memory: '-8GiB' is not a size"),
        ("nodes:\n- {name: n1, cpus: 4, memory: 8}", "nodes[0].memory: is not a text with a unit"),
        ("nodes:\n- {name: n1, cpus: 4, memory: 8GB}", "may mean 1000s or 1024s"),
        ("nodes:\n- {name: n1, cpus: 4}", "line 2: nodes[0].memory: is missing"),
        ("nodes:\n- {name: 7, cpus: 4, memory: 8GiB}", "nodes[0].name: is not a text; quote it"),
        (
            "nodes:\n- {name: a, cpus: 4, memory: 1GiB}\n- {name: a, cpus: 4, memory: 1GiB}",
            "line 3: nodes[1].name: 'a'",
        ),
        (NODE + "vms: [{name: a, memory: 1GiB}, {name: a, memory: 1GiB}]", "line 2: vms[1].name: 'a' is the name of"),
        (NODE + "vms: [{name: a, node: n2, memory: 1GiB}]", "line 2: vms[0].node: there is no node 'n2'"),
        (NODE + "vms:\n- name: a\n  memory: 1GiB\n  placement: {nearTo: x}", "line 5: vms[0].placement: "),
        (NODE + "vms:\n- {name: a, memory: 1GiB, spec: {cpu: {cores: many}}}", "vms[0].spec: "),
        (NODE + "settings: {times: {start: 5}}", "settings.times.start: is not a text with a unit such as 90s"),
        (NODE + "settings: {cpu_overcommit: .inf}", "settings.cpu_overcommit: "),
        (NODE + "version: 2", "version: "),
        ("[1, 2]", "line 1: "),
        ("", "is empty"),
        ("nodes: [", "is no YAML"),
        ("a: 1\na: 2", "line 2: the key 'a' comes twice"),
        ("a: &x [1]\nb: *x", "line 2: aliases are not taken"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag"),
        ("a: 1\n---\nb: 1", "a second document"),
        ("? [a]\n: 1", "a key must be a text"),
        ("a: \x01", "is no YAML"),
    ],
)
def test_file_with_a_fault_is_refused_by_line_and_field(text: str, fault: str) -> None:
    faults = faults_of(text)

    assert fault in "\n".join(faults)


def test_file_with_many_faults_tells_them_all() -> None:
    faults = faults_of("nodes:\n- {name: n1, cpus: 0, memory: 1GiB}\n- {name: n2, cpus: 0, memory: x}\nhosts: []")

    assert len(faults) == 4


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 50_000 + "x"])
def test_deep_nesting_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(FileUnusable, match="nested more than 32 deep"):
        read_tree(text.encode(), "deep.yaml")


def test_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]

    with pytest.raises(FileUnusable, match="aliases"):
        read_tree("\n".join(lines).encode(), "bomb.yaml")


def test_huge_file_is_refused() -> None:
    with pytest.raises(FileUnusable, match="larger than 1 MiB"):
        read_tree(b"#" * (2**20 + 1), "huge.yaml", most_bytes=2**20)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(FileUnusable, match="is no YAML"):
        read_tree(b"\x80\x81\xff", "binary.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("12", 12),
        ("-1.5e3", -1500.0),
        ("~", None),
        ("'1'", "1"),
        ("true", True),
        ("1:30", "1:30"),
        (".", "."),
    ],
)
def test_plain_words_mean_what_they_do_in_yaml_1_2(text: str, value: object) -> None:
    found = read_tree(f"a: {text}".encode(), "x").value["a"]

    assert found == value
    assert type(found) is type(value)


def test_events_on_the_command_line_are_those_of_files() -> None:
    text = """
events:
- place: {vms: [{name: web, count: 3, cpus: 2, memory: 4GiB}], mode: all-or-nothing}
- drain: n1
- fail: [n1, n2]
- enable: n1
- balance:
- balance: {runs: 3}
- add_nodes: [{name: n9, cpus: 8, memory: 16GiB}]
- wait: 10m
"""
    words = (
        "place web count=3 cpus=2 memory=4GiB all-or-nothing",
        "drain n1",
        "fail n1 n2",
        "enable n1",
        "balance",
        "balance runs=3",
        "add-node n9 cpus=8 memory=16GiB",
        "wait 10m",
    )

    assert list(read_scenario(text.encode()).events) == [read_event(each) for each in words]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "does not begin with place, drain"),
        ("explode n1", "does not begin with place, drain"),
        ("drain", "drain: "),
        ("place web", "place.vms[0].memory: is missing"),
        ("place web memory=4GiB size=3", "place.vms[0].size: is not known"),
        ("place memory=4GiB", "place.vms: "),
        ("place web memory=4GiB count=0", "place.vms[0].count: "),
        ("place web memory=4GiB count=1000000000", "place.vms[0].count: "),
        ("balance often", "balance.often: is not known"),
        ("wait long", "wait: 'long' is not a duration"),
    ],
)
def test_event_with_a_fault_is_refused(text: str, fault: str) -> None:
    with pytest.raises(FileUnusable) as caught:
        read_event(text)

    assert fault in "\n".join(caught.value.faults)


def test_event_that_is_two_things_is_refused() -> None:
    with pytest.raises(FileUnusable, match="an event is exactly one of"):
        read_scenario(b"events:\n- {drain: n1, fail: n2}")


def test_every_kind_of_event_can_be_written_on_the_command_line() -> None:
    names = {name.replace("add_nodes", "add-node") for name in Event.model_fields}

    for name in names:
        try:
            read_event(name)
        except FileUnusable as error:
            assert "does not begin with" not in error.faults[0], name  # noqa: PT017 - the message, not the refusal
