"""Methods on VMs have a test without hardware, and one on a real guest or none said: docs/method-coverage.md holds."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.contract.test_filled_methods import FILLED

_ROOT = Path(__file__).parents[2]
_LATER = "comes with live migration"
_NONE = "none"
"""No test does it to a real guest."""
_ROW = re.compile(r"^\| (?P<method>[A-Za-z]+) \| (?P<plain>[^|]+) \| (?P<real>[^|]+) \|$")

TABLES = {
    "VMService": FILLED["limiquantix.compute.v1.VMService"],
    "HaService": FILLED["limiquantix.compute.v1.HaService"],
    "NodeService": FILLED["limiquantix.compute.v1.NodeService"] & {"AnnounceShutdown"},
    "NodeDaemonService": FILLED["limiquantix.node.v1.NodeDaemonService"],
}


def rows_of(service: str) -> dict[str, tuple[str, str]]:
    text = (_ROOT / "docs" / "method-coverage.md").read_text().partition(f"## {service}\n")[2].partition("\n## ")[0]
    found = [match for line in text.splitlines() if (match := _ROW.match(line)) and match["method"] != "method"]
    return {match["method"]: (match["plain"], match["real"]) for match in found}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((_ROOT / "tests" / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("service", TABLES)
def test_every_filled_method_has_a_row_and_no_other_claims_to(service: str) -> None:
    done = {method for method, row in rows_of(service).items() if row != (_LATER, _LATER)}
    assert done == TABLES[service]


@pytest.mark.parametrize("service", TABLES)
def test_every_test_named_is_there(service: str) -> None:
    cells = [cell for row in rows_of(service).values() for cell in row if cell != _LATER]
    named = [cell.strip("`") for cell in cells if cell != _NONE]
    missing = []
    for name in named:
        file, _, test = name.partition("::")
        if not (_ROOT / "tests" / file).is_file() or test.partition("[")[0] not in names_in(file):
            missing.append(name)
    assert missing == []
    assert len(cells) == 2 * len(TABLES[service])
