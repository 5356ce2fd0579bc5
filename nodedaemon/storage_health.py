"""Notice that a storage domain of this host is gone: does not answer, or became read-only.

Looking at storage that is gone hangs, for minutes or for ever, so each look has a thread of its own, of which there is
never more than one: while it hangs, the storage is lost, and it is not looked at again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from nodedaemon.storage_domains import ID_FILE, StorageIdUnusable, read_storage_domain

ANSWER_DEADLINE_S: Final = 2.0
LOOK_INTERVAL_S: Final = 5.0
UNKNOWN_INTERVAL_S: Final = 0.5
"""Until the storage has an id: what is lost before that cannot be named."""

_log = structlog.get_logger(__name__)


class StorageHealth:
    """Watches one storage root; `run` it in a task."""

    def __init__(
        self, root: Path, *, answer_deadline_s: float = ANSWER_DEADLINE_S, interval_s: float = LOOK_INTERVAL_S
    ) -> None:
        self._root = root
        self._answer_deadline_s = answer_deadline_s
        self._interval_s = interval_s
        self._id = ""
        self._obstacle = ""
        self._look: asyncio.Future[str] | None = None

    @property
    def lost_ids(self) -> Sequence[str]:
        """Ids of storage domains that are of no use now; one whose id was never read is not told of."""
        return (self._id,) if self._obstacle and self._id else ()

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s if self._id else min(self._interval_s, UNKNOWN_INTERVAL_S))

    async def look(self) -> None:
        """Look once."""
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(None, self._probe))
        done, _ = await asyncio.wait({self._look}, timeout=self._answer_deadline_s)
        obstacle = self._look.result() if done else f"it does not answer within {self._answer_deadline_s:g} s"
        if bool(obstacle) != bool(self._obstacle):
            log = _log.error if obstacle else _log.info
            log("storage_lost" if obstacle else "storage_back", path=str(self._root), obstacle=obstacle)
        self._obstacle = obstacle

    def _probe(self) -> str:
        """Return what is wrong; "" for nothing. Blocks."""
        try:
            if not self._id:
                if not (self._root / ID_FILE).exists():
                    return ""  # whoever registers this host makes it
                self._id = read_storage_domain(self._root).id
            if os.statvfs(self._root).f_flag & os.ST_RDONLY:
                return "it is read-only"
            descriptor = os.open(self._root / ID_FILE, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read it from where it is, not from memory
                if not os.read(descriptor, 64):
                    return "its id file is empty"
            finally:
                os.close(descriptor)
        except (OSError, StorageIdUnusable) as error:
            return str(error)
        return ""
