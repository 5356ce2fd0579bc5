"""The processes of this host's domains, found where libvirt's daemon notes them, so that it need not be asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from hypervisor.processes import VmProcesses, find_vm_processes, kill_all

SYSTEM_RUN_DIR: Final = Path("/run/libvirt")


def pid_dir_of(uri: str) -> Path:
    """Say where the daemon that a URI names keeps its QEMU's pid files; a socket lies in that daemon's run directory.

    The files are written by the process itself before it becomes QEMU. Source: libvirt, src/qemu/qemu_conf.c
    (`stateDir`) and src/qemu/qemu_process.c (`virPidFileBuildPath`).
    """
    parts = urlsplit(uri)
    sockets = parse_qs(parts.query).get("socket")
    if sockets:
        run_dir = Path(sockets[0]).parent
    elif parts.path == "/session":
        run_dir = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "libvirt")
    else:
        run_dir = SYSTEM_RUN_DIR
    return run_dir / ("qemu/run" if parts.path == "/session" else "qemu")


class LibvirtProcesses(VmProcesses):
    """Kills QEMU itself; libvirt notices by itself, and tells of a crash."""

    def __init__(self, uri: str, under_way: Callable[[], Collection[object]]) -> None:
        self._pid_dir = pid_dir_of(uri)
        self._under_way = under_way
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vm-killer")

    @property
    def pid_dir(self) -> Path:
        """See `VmProcesses`."""
        return self._pid_dir

    def under_way(self) -> Collection[object]:
        """See `VmProcesses`: calls that change a VM and that libvirt has not answered."""
        return self._under_way()

    async def kill(self, vm_ids: Collection[str]) -> Sequence[str]:
        """See `VmProcesses`; in a thread that nothing else waits in."""

        def kill() -> list[str]:
            return kill_all(find_vm_processes(str(self._pid_dir), vm_ids))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, kill)
        except OSError:
            return ()
