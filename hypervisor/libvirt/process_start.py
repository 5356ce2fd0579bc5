"""When the processes behind running domains were started; libvirt does not tell, the kernel does.

Every QEMU process carries its domain's UUID on its command line, so this holds across restarts of libvirt and of ours.
Source: proc(5), field 22 of /proc/PID/stat, in clock ticks since boot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

_START_TICKS_FIELD: Final = 19
"""Field 22 of stat, counted from 0 behind the closing parenthesis of the command name, which field 2 is."""


def find_start_times(vm_ids: Collection[str], proc_path: Path = Path("/proc")) -> dict[str, float]:
    """Return the Unix time each VM's process was started; one that is not seen from here is left out.

    Reads every process once, some milliseconds: for a worker thread, and for VMs not known yet.
    """
    wanted = {vm_id.encode(): vm_id for vm_id in vm_ids}
    booted_at_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found: dict[str, float] = {}
    for directory in proc_path.glob("[0-9]*"):
        if len(found) == len(wanted):
            break
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            vm_id = wanted.get(words[words.index(b"-uuid") + 1]) if b"-uuid" in words[:-1] else None
            if vm_id is not None:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                found[vm_id] = booted_at_s + int(fields[_START_TICKS_FIELD]) / os.sysconf("SC_CLK_TCK")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or is hidden from us
    return found
