"""What outlives the daemon: on the disk before it counts, and nothing in it falls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limiquantix.errors import Reason, Unavailable
from nodedaemon.change_count import DataDirError
from nodedaemon.self_fencing.lease import Known
from nodedaemon.self_fencing.memory import FILE_NAME, open_memory

VM_ID = "11111111-1111-4111-8111-111111111111"
ARMED = Known(epoch=3, fence_token=7, ha_version=2, is_armed=True)


async def test_what_was_remembered_is_there_in_the_next_process(tmp_path: Path) -> None:
    memory = open_memory(tmp_path)
    assert (memory.known, memory.protected) == (Known(), frozenset())
    await memory.remember(ARMED)
    await memory.protect(VM_ID, is_protected=True)
    again = open_memory(tmp_path)
    assert again.known == ARMED
    assert sorted(again.protected) == [VM_ID]
    await again.protect(VM_ID, is_protected=False)
    assert open_memory(tmp_path).protected == frozenset()
    memory.close()
    again.close()


async def test_nothing_falls_whatever_is_remembered_later(tmp_path: Path) -> None:
    memory = open_memory(tmp_path)
    await memory.remember(ARMED)
    await memory.remember(Known(epoch=2, fence_token=8, ha_version=1, is_armed=False))
    assert memory.known == open_memory(tmp_path).known == Known(3, 8, 2, True)
    memory.close()


async def test_what_cannot_be_written_is_not_taken(tmp_path: Path) -> None:
    memory = open_memory(tmp_path)
    (tmp_path / FILE_NAME).with_suffix(".part").mkdir()
    with pytest.raises(Unavailable) as refused:
        await memory.remember(ARMED)
    assert refused.value.reason == Reason.STATE_UNAVAILABLE
    assert memory.known == Known()
    memory.close()


async def test_file_is_flushed_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    flush, rename = os.fsync, Path.replace

    def noted_flush(descriptor: int) -> None:
        steps.append("flush")
        flush(descriptor)

    def noted_rename(path: Path, to: Path) -> Path:
        steps.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(Path, "replace", noted_rename)
    memory = open_memory(tmp_path)
    await memory.remember(ARMED)
    assert steps == ["flush", "rename", "flush"]
    memory.close()


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', "[]"])
def test_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DataDirError, match="end all VMs"):
        open_memory(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == content
