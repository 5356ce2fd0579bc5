"""What this host knows of migrations, on the disk before it acts: one small file for each VM and role.

A token is kept as its digest: whoever reads the file cannot let anything in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import structlog

from limiquantix.errors import Reason, Unavailable

RecordT = TypeVar("RecordT", "Departure", "Admission")

KEEP_S: Final = 30 * 86_400.0
"""How long what is over is remembered; a command of an older migration does not come so late."""
_FORMAT: Final = 1
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """A VM that may come, on the target.

    `made` are files below the storage path that were made for it and nobody else's. `is_used` says that its token was
    taken, `has_arrived` that the VM is this host's: from then on its files are no leftovers of a migration.
    """

    vm_id: str
    generation: int
    source_node_id: str
    target_node_id: str
    token_digest: str
    expires_at_s: float
    copies_disks: bool
    was_off: bool
    made: tuple[str, ...] = ()
    is_used: bool = False
    has_arrived: bool = False


@dataclass(frozen=True, slots=True)
class Departure:
    """A migration from this host; `phase` and what follows are the last that was known of it.

    `copies_disks` was checked against the ids of both storages when it began. `is_tidy` says that nothing of the VM is
    left to remove.
    """

    vm_id: str
    generation: int
    target_node_id: str
    target_uri: str
    copies_disks: bool
    was_off: bool
    began_at_s: float
    was_running: bool = True
    is_over: bool = False
    is_tidy: bool = False
    phase: str = "preparing"
    is_post_copy: bool = False
    error: str = ""
    downtime_ms: int = 0
    elapsed_ms: int = 0
    transferred_bytes: int = 0
    disk_transferred_bytes: int = 0
    memory_page_count: int = 0
    pass_count: int = 0


class MigrationRecords:
    """The records. Each is written by one task at a time, so that what is on the disk is what was kept last.

    Args:
        directory: where the files are; None keeps them in memory only.
        now_s: Unix time.
    """

    def __init__(self, directory: Path | None, now_s: Callable[[], float]) -> None:
        self._directory = directory
        self._now_s = now_s
        self._admissions: dict[str, Admission] = {}
        self._departures: dict[str, Departure] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def load(self) -> None:
        """Read what an earlier process wrote; what cannot be read is told and left where it is."""
        if self._directory is not None:
            self._admissions = await asyncio.to_thread(self._read_all, "target", Admission)
            self._departures = await asyncio.to_thread(self._read_all, "source", Departure)
        old = [each for each in self._departures.values() if each.is_over and each.began_at_s < self._now_s() - KEEP_S]
        for departure in old:
            await self.forget_departure(departure.vm_id)

    def admission(self, vm_id: str) -> Admission | None:
        """Return the newest admission of a VM."""
        return self._admissions.get(vm_id)

    def admissions(self) -> list[Admission]:
        """Return all."""
        return list(self._admissions.values())

    def departure(self, vm_id: str) -> Departure | None:
        """Return the newest departure of a VM."""
        return self._departures.get(vm_id)

    def departures(self) -> list[Departure]:
        """Return all."""
        return list(self._departures.values())

    async def keep_admission(self, admission: Admission) -> None:
        """Write an admission; once this returns it is on the disk.

        Raises:
            Unavailable: it could not be written.
        """
        async with self._lock(admission.vm_id, "target"):
            await self._write(admission.vm_id, "target", admission)
            self._admissions[admission.vm_id] = admission

    async def keep_arrival(self, admission: Admission) -> None:
        """Write that the VM has come, unless the admission is not the newest any more: over, or noted so already.

        The hypervisor tells of it, and so does whoever ends the migration, perhaps at the same moment.

        Raises:
            Unavailable: it could not be written.
        """
        async with self._lock(admission.vm_id, "target"):
            if self._admissions.get(admission.vm_id) == admission:
                arrived = dataclasses.replace(admission, has_arrived=True)
                await self._write(admission.vm_id, "target", arrived)
                self._admissions[admission.vm_id] = arrived

    async def keep_departure(self, departure: Departure) -> None:
        """Write a departure; as `keep_admission`."""
        async with self._lock(departure.vm_id, "source"):
            await self._write(departure.vm_id, "source", departure)
            self._departures[departure.vm_id] = departure

    async def forget_admission(self, vm_id: str) -> None:
        """Remove an admission. Fine if there is none."""
        async with self._lock(vm_id, "target"):
            if self._admissions.pop(vm_id, None) is not None:
                await self._remove(vm_id, "target")

    async def forget_departure(self, vm_id: str) -> None:
        """Remove a departure. Fine if there is none."""
        async with self._lock(vm_id, "source"):
            if self._departures.pop(vm_id, None) is not None:
                await self._remove(vm_id, "source")

    def _lock(self, vm_id: str, role: str) -> asyncio.Lock:
        """Return the lock of a record; it lives as long as somebody has it."""
        return self._locks.setdefault((vm_id, role), asyncio.Lock())

    def _path(self, vm_id: str, role: str) -> Path | None:
        return None if self._directory is None else self._directory / f"{uuid.UUID(vm_id)}.{role}.json"

    async def _write(self, vm_id: str, role: str, record: Admission | Departure) -> None:
        path = self._path(vm_id, role)
        if path is None:
            return
        text = json.dumps({"format": _FORMAT, **dataclasses.asdict(record)})
        try:
            await _to_the_end(_replace, path, text)
        except OSError as error:
            raise Unavailable(
                Reason.STATE_UNAVAILABLE,
                f"the node daemon cannot write down the migration of VM {vm_id} ({error.strerror}); look at its data "
                "directory",
                metadata={"vm_id": vm_id},
                retry_after_s=5.0,
            ) from error

    async def _remove(self, vm_id: str, role: str) -> None:
        if (path := self._path(vm_id, role)) is not None:
            await _to_the_end(path.unlink, True)

    def _read_all(self, role: str, kind: type[RecordT]) -> dict[str, RecordT]:
        found: dict[str, RecordT] = {}
        if self._directory is None or not self._directory.is_dir():
            return found
        for path in self._directory.glob(f"*.{role}.json"):
            try:
                record = _decode(json.loads(path.read_text()), kind)
            except (OSError, ValueError, TypeError) as error:
                _log.error("migration_record_unreadable", path=str(path), error=str(error))
                continue
            found[record.vm_id] = record
        return found


async def _to_the_end(work: Callable[..., object], *arguments: object) -> None:
    """Do something in a thread, and stay until it is done, also when cancelled: a thread is not."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _decode(document: dict[str, Any], kind: type[RecordT]) -> RecordT:
    if document.pop("format", None) != _FORMAT:
        raise ValueError("unknown format")
    if "made" in document:
        document["made"] = tuple(document["made"])
    return kind(**document)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
