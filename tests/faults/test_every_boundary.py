"""Every kind of operation with every fault at every boundary that it passes.

Whatever goes wrong and wherever, in the end the operation has ended, its effect is there if and only if it says so, and
claims, rows, domains and images belong together. See `tests/support/failure_harness_*.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import CELL
from tests.faults.scale import AT_ONCE, is_wanted, stride_of
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_case import Case
from tests.support.failure_harness_cases import CASES
from tests.support.failure_harness_databases import DatabasePool, database_pool
from tests.support.failure_harness_faults import Boundary, Fault, Strike, faults_at
from tests.support.failure_harness_scene import Outcome, run_once
from tests.support.failure_harness_table import Cell

pytestmark = pytest.mark.timeout(900)


def runs_wanted() -> list[object]:
    """Say what is to be run; each case may go to another process."""
    return [
        pytest.param(case, database, id=f"{case.name}-{database}")
        for database in FRESH_DATABASES
        for case in CASES
        if is_wanted(case.name, database)
    ]


class Runs:
    """Does runs, each in a directory of its own."""

    def __init__(self, case: Case, databases: DatabasePool, directory: Path) -> None:
        self._case = case
        self._databases = databases
        self._directory = directory
        self._numbers = itertools.count()

    async def one(self, strike: Strike | None = None) -> Outcome:
        """Do one."""
        async with self._databases.one() as database:
            directory = self._directory / str(next(self._numbers))
            directory.mkdir()
            return await run_once(self._case, database, directory, strike)

    async def _strike(self, strike: Strike) -> Outcome:
        """Do one, in which even a defect of the harness shall not hide what becomes of the others."""
        try:
            return await self.one(strike)
        except Exception as error:  # noqa: BLE001
            return Outcome((), True, "nothing", [f"the run was broken off by {error!r}"])

    async def at_all(self, boundaries: Sequence[Boundary], stride: int) -> list[tuple[Boundary, Fault, Outcome]]:
        """Do one for each fault at each boundary, or for every so many of them, beginning elsewhere for each case."""
        strikes = [(boundary, fault) for boundary in boundaries for fault in faults_at(boundary)]
        chosen = strikes[CASES.index(self._case) % stride :: stride]
        outcomes = await asyncio.gather(*(self._strike(Strike(boundary.index, fault)) for boundary, fault in chosen))
        return [(boundary, fault, outcome) for (boundary, fault), outcome in zip(chosen, outcomes, strict=True)]


@pytest.mark.parametrize(("case", "database"), runs_wanted())
async def test_operation_with_any_fault_at_any_boundary_leaves_nothing_half_done(
    case: Case, database: str, tmp_path: Path, record_property: object
) -> None:
    assert callable(record_property)
    async with database_pool(FRESH_DATABASES[database], tmp_path, AT_ONCE) as databases:
        runs = Runs(case, databases, tmp_path)
        clean = await runs.one()
        outcomes = await runs.at_all(clean.boundaries, stride_of(database))

    found = list(clean.faults)
    for boundary, fault, outcome in outcomes:
        faults = list(outcome.faults) if outcome.has_struck else ["the boundary was not reached"]
        record_property(CELL, Cell(database, case.name, str(boundary), fault, not faults).as_words())
        found += [f"{fault.name} at {boundary} (ended {outcome.state}): {words}" for words in faults]
    assert not found, "\n".join(found)
