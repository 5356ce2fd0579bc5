"""One case in which a VM changes its host, without a fault and with every fault at every boundary, as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.conftest import CELL
from tests.faults.scale import AT_ONCE, stride_of
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_databases import DatabasePool, database_pool
from tests.support.failure_harness_faults import Boundary, Fault, Strike, faults_at
from tests.support.failure_harness_migrations import MigrationCase, Outcome, run_once
from tests.support.failure_harness_table import Cell

_LOOKS_BY_THE_CLOCK = 2
"""Boundaries that a clean run on a slow machine passes beyond others: who waits long looks whether the host lives. A
strike at the last ones, or at those that only then have their index, is not in the table if it met nothing."""


async def _strike_all(
    case: MigrationCase, databases: DatabasePool, boundaries: Sequence[Boundary], first: int, stride: int
) -> list[tuple[Boundary, Fault, Outcome]]:
    async def one(strike: Strike) -> Outcome:
        async with databases.one() as database:
            return await run_once(case, database, strike)

    strikes = [(boundary, fault) for boundary in boundaries for fault in faults_at(boundary)]
    chosen = strikes[first % stride :: stride]
    outcomes = await asyncio.gather(*(one(Strike(boundary.index, fault)) for boundary, fault in chosen))
    return [(boundary, fault, outcome) for (boundary, fault), outcome in zip(chosen, outcomes, strict=True)]


async def faults_found(
    case: MigrationCase,
    database: str,
    directory: Path,
    record_property: Callable[[str, object], None],
    *,
    first: int,
    sparseness: int = 1,
) -> list[str]:
    """Say whatever is not as it must be after each run, and note each in the table.

    Args:
        first: which strike is the first one; each case should begin with another.
        sparseness: times the stride.
    """
    async with database_pool(FRESH_DATABASES[database], directory, AT_ONCE) as databases:
        async with databases.one() as empty:
            clean = await run_once(case, empty)
        outcomes = await _strike_all(case, databases, clean.boundaries, first, stride_of(database) * sparseness)

    found = list(clean.faults)
    for boundary, fault, outcome in outcomes:
        if not outcome.has_struck and 0 < len(clean.boundaries) - len(outcome.boundaries) <= _LOOKS_BY_THE_CLOCK:
            continue
        faults = list(outcome.faults) if outcome.has_struck else ["the boundary was not reached"]
        record_property(CELL, Cell(database, case.name, str(boundary), fault, not faults).as_words())
        found += [f"{fault.name} at {boundary} (ended {outcome.state}): {words}" for words in faults]
    return found
