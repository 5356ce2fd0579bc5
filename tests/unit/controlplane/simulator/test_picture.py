"""Pictures hold what they are to show, whatever the names."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from controlplane.simulator.cluster_file import ClusterFile
from controlplane.simulator.picture import MAX_BARS, draw
from controlplane.simulator.run import simulate
from controlplane.simulator.scenario import Scenario, read_event

SVG = "{http://www.w3.org/2000/svg}"


def picture_of(nodes: int, *events: str, title: str = "t", vms: list[dict[str, Any]] | None = None) -> Any:
    found = ClusterFile.model_validate(
        {"nodes": [{"name": f"n{n}", "cpus": 4, "memory": "8GiB"} for n in range(nodes)], "vms": vms or []}
    )
    result = simulate(found, Scenario(events=tuple(read_event(event) for event in events)))
    return etree.fromstring(draw(result, title).encode())


def test_vm_is_a_block_of_each_bar_before_and_after() -> None:
    vms = [{"name": "web", "node": "n0", "memory": "2GiB"}]
    picture = picture_of(2, "drain n0", vms=vms)

    tips = [each.text for each in picture.iter(f"{SVG}title")]
    assert tips == ["web: 1 vCPUs, 2 GiB"] * 4
    assert sum("came" in each.get("class", "") for each in picture.iter(f"{SVG}rect")) == 2


def test_picture_is_drawn_for_light_and_dark() -> None:
    style = picture_of(1).find(f"{SVG}style").text

    assert "prefers-color-scheme: dark" in style
    assert "var(" not in style


@pytest.mark.parametrize("name", ["<script>&\"'", "ü" * 200, "]]>", "\ud7ff\u202e", "a\u0000b\ufffe"])
def test_hostile_title_is_text(name: str) -> None:
    assert picture_of(1, title=name).tag == f"{SVG}svg"


def test_many_nodes_are_a_grid_with_a_cell_each() -> None:
    picture = picture_of(MAX_BARS + 1)

    assert len(list(picture.iter(f"{SVG}title"))) == 2 * (MAX_BARS + 1)


def test_cluster_without_nodes_is_drawn() -> None:
    assert picture_of(0).tag == f"{SVG}svg"
