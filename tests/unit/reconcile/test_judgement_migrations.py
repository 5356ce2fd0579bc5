"""Which reports of a VM are left to its migration."""

from __future__ import annotations

import pytest

from controlplane.domain.migration import Migration
from controlplane.domain.vm import PowerState
from controlplane.reconcile.judgement import is_left_to_migration
from tests.support.builders import START_OF_TIME, make_vm

UNSETTLED = Migration("vm", "op", "a", "b", START_OF_TIME)
SETTLED = Migration("vm", "op", "a", "b", START_OF_TIME, is_settled=True)
RUNNING, MIGRATING, UNKNOWN = PowerState.RUNNING, PowerState.MIGRATING, PowerState.UNKNOWN


@pytest.mark.parametrize(("on", "state", "reporter", "migration", "alive", "busy", "left"), [
    ("a", RUNNING, "a", None, True, True, False),
    ("a", MIGRATING, "c", UNSETTLED, True, True, False),
    ("a", RUNNING, "a", UNSETTLED, True, True, False),  # it waits for its turn: the host tells as always
    ("a", MIGRATING, "a", UNSETTLED, True, True, True),
    ("a", MIGRATING, "b", UNSETTLED, True, True, True),
    ("a", UNKNOWN, "a", UNSETTLED, False, False, True),
    ("a", UNKNOWN, "b", UNSETTLED, True, False, True),
    ("b", RUNNING, "b", SETTLED, True, True, False),
    ("b", RUNNING, "a", SETTLED, True, True, True),  # a report that was on its way when it left
    ("b", RUNNING, "a", SETTLED, True, False, False),  # alive on both is a conflict
    ("b", RUNNING, "a", SETTLED, False, False, True),
    ("b", RUNNING, "c", SETTLED, True, False, False),
])  # fmt: skip
def test_report_is_left_to_the_migration_or_not(
    on: str, state: int, reporter: str, migration: Migration | None, alive: bool, busy: bool, left: bool
) -> None:
    vm = make_vm(node_id=on, power_state=state)
    assert is_left_to_migration(vm, reporter, migration, is_alive=alive, is_busy=busy) is left
