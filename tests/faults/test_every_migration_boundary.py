"""Migrations, and drains that begin them, with every fault at every boundary that they pass.

See `tests/support/failure_harness_migrations.py` and `failure_harness_drains.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.scale import RUNS_EVERYTHING
from tests.faults.strikes import faults_found
from tests.support import failure_harness_drains as drains
from tests.support import failure_harness_migrations as migrations
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_migrations import MigrationCase

pytestmark = pytest.mark.timeout(900)

CASES = (*migrations.CASES, *drains.CASES)

_SAMPLE_ON_POSTGRESQL = ("migrate",)

_SPARSENESS_OF_SAMPLE = 2
"""Times the stride: all cases pass the same boundaries until the transfer, and each begins with another strike."""

_SPARSENESS_OF_DRAINS = 12
"""Most boundaries of a drain are those of its migration."""


def runs_wanted() -> list[object]:
    """Say what is to be run; each case may go to another process."""
    return [
        pytest.param(case, database, id=f"{case.name}-{database}")
        for database in FRESH_DATABASES
        for case in CASES
        if RUNS_EVERYTHING or database != "postgresql" or case.name in _SAMPLE_ON_POSTGRESQL
    ]


def _sparseness_of(case: MigrationCase) -> int:
    if RUNS_EVERYTHING:
        return 1
    return _SPARSENESS_OF_DRAINS if case in drains.CASES else _SPARSENESS_OF_SAMPLE


@pytest.mark.parametrize(("case", "database"), runs_wanted())
async def test_migration_with_any_fault_at_any_boundary_leaves_the_vm_on_one_host(
    case: MigrationCase, database: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = await faults_found(
        case, database, tmp_path, record_property, first=CASES.index(case), sparseness=_sparseness_of(case)
    )
    assert not found, "\n".join(found)
