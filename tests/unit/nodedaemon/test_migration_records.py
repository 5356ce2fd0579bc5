"""Records of migrations that several tasks keep at the same moment."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from pathlib import Path

from nodedaemon.migration_records import Admission, Departure, MigrationRecords

VM = str(uuid.uuid4())
COMES = Admission(VM, 7, "source", "target", "digest", 0.0, copies_disks=False, was_off=False, is_used=True)
GOES = Departure(VM, 7, "target", "uri", copies_disks=False, was_off=False, began_at_s=0.0)


def records(directory: Path) -> MigrationRecords:
    return MigrationRecords(directory, lambda: 0.0)


def kinds_of_files(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir())


async def test_record_kept_by_many_at_once_is_the_last_one_also_on_the_disk(tmp_path: Path) -> None:
    kept = records(tmp_path)
    await asyncio.gather(
        *(kept.keep_departure(dataclasses.replace(GOES, pass_count=number)) for number in range(20)),
        *(kept.keep_admission(dataclasses.replace(COMES, generation=number)) for number in range(20)),
    )
    read = records(tmp_path)
    await read.load()
    assert (read.departure(VM), read.admission(VM)) == (kept.departure(VM), kept.admission(VM))
    assert kept.departure(VM) == dataclasses.replace(GOES, pass_count=19)
    assert kinds_of_files(tmp_path) == [".json", ".json"]


async def test_arrival_that_is_told_twice_is_noted_once_and_not_after_the_end(tmp_path: Path) -> None:
    kept = records(tmp_path)
    await kept.keep_admission(COMES)

    await asyncio.gather(kept.keep_arrival(COMES), kept.keep_arrival(COMES))
    assert kept.admission(VM) == dataclasses.replace(COMES, has_arrived=True)

    await kept.keep_admission(COMES)
    await asyncio.gather(kept.forget_admission(VM), kept.keep_arrival(COMES))
    assert kept.admission(VM) is None
    assert kinds_of_files(tmp_path) == []


async def test_write_whose_task_is_cancelled_is_over_before_the_next_begins(tmp_path: Path) -> None:
    kept = records(tmp_path)
    writing = asyncio.create_task(kept.keep_departure(GOES))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, kept.keep_departure(dataclasses.replace(GOES, pass_count=1)), return_exceptions=True)
    read = records(tmp_path)
    await read.load()
    assert read.departure(VM) == dataclasses.replace(GOES, pass_count=1)
