"""Processes that look to a guard like those of VMs, and a program that gives orders as a node daemon does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypervisor.processes import VmProcess, kill_process
from nodedaemon.self_fencing.orders import Report, read_report
from tests.support.node_daemon_process import environment

BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
DEADLINE_S = 60.0
_SLEEPER = "import time; time.sleep(600)"
_DAEMON = """
import json, sys, time
from pathlib import Path
from nodedaemon.self_fencing.guard_link import GuardLink
from nodedaemon.self_fencing.orders import Orders
run_dir, boot_id_path, words = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
link = GuardLink(run_dir, boot_id_path, starts=True)
began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
while True:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    lives = words["renews"] or now_ns - began_ns < 100_000_000
    if lives:
        end_ns = now_ns + words["lease_ms"] * 1_000_000
    link.tell(Orders(boot_id_path.read_text().strip(), True, end_ns, tuple(words["vm_ids"]), words["pid_dir"], 1000))
    link.tend()
    time.sleep(0.05)
"""


@dataclass
class StandIns:
    """Processes that stand for VMs: they carry the id as QEMU does, and have a pid file as libvirt makes it."""

    pid_dir: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, vm_id: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-S", "-c", _SLEEPER, "-uuid", vm_id])
        command_line = Path(f"/proc/{process.pid}/cmdline")
        until_s = time.monotonic() + DEADLINE_S
        while vm_id.encode() not in command_line.read_bytes():  # for a moment after its start the kernel has none of it
            assert time.monotonic() < until_s
            time.sleep(0.001)
        (self.pid_dir / f"{vm_id}.pid").write_text(f"{process.pid}\n")
        self.running[vm_id] = process
        return process


@contextmanager
def stand_ins(directory: Path) -> Iterator[StandIns]:
    """Start them below a directory; none outlives this."""
    pid_dir = directory / "pids"
    pid_dir.mkdir()
    processes = StandIns(pid_dir)
    try:
        yield processes
    finally:
        for process in processes.running.values():
            process.kill()
            process.wait()


@asynccontextmanager
async def ordering_daemon(
    run_dir: Path, processes: StandIns, vm_ids: list[str], *, lease_ms: int, renews: bool = True
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a program that renews the lease all the time, or only at first, and starts guards; none outlives this."""
    words = {"vm_ids": vm_ids, "pid_dir": str(processes.pid_dir), "lease_ms": lease_ms, "renews": renews}
    command = [sys.executable, "-c", _DAEMON, str(run_dir), str(BOOT_ID_PATH), json.dumps(words)]
    process = await asyncio.to_thread(
        subprocess.Popen, command, env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        end_guard(run_dir)


def end_guard(run_dir: Path) -> None:
    """Kill the guard of a directory, if one is there."""
    report = read_report(str(run_dir))
    if report is not None:
        kill_process(VmProcess(report.pid, report.ticks), signal.SIGKILL)


async def guard_says(run_dir: Path, holds: Callable[[Report], bool]) -> Report:
    """Wait until the guard reports something that makes `holds` true."""
    until_s = time.monotonic() + DEADLINE_S
    while (report := read_report(str(run_dir))) is None or not holds(report):
        assert time.monotonic() < until_s, f"the guard does not get there: {report}"
        await asyncio.sleep(0.01)
    return report
