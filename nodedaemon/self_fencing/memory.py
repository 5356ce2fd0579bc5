"""What a host must know after a restart before it does anything: one small file, written before it is acted upon."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limiquantix.errors import Reason, Unavailable
from nodedaemon.change_count import DataDirError
from nodedaemon.self_fencing.lease import Known

FILE_NAME = "ha.json"
WRITE_DEADLINE_S = 5.0
_FORMAT = 1


class HaMemory:
    """What was told, and which VMs end with the lease. Owned by the event loop; use `open_memory` to get it."""

    def __init__(
        self, path: Path, known: Known, protected: Collection[str], *, shut_in: str = "", is_new: bool = False
    ) -> None:
        self._path = path
        self.is_new = is_new
        """Whether there was no file: this host never was told anything, or has lost it."""
        self._known = known
        self._protected = frozenset(protected)
        self._shut_in = shut_in
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ha-memory")

    @property
    def known(self) -> Known:
        """What was told, as it is on the disk."""
        return self._known

    @property
    def protected(self) -> frozenset[str]:
        """Ids of VMs that end with the lease, as on the disk; some may not be here any more."""
        return self._protected

    @property
    def shut_in(self) -> str:
        """The boot in which this host said that it ended all VMs, since it goes down; "" for none, or taken back."""
        return self._shut_in

    async def remember(self, known: Known) -> None:
        """Take what was told; once this returns, it is on the disk. Never lowers anything.

        Raises:
            Unavailable: it could not be written; nothing may be done upon it.
        """
        async with self._lock:
            now = self._known
            newest = known if known.ha_version > now.ha_version else now
            wanted = Known(
                max(known.epoch, now.epoch),
                max(known.fence_token, now.fence_token),
                newest.ha_version,
                newest.is_armed,
            )
            if wanted != now:
                await self._write(wanted, self._protected, self._shut_in)
                self._known = wanted

    async def protect(self, vm_id: str, *, is_protected: bool) -> None:
        """Note whether a VM ends with the lease; once this returns, it is on the disk. Idempotent.

        Raises:
            Unavailable: it could not be written.
        """
        async with self._lock:
            wanted = self._protected | {vm_id} if is_protected else self._protected - {vm_id}
            if wanted != self._protected:
                await self._write(self._known, wanted, self._shut_in)
                self._protected = wanted

    async def shut(self, boot_id: str) -> None:
        """Note in which boot this host ended all VMs, "" for none; once this returns, it is on the disk. Idempotent.

        Raises:
            Unavailable: it could not be written.
        """
        async with self._lock:
            if boot_id != self._shut_in:
                await self._write(self._known, self._protected, boot_id)
                self._shut_in = boot_id

    def close(self) -> None:
        """Let go of the thread; a write that hangs is left to itself."""
        self._executor.shutdown(wait=False)

    async def _write(self, known: Known, protected: Collection[str], shut_in: str) -> None:
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._executor, _save, self._path, known, protected, shut_in)
        except (OSError, TimeoutError) as error:
            words = getattr(error, "strerror", None) or "it takes too long"
            raise Unavailable(
                Reason.STATE_UNAVAILABLE,
                f"the node daemon cannot write down what it was told ({words}); look at its data directory",
                retry_after_s=1.0,
            ) from error


def open_memory(data_dir: Path) -> HaMemory:
    """Read what was known before; an absent file knows nothing. Blocks.

    Raises:
        DataDirError: the file is damaged or cannot be read.
    """
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r}, not {_FORMAT}")
        known = Known(
            int(document["epoch"]),
            int(document["fence_token"]),
            int(document["ha_version"]),
            bool(document["is_armed"]),
        )
        protected = [str(vm_id) for vm_id in document["protected"]]
        return HaMemory(path, known, protected, shut_in=str(document.get("shut_in", "")))
    except FileNotFoundError:
        return HaMemory(path, Known(), (), is_new=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{path}, what this host was told of high availability, is damaged or not ours ({error}). Put back a good "
            "copy; or end all VMs of this host and move it away to start anew"
        ) from error


def _save(path: Path, known: Known, protected: Collection[str], shut_in: str) -> None:
    document = {
        "format": _FORMAT,
        "epoch": known.epoch,
        "fence_token": known.fence_token,
        "ha_version": known.ha_version,
        "is_armed": known.is_armed,
        "protected": sorted(protected),
        "shut_in": shut_in,
    }
    partial = path.with_suffix(".part")
    with partial.open("w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
