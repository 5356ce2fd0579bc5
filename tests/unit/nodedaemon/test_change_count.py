"""Counts that order what is said about a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor.types import PowerState
from nodedaemon.change_count import DataDirError, StateChanges, next_boot_number

RUNNING, STOPPED = PowerState.RUNNING, PowerState.STOPPED


def counted(changes: StateChanges, vm_id: str, state: PowerState) -> int:
    change = changes.observe(vm_id, state, changes.position)
    assert change is not None
    return change.count


def test_boot_number_grows_with_every_start_and_is_at_least_the_minutes(tmp_path: Path) -> None:
    assert next_boot_number(tmp_path / "new", 600.0) == 10
    assert next_boot_number(tmp_path / "new", 600.0) == 11
    assert next_boot_number(tmp_path / "new", 0.0) == 12
    assert next_boot_number(tmp_path / "new", 60_000.0) == 1000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["boot-number"]


def test_boot_number_of_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "boot-number").write_text("many")
    with pytest.raises(DataDirError, match="boot-number"):
        next_boot_number(tmp_path, 0)


def test_data_dir_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="cannot be used"):
        next_boot_number(tmp_path / "file", 0)


def test_same_state_keeps_its_count_and_a_new_one_gets_a_larger() -> None:
    changes = StateChanges(5)
    first = counted(changes, "a", STOPPED)
    assert first >> 32 == 5
    assert counted(changes, "a", STOPPED) == first
    assert counted(changes, "a", RUNNING) > first
    assert counted(changes, "b", STOPPED) > first


def test_counts_after_a_restart_are_larger_than_all_before() -> None:
    before = StateChanges(5)
    assert counted(StateChanges(6), "a", RUNNING) > max(counted(before, str(n), RUNNING) for n in range(100))


def test_state_read_before_a_newer_one_was_counted_is_refused() -> None:
    changes = StateChanges(1)
    counted(changes, "a", STOPPED)
    slow_reader_began_at = changes.position
    newest = counted(changes, "a", RUNNING)
    assert changes.observe("a", STOPPED, slow_reader_began_at) is None
    same = changes.observe("a", RUNNING, slow_reader_began_at)
    assert same is not None
    assert same.count == newest


def test_change_of_another_vm_does_not_disturb_a_reading() -> None:
    changes = StateChanges(1)
    counted(changes, "a", STOPPED)
    began_at = changes.position
    counted(changes, "b", RUNNING)
    assert changes.observe("a", RUNNING, began_at) is not None


def test_removal_gets_a_larger_count_and_refuses_older_readings() -> None:
    changes = StateChanges(1)
    last = counted(changes, "a", RUNNING)
    began_at = changes.position
    gone = changes.remove("a", began_at)
    assert gone is not None
    assert gone.count > last
    assert gone.previous is RUNNING
    assert changes.observe("a", RUNNING, began_at) is None
    assert counted(changes, "a", STOPPED) > gone.count


def test_removal_read_before_the_vm_was_created_again_is_refused() -> None:
    changes = StateChanges(1)
    began_at = changes.position
    counted(changes, "a", STOPPED)
    assert changes.remove("a", began_at) is None


def test_change_time_is_unknown_for_what_was_before_the_start() -> None:
    changes = StateChanges(1, now_s=lambda: 77.0)
    old = changes.observe("a", RUNNING, changes.position)
    changes.warm_up()
    new = changes.observe("a", STOPPED, changes.position)
    assert old is not None
    assert new is not None
    assert (old.changed_at_s, new.changed_at_s) == (None, 77.0)
    assert new.previous is RUNNING


def test_counts_grow_over_starts_and_changes_whatever_the_clock_does(tmp_path: Path) -> None:
    year_s = 365 * 86_400.0
    clock_s = [1.7e9]
    counts: list[int] = []
    for jump_s in (0.0, 20 * year_s, -40 * year_s, 60.0, -1.7e9, -1e6, 80 * year_s, -1.0):
        clock_s[0] += jump_s
        changes = StateChanges(next_boot_number(tmp_path, clock_s[0]), now_s=lambda: clock_s[0])
        changes.warm_up()
        for state, drift_s in ((STOPPED, 3600.0), (RUNNING, -year_s), (STOPPED, year_s), (RUNNING, 0.0)):
            clock_s[0] += drift_s
            counts.append(counted(changes, "a", state))
        gone = changes.remove("a", changes.position)
        assert gone is not None
        counts.append(gone.count)
    assert counts == sorted(set(counts))
    assert counts[-1] < 2**63  # what the contract takes


def test_reading_is_refused_by_counts_alone_when_the_clock_was_set_back() -> None:
    clock_s = [1000.0]
    changes = StateChanges(1, now_s=lambda: clock_s[0])
    changes.warm_up()
    counted(changes, "a", STOPPED)
    began_at = changes.position
    clock_s[0] = 10.0
    newest = changes.observe("a", RUNNING, changes.position)
    clock_s[0] = 5000.0
    assert newest is not None
    assert newest.changed_at_s == 10.0
    assert changes.observe("a", STOPPED, began_at) is None
