"""Storage that is gone is noticed, and never waited for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nodedaemon.storage_domains import ID_FILE, read_storage_domain
from nodedaemon.storage_health import StorageHealth


async def test_storage_that_answers_is_not_lost(tmp_path: Path) -> None:
    health = StorageHealth(tmp_path)
    await health.look()
    assert not (tmp_path / ID_FILE).exists()  # looking makes nothing
    read_storage_domain(tmp_path)
    await health.look()
    assert tuple(health.lost_ids) == ()


async def test_storage_that_vanished_is_lost_until_it_is_back(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    storage_id = read_storage_domain(root).id
    health = StorageHealth(root)
    await health.look()
    root.rename(tmp_path / "away")
    await health.look()
    assert tuple(health.lost_ids) == (storage_id,)
    (tmp_path / "away").rename(root)
    await health.look()
    assert tuple(health.lost_ids) == ()


async def test_storage_that_hangs_is_lost_and_looked_at_by_one_thread_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_id = read_storage_domain(tmp_path).id
    health = StorageHealth(tmp_path, answer_deadline_s=0.1)
    released, calls, ask = threading.Event(), [], os.statvfs

    def hang(path: Path) -> os.statvfs_result:
        calls.append(path)
        if len(calls) > 1:
            released.wait(60)
        return ask(path)

    monkeypatch.setattr(os, "statvfs", hang)
    while len(calls) < 2:  # its thread may be slow, too
        await health.look()
    for _ in range(3):
        await health.look()
        assert tuple(health.lost_ids) == (storage_id,)
    assert len(calls) == 2
    released.set()
    monkeypatch.undo()
    health_again = StorageHealth(tmp_path, answer_deadline_s=30)
    await health_again.look()
    assert tuple(health_again.lost_ids) == ()


async def test_storage_that_became_read_only_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_id = read_storage_domain(tmp_path).id
    found = os.statvfs(tmp_path)
    fields = [*found]
    fields[8] |= os.ST_RDONLY  # f_flag
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    health = StorageHealth(tmp_path)
    await health.look()
    assert tuple(health.lost_ids) == (storage_id,)
