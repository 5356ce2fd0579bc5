"""Clusters in the text format of htools, and what hspace and hbal say about them where they are installed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import htools
from benchmarks.htools import Guest, Host, Layout
from benchmarks.packing import SHAPES, count_placed

needs_htools = pytest.mark.skipif(not htools.is_installed(), reason=htools.NOT_INSTALLED)
LAYOUT = Layout(
    (Host("h1", 8, 16384), Host("h2", 8, 16384)),
    (Guest("a", 2, 4096, "h1"), Guest("b", 2, 4096, "h1")),
)


def test_data_has_five_sections_of_which_tags_are_empty() -> None:
    sections = htools.to_data(LAYOUT).split("\n\n")

    assert [section.count("\n") for section in sections[:3]] == [0, 1, 1]
    assert sections[1].splitlines()[0] == "h1|16385|0|8193|10000000|10000000|8|M|uuid-1|1||N|0|0|1.0"
    assert sections[2].splitlines()[0] == "a|4096|0|2|running|Y|h1||ext||0|-|N"
    assert sections[3].startswith("\n|")


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters_to_compare_by_hold_no_more_than_there_is(shape: str) -> None:
    layout = SHAPES[shape](random.Random(3), 8)

    for host in layout.hosts:
        guests = [guest for guest in layout.guests if guest.host == host.name]
        assert sum(guest.cpus for guest in guests) <= host.cpus
        assert sum(guest.memory_mib for guest in guests) <= host.memory_mib


def test_moved_guests_are_elsewhere() -> None:
    assert [guest.host for guest in htools.moved(LAYOUT, {"b": "h2"}).guests] == ["h1", "h2"]


@needs_htools
def test_as_many_fit_as_hspace_says(tmp_path: Path) -> None:
    assert htools.count_fitting(LAYOUT, 2, 4096, tmp_path) == count_placed(LAYOUT, 2, 4096) == 6


@needs_htools
def test_hbal_moves_one_guest_and_scores_it_better(tmp_path: Path) -> None:
    balanced = htools.balance(LAYOUT, tmp_path)

    assert balanced.move_count == 1
    assert sorted(balanced.host_of.values()) == ["h1", "h2"]
    assert balanced.score_after < balanced.score_before == htools.score(LAYOUT, tmp_path)
