"""Migrations with every fault at every boundary that they pass; see `tests/support/failure_harness_migrations.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import CELL
from tests.faults.scale import AT_ONCE, RUNS_EVERYTHING, stride_of
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_databases import DatabasePool, database_pool
from tests.support.failure_harness_faults import Boundary, Fault, Strike, faults_at
from tests.support.failure_harness_migrations import CASES, MigrationCase, Outcome, run_once
from tests.support.failure_harness_table import Cell

pytestmark = pytest.mark.timeout(900)

_SAMPLE_ON_POSTGRESQL = ("migrate",)

_SPARSENESS_OF_SAMPLE = 1 if RUNS_EVERYTHING else 2
"""Times the stride: all cases pass the same boundaries until the transfer, and each begins with another strike."""


def runs_wanted() -> list[object]:
    """Say what is to be run; each case may go to another process."""
    return [
        pytest.param(case, database, id=f"{case.name}-{database}")
        for database in FRESH_DATABASES
        for case in CASES
        if RUNS_EVERYTHING or database != "postgresql" or case.name in _SAMPLE_ON_POSTGRESQL
    ]


async def strike_all(
    case: MigrationCase, databases: DatabasePool, boundaries: Sequence[Boundary], stride: int
) -> list[tuple[Boundary, Fault, Outcome]]:
    """Do a run for every so many of all faults at all boundaries, beginning elsewhere for each case."""

    async def one(strike: Strike) -> Outcome:
        async with databases.one() as database:
            return await run_once(case, database, strike)

    strikes = [(boundary, fault) for boundary in boundaries for fault in faults_at(boundary)]
    chosen = strikes[CASES.index(case) % stride :: stride]
    outcomes = await asyncio.gather(*(one(Strike(boundary.index, fault)) for boundary, fault in chosen))
    return [(boundary, fault, outcome) for (boundary, fault), outcome in zip(chosen, outcomes, strict=True)]


@pytest.mark.parametrize(("case", "database"), runs_wanted())
async def test_migration_with_any_fault_at_any_boundary_leaves_the_vm_on_one_host(
    case: MigrationCase, database: str, tmp_path: Path, record_property: object
) -> None:
    assert callable(record_property)
    stride = stride_of(database) * _SPARSENESS_OF_SAMPLE
    async with database_pool(FRESH_DATABASES[database], tmp_path, AT_ONCE) as databases:
        async with databases.one() as first:
            clean = await run_once(case, first)
        outcomes = await strike_all(case, databases, clean.boundaries, stride)

    found = list(clean.faults)
    for boundary, fault, outcome in outcomes:
        faults = list(outcome.faults) if outcome.has_struck else ["the boundary was not reached"]
        record_property(CELL, Cell(database, case.name, str(boundary), fault, not faults).as_words())
        found += [f"{fault.name} at {boundary} (ended {outcome.state}): {words}" for words in faults]
    assert not found, "\n".join(found)
