"""Numbers the state changes of VMs, so that whoever hears of them twice or out of order knows which is newer.

A count is `boot number << 32 | sequence`. The boot number is kept in a file and grows with each start of the daemon, so
counts grow over restarts; it is at least the minutes since 1970, so they grow even when the file was lost.

A count is given to a state when it is first seen, by an answer or an event, whichever comes first. Reading a state
takes time, in which another reader may see a newer one; therefore a reader notes the position before it reads, and what
it read is refused if that VM got a newer count meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from hypervisor.types import PowerState

_SEQUENCE_BITS = 32
_BOOT_FILE = "boot-number"


class DataDirError(Exception):
    """The daemon's own directory cannot be used; the message says why."""


def next_boot_number(data_dir: Path, now_s: float) -> int:
    """Count this start of the daemon, durably, before any count is given out. Blocks.

    Raises:
        DataDirError: the directory cannot be written, or the file holds something else.
    """
    path = data_dir / _BOOT_FILE
    partial = path.with_suffix(".part")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        before = int(path.read_text()) if path.exists() else 0
        number = max(before + 1, int(now_s // 60))
        with partial.open("w") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataDirError(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise DataDirError(f"{path} does not hold a number; remove it to start anew") from error
    return number


@dataclass(frozen=True, slots=True)
class Change:
    """A VM's state as counted; `changed_at_s` is None for what was so when the daemon started.

    `previous` is the state counted before, None if there was none.
    """

    count: int
    state: PowerState
    changed_at_s: float | None
    previous: PowerState | None = None


class StateChanges:
    """The newest counted state of each VM; forgets those that are gone."""

    def __init__(self, boot_number: int, now_s: Callable[[], float] = time.time) -> None:
        self._sequence = boot_number << _SEQUENCE_BITS
        self._now_s = now_s
        self._newest: dict[str, Change] = {}
        self._removed_at: dict[str, int] = {}
        self._is_warm = False

    @property
    def position(self) -> int:
        """The newest count given out; note it before reading a state."""
        return self._sequence

    def warm_up(self) -> None:
        """End the time in which a VM seen for the first time is taken to have been as it is since before the start."""
        self._is_warm = True

    def known_beside(self, vm_ids: Collection[str]) -> list[str]:
        """Name the VMs that were seen and not removed since, but for these."""
        return [vm_id for vm_id in self._newest if vm_id not in vm_ids]

    def observe(self, vm_id: str, state: PowerState, began_at: int) -> Change | None:
        """Take in a state that was read after position `began_at`.

        Returns:
            The state's count, a new one if the state is new; None if the VM changed while it was read: read again.
        """
        newest = self._newest.get(vm_id)
        if (newest is not None and newest.count > began_at) or self._removed_at.get(vm_id, 0) > began_at:
            return None if newest is None or newest.state is not state else newest
        if newest is not None and newest.state is state:
            return newest
        self._sequence += 1
        changed_at_s = self._now_s() if self._is_warm else None
        change = Change(self._sequence, state, changed_at_s, newest.state if newest else None)
        self._newest[vm_id] = change
        self._removed_at.pop(vm_id, None)
        return change

    def remove(self, vm_id: str, began_at: int) -> Change | None:
        """Take in that a VM did not exist when it was read after `began_at`; None as in `observe`."""
        newest = self._newest.get(vm_id)
        if newest is not None and newest.count > began_at:
            return None
        self._newest.pop(vm_id, None)
        self._sequence += 1
        self._removed_at[vm_id] = self._sequence
        self._bound_removed()
        return Change(self._sequence, PowerState.UNKNOWN, self._now_s(), newest.state if newest else None)

    def _bound_removed(self) -> None:
        """Keep the newest removals only: they matter just for reads that are under way."""
        while len(self._removed_at) > 1024:
            del self._removed_at[next(iter(self._removed_at))]
