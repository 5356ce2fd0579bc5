"""The mock's state file is its owner's alone: it holds passwords of consoles."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hypervisor.mock.store import write_private


@pytest.mark.parametrize("mode_before", [None, 0o644, 0o600])
def test_file_is_for_its_owner_alone_whatever_it_was(tmp_path: Path, mode_before: int | None) -> None:
    path = tmp_path / "state.json"
    if mode_before is not None:
        path.write_text("old and longer than what comes")
        path.chmod(mode_before)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
