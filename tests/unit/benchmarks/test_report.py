"""What people and programs get to read."""

from __future__ import annotations

import json

import pytest

from benchmarks.machine import Machine
from benchmarks.measurement import Goal, Limit, Pair, Section, compare
from benchmarks.report import to_json, to_text

MACHINE = Machine(cpu_model="Test CPU", cpu_count=2, memory_mib=24 * 1024, kernel="6.1", python="3.11.7", load=0.25)


def test_text_begins_with_the_machine() -> None:
    first = to_text(MACHINE, []).splitlines()[0]
    assert first == "machine: 2 CPUs (Test CPU), 24 GiB, Linux 6.1, Python 3.11.7, load 0.2 before the run"


@pytest.mark.parametrize(("ours", "verdict"), [(12.0, "goal 1.25 met, later 1.05"), (13.0, "goal 1.25 missed")])
def test_text_of_a_row_with_a_goal_says_whether_it_is_met(ours: float, verdict: str) -> None:
    row = compare("all four", [Pair(ours, 10.0)] * 2, "ms", Goal(1.25, 1.05))
    text = to_text(MACHINE, [Section("lifecycle", "title", (row,))])
    assert verdict in text
    assert f"{ours:.1f} ms" in text


def test_text_of_a_skipped_section_says_why_and_shows_no_table() -> None:
    text = to_text(MACHINE, [Section("lifecycle", "title", skipped="libvirt-python is not installed")])
    assert text.endswith("lifecycle: title\n  left out: libvirt-python is not installed")


def test_text_of_a_single_pair_shows_no_spread() -> None:
    text = to_text(MACHINE, [Section("memory", "title", (compare("PSS", [Pair(50.0, 25.0)], "MiB"),))])
    assert "2.00  " in text
    assert "2.00..2.00" not in text


def test_text_shows_figures_by_group() -> None:
    text = to_text(
        MACHINE, [Section("lifecycle", "title", figures={"client, mean ms": {"start": 12.34, "stop": 150.6}})]
    )
    assert text.endswith("  client, mean ms: start 12.3, stop 151")


def test_json_holds_ratio_spread_and_goal_of_every_row() -> None:
    row = compare("all four", [Pair(1.0, 1.0), Pair(3.0, 2.0), Pair(4.0, 2.0)], "ms", Goal(1.25, 1.05))
    document = json.loads(to_json(MACHINE, [Section("lifecycle", "title", (row,), ("a note",))]))
    assert document["machine"]["cpu_count"] == 2
    (section,) = document["sections"]
    assert section["notes"] == ["a note"]
    (shown,) = section["rows"]
    assert shown["ratio"] == {"median": 1.5, "lowest": 1.0, "highest": 2.0, "pair_count": 3}
    assert shown["goal"] == {"limit": 1.25, "later": 1.05, "better": "lower"}


@pytest.mark.parametrize(("ours", "verdict"), [(10.0, "goal 10 ms met"), (10.5, "goal 10 ms missed")])
def test_text_of_a_row_with_a_limit_of_its_own_says_whether_it_is_met(ours: float, verdict: str) -> None:
    row = compare("ListVMs p50", [Pair(ours, 1.0)] * 2, "ms", limit=Limit(10.0))
    assert to_text(MACHINE, [Section("scale", "title", (row,))]).endswith(verdict)


def test_text_of_a_goal_without_a_later_one_names_none() -> None:
    row = compare("claims", [Pair(30.0, 2.0)], "/s", Goal(10.0, better="higher"))
    assert to_text(MACHINE, [Section("claims", "title", (row,))]).endswith("goal 10 met")
