"""Which known fault of the documented system each test named `test_fault_NN_...` keeps ours from having.

The numbers are those under which the project keeps them; the words here are only a reminder. A fault either has tests,
or belongs to a capability of a later release and says which. One that is refused today has both: its tests show that
nothing is pretended meanwhile.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
_NAME = re.compile(r"^test_fault_(\d\d)_\w+$")

FAULTS = {
    1: "a VM without a place counts as created",
    2: "a wish is recorded as the state",
    3: "two placements take the same room",
    4: "room is counted wrongly",
    5: "placing costs more with every VM",
    6: "a VM is restarted while its old host may still run it",
    7: "fail-over acts on too little evidence",
    8: "balancing recommends much and moves nothing",
    9: "drained VMs are where they were",
    10: "suspend happens in the database only",
    11: "doors are open unless closed",
    12: "a name can break the domain's XML",
    13: "the console's port is guessed from text",
    14: "detaching does nothing and succeeds",
    15: "snapshots have invented properties",
    16: "use is reported as none",
    17: "events are made up",
    18: "one slow call stalls all",
    19: "a request names any file of the host",
    20: "heartbeats overwrite what they should not",
    21: "pages overlap and miscount",
    22: "unknown words become defaults",
    23: "made-up nodes and VMs are mixed with real ones",
    24: "every error looks alike",
    25: "disks outlive their VM",
}

LATER = {
    6: "high availability: nothing restarts VMs by itself yet",
    7: "high availability: nothing declares a host dead and acts on it yet; a silent one only gets no new VMs",
}


def _covering_tests() -> dict[int, list[str]]:
    """Find the tests of each fault, as "file::name", without importing anything."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (match := _NAME.match(node.name)):
                found.setdefault(int(match[1]), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


COVERED = _covering_tests()


@pytest.mark.parametrize("number", FAULTS)
def test_fault_has_tests_or_belongs_to_a_later_release(number: int) -> None:
    assert COVERED.get(number) or LATER.get(number), f"no test is named test_fault_{number:02}_...: {FAULTS[number]}"


def test_fault_numbers_are_1_to_25_and_no_test_or_excuse_has_another() -> None:
    assert list(FAULTS) == list(range(1, 26))
    assert COVERED.keys() <= FAULTS.keys()
    assert LATER.keys() <= FAULTS.keys()


def test_faults_that_only_a_later_release_can_have_are_few_and_known() -> None:
    assert sorted(FAULTS.keys() - COVERED.keys()) == [6, 7]
