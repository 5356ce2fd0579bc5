"""Ending VMs at once, without asking whoever manages them: when a host has lost the right to run them.

What finds and kills processes uses the standard library only: the guard, a process of its own that must stay small and
never wait for anything, is made of it too.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_FIRST_FIELD = 3
"""The field behind the closing parenthesis of the command name in /proc/PID/stat. Source: proc(5)."""
_START_FIELD = 22


class VmProcess(NamedTuple):
    """The process that runs a VM. Start and number together name one process of a boot, and never another."""

    pid: int
    start_ticks: int


class VmProcesses(ABC):
    """The power to end VMs at once."""

    @property
    @abstractmethod
    def pid_dir(self) -> Path | None:
        """Where a file `NAME.pid` lies for each process that runs a VM, from before the guest runs until it is dead.

        Such a process has `-uuid ID` on its command line. None: VMs are no processes, and only `kill` ends them.
        """

    @abstractmethod
    def under_way(self) -> Collection[object]:
        """Return a mark for each change that was begun and may still make a VM run, whoever still waits for it."""

    @abstractmethod
    async def kill(self, vm_ids: Collection[str]) -> Sequence[str]:
        """End these VMs now, as if their processes died; returns which were running. Asks nobody, never raises."""


def find_vm_processes(pid_dir: str, vm_ids: Collection[str]) -> dict[str, VmProcess]:
    """Return the process of each of these VMs that runs, by VM id. Reads the command line of each process named there.

    Reading one may hang while that process does, in a page fault on storage that is gone; call it from a thread that
    may be given up.
    """
    found: dict[str, VmProcess] = {}
    try:
        names = os.listdir(pid_dir)
    except FileNotFoundError:
        return found
    for name in names:
        if not name.endswith(".pid"):
            continue
        try:
            with open(os.path.join(pid_dir, name), "rb") as file:
                pid = int(file.read(32))
            ticks = start_ticks(pid)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            vm_id = words[words.index(b"-uuid") + 1].decode("ascii", "replace")
        except (OSError, ValueError, IndexError):
            continue  # it ended while we looked, or is no VM
        if ticks is not None and vm_id in vm_ids:
            found[vm_id] = VmProcess(pid, ticks)
    return found


def start_ticks(pid: int) -> int | None:
    """Return when a process was started, in ticks since the boot; None if it is gone, or dead but not collected.

    Never waits for the process, other than reading its command line.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[_START_FIELD - _FIRST_FIELD])


def is_alive(process: VmProcess) -> bool:
    """Tell whether exactly this process is there."""
    return start_ticks(process.pid) == process.start_ticks


def kill_process(process: VmProcess, number: int = signal.SIGKILL) -> bool:
    """Send a signal to exactly this process; returns whether it was there."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def kill_all(processes: Mapping[str, VmProcess]) -> list[str]:
    """Kill each; returns the ids of VMs whose process was there."""
    return [vm_id for vm_id, process in processes.items() if kill_process(process)]
