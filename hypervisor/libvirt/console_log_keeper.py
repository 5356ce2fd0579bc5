"""Keeps the logs of serial consoles from filling the disk while guests write on."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from hypervisor.libvirt import console_log

INTERVAL_S: Final = 5.0
"""A guest's serial line gives some MiB in that time; looking costs one system call a VM."""

_log = logging.getLogger(__name__)


class ConsoleLogKeeper:
    """Looks at all logs of a directory again and again; sizes are those of `console_log.bound`."""

    def __init__(
        self,
        directory: Path,
        *,
        interval_s: float = INTERVAL_S,
        bound_bytes: int = console_log.BOUND_BYTES,
        kept_bytes: int = console_log.KEPT_BYTES,
    ) -> None:
        self._directory = directory
        self._interval_s = interval_s
        self._bound_bytes = bound_bytes
        self._kept_bytes = kept_bytes
        self._task: asyncio.Task[None] | None = None
        self._complaints: list[str] = []

    def start(self) -> None:
        """Begin; does nothing if it has."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="console-logs")

    async def stop(self) -> None:
        """End. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await asyncio.to_thread(self._bound)

    def _bound(self) -> None:
        try:
            complaints = console_log.bound_all(
                self._directory, bound_bytes=self._bound_bytes, kept_bytes=self._kept_bytes
            )
        except OSError as error:
            complaints = [str(error)]
        if complaints and complaints != self._complaints:  # told once, not every time
            _log.warning("console logs cannot be bounded", extra={"reasons": complaints[:10]})
        self._complaints = complaints
