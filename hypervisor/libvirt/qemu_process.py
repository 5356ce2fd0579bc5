"""What the kernel knows of the processes behind running domains and libvirt does not tell, or only by asking them.

Every QEMU process carries its domain's UUID on its command line, so this holds across restarts of libvirt and of ours.
Source: proc(5), /proc/PID/stat: fields 14 and 15 (user and system time) and 22 (start since boot) in clock ticks, 24
(resident memory) in pages.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC_PATH: Final = Path("/proc")
_FIRST_FIELD: Final = 3
"""The field behind the closing parenthesis of the command name, which may itself hold spaces and parentheses."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """The process that runs a VM; `started_at_s` is Unix time."""

    pid: int
    started_at_s: float


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What a process has used of the processors since its start, and holds of the memory now."""

    cpu_time_ns: int
    resident_bytes: int


def find_processes(vm_ids: Collection[str], proc_path: Path = PROC_PATH) -> dict[str, QemuProcess]:
    """Return the process of each VM, by VM id; one that is not seen from here is left out.

    Reads every process once, some milliseconds: for a worker thread, and for VMs not known yet.
    """
    wanted = {vm_id.encode(): vm_id for vm_id in vm_ids}
    booted_at_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found: dict[str, QemuProcess] = {}
    for directory in proc_path.glob("[0-9]*"):
        if len(found) == len(wanted):
            break
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            vm_id = wanted.get(words[words.index(b"-uuid") + 1]) if b"-uuid" in words[:-1] else None
            if vm_id is not None:
                started_at_s = booted_at_s + _read_stat(directory, 22)[0] / os.sysconf("SC_CLK_TCK")
                found[vm_id] = QemuProcess(int(directory.name), started_at_s)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or is hidden from us
    return found


def read_usage(process: QemuProcess, proc_path: Path = PROC_PATH) -> ProcessUsage:
    """Read what a process uses; nothing, if it ended. The processor's time is counted in ticks, mostly of 10 ms."""
    try:
        user, system, pages = _read_stat(proc_path / str(process.pid), 14, 15, 24)
    except (FileNotFoundError, ProcessLookupError):
        return ProcessUsage(0, 0)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return ProcessUsage((user + system) * tick_ns, pages * os.sysconf("SC_PAGE_SIZE"))


def _read_stat(directory: Path, *fields: int) -> tuple[int, ...]:
    """Return these fields of a process's stat, numbered as proc(5) does."""
    words = (directory / "stat").read_text().rpartition(")")[2].split()
    return tuple(int(words[field - _FIRST_FIELD]) for field in fields)
