"""What the daemon tells the guard and the guard tells the daemon: one small file each, in a directory on a tmpfs.

Files are replaced whole, so a reader finds the old one or the new one, and neither of the two waits for the other. What
the daemon said last holds if it hangs or dies, and a new daemon begins with it. Standard library only, for the guard.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

ORDERS_NAME = "orders.json"
REPORT_NAME = "report.json"
LOCK_NAME = "guard.lock"


class Orders(NamedTuple):
    """What the guard is to do. Times are nanoseconds of CLOCK_BOOTTIME.

    Attributes:
        boot_id: of the boot in which `end_ns` means anything.
        end_ns: when the lease ends.
        vm_ids: VMs that must not run from then on, whether they are here or not.
        pid_dir: see `VmProcesses.pid_dir`; "" where no process is to be found.
        kill_ms: how long after the end no such VM may be left.
        daemon_pid, daemon_ticks: who wrote it.
        epoch, fence_token, ha_version: what the host was told, for a daemon that has lost its own files.
    """

    boot_id: str
    is_armed: bool
    end_ns: int
    vm_ids: tuple[str, ...]
    pid_dir: str
    kill_ms: int
    daemon_pid: int = 0
    daemon_ticks: int = 0
    epoch: int = 0
    fence_token: int = 0
    ha_version: int = 0

    def must_kill(self, now_ns: int) -> bool:
        """Whether none of the VMs may run now."""
        return self.is_armed and now_ns >= self.end_ns


class Report(NamedTuple):
    """How the guard is.

    Attributes:
        beat_ns: when it wrote this.
        obstacle: why it may not be able to kill in time; "" when it is.
        vm_count: processes that it watches over.
        killed_count: processes that it killed since it began.
        killed: of the last end of a lease: by VM id, how many nanoseconds after the end its process was gone, or -1
            while it is not.
        killed_end_ns: that end; 0 for none.
    """

    pid: int
    ticks: int
    beat_ns: int
    obstacle: str = ""
    vm_count: int = 0
    killed_count: int = 0
    killed: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed
    killed_end_ns: int = 0


def write_file(directory: str, name: str, record: Orders | Report) -> None:
    """Replace a record's file; OSError if that fails."""
    path = os.path.join(directory, name)
    partial = f"{path}.{os.getpid()}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, json.dumps(record._asdict()).encode())
    finally:
        os.close(descriptor)
    os.replace(partial, path)


def read_orders(directory: str) -> Orders | None:
    """Read what the daemon said last; None if it said nothing that can be understood."""
    document = _read(directory, ORDERS_NAME, Orders._fields)
    try:
        return None if document is None else Orders(**{**document, "vm_ids": tuple(document["vm_ids"])})
    except (KeyError, TypeError):
        return None


def read_report(directory: str) -> Report | None:
    """Read what the guard said last; None if it said nothing that can be understood."""
    document = _read(directory, REPORT_NAME, Report._fields)
    try:
        return None if document is None else Report(**document)
    except TypeError:
        return None


def _read(directory: str, name: str, fields: tuple[str, ...]) -> dict[str, Any] | None:
    """Read a record's fields; those of a newer version are left out: a guard outlives the daemon that started it."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            document = json.loads(file.read())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    return {field: value for field, value in document.items() if field in fields}
