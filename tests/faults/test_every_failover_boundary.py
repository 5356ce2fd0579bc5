"""Failovers, and what else starts VMs elsewhere, with every fault at every boundary that they pass.

See `tests/support/failure_harness_failovers.py` and `failure_harness_restarts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.scale import RUNS_EVERYTHING
from tests.faults.strikes import faults_found
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_failovers import FAILOVER
from tests.support.failure_harness_migrations import MigrationCase
from tests.support.failure_harness_restarts import CASES

pytestmark = pytest.mark.timeout(900)

_SPARSENESS_OF_SAMPLE = 3
"""Times the stride, of all but the failover: they have its steps."""


def runs_wanted() -> list[object]:
    """Say what is to be run; each case may go to another process."""
    return [
        pytest.param(case, database, id=f"{case.name}-{database}")
        for database in FRESH_DATABASES
        for case in CASES
        if RUNS_EVERYTHING or database != "postgresql" or case is FAILOVER
    ]


@pytest.mark.parametrize(("case", "database"), runs_wanted())
async def test_failover_with_any_fault_at_any_boundary_leaves_the_vm_on_one_host(
    case: MigrationCase, database: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    sparseness = 1 if RUNS_EVERYTHING or case is FAILOVER else _SPARSENESS_OF_SAMPLE
    found = await faults_found(
        case, database, tmp_path, record_property, first=CASES.index(case), sparseness=sparseness
    )
    assert not found, "\n".join(found)
