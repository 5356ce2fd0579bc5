"""The daemon's side of the guard: gives it orders, watches that it is well, and starts one where none is."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import structlog

from hypervisor.processes import VmProcess, is_alive, kill_process, start_ticks
from nodedaemon.self_fencing.lease import Clock, boottime_ns
from nodedaemon.self_fencing.orders import Orders, Report, read_orders, read_report, write_file

BEAT_MAX_AGE_NS: Final = 2_000_000_000
"""How old the guard's last sign may be: it gives four a second, and a loaded host may keep it waiting."""
GIVE_UP_NS: Final = 6_000_000_000
"""After so much silence it is replaced."""
START_GRACE_NS: Final = 3_000_000_000
"""How long one has for its first sign."""
RESTART_NS: Final = 500_000_000
"""How soon after one was started the next may be, if it ended."""
RUN_ROOT: Final = Path("/run/limiquantix")

_log = structlog.get_logger(__name__)


def default_run_dir(data_dir: Path) -> Path:
    """Say where orders go: on the tmpfs of /run if that can be written, one directory for each daemon's data."""
    if os.access("/run", os.W_OK) or os.access(RUN_ROOT, os.W_OK):
        digest = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:12]
        return RUN_ROOT / f"node-{digest}"
    return data_dir / "guard"


class GuardLink:
    """Orders and reports of one guard.

    Args:
        starts: whether to start one where none is; else another program does.
    """

    def __init__(
        self,
        run_dir: Path,
        boot_id_path: Path,
        *,
        starts: bool,
        watchdog_device: str = "",
        now_ns: Clock = boottime_ns,
    ) -> None:
        self._run_dir = run_dir
        self._boot_id_path = boot_id_path
        self._starts = starts
        self._watchdog_device = watchdog_device
        self._now_ns = now_ns
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._orders: Orders | None = None
        self._is_told = False

    def last_orders(self, boot_id: str) -> Orders | None:
        """Return what was ordered last in this boot, by whichever daemon."""
        orders = read_orders(str(self._run_dir))
        return orders if orders is not None and orders.boot_id == boot_id else None

    def tell(self, orders: Orders) -> None:
        """Give the guard its orders; they hold for one that comes later, too. Raises nothing: see `obstacle`."""
        orders = orders._replace(daemon_pid=os.getpid(), daemon_ticks=start_ticks(os.getpid()) or 0)
        if orders == self._orders and self._is_told:
            return
        self._orders = orders
        try:
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(str(self._run_dir), "orders.json", orders)
            self._is_told = True
        except OSError as error:
            if self._is_told:
                _log.error("guard_not_told", error=error.strerror, directory=str(self._run_dir))
            self._is_told = False

    def report(self) -> Report | None:
        """Return what a living guard says; None if there is none."""
        report = read_report(str(self._run_dir))
        if report is None or self._now_ns() - report.beat_ns > BEAT_MAX_AGE_NS:
            return None
        return report if is_alive(VmProcess(report.pid, report.ticks)) else None

    def obstacle(self) -> str:
        """Say why the guard cannot be relied upon; "" if it can."""
        if not self._is_told:
            return f"the guard cannot be told anything: {self._run_dir} cannot be written"
        report = self.report()
        if report is None:
            return "no guard runs beside the node daemon, or it hangs"
        return report.obstacle

    def tend(self) -> None:
        """Repeat orders that did not reach their file, and start or replace the guard where it has to be."""
        if self._orders is not None and (not self._is_told or read_orders(str(self._run_dir)) is None):
            self._is_told = False
            self.tell(self._orders)
        if not self._starts:
            return
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        now_ns = self._now_ns()
        grace_ns = RESTART_NS if self._process is None else START_GRACE_NS
        if self.report() is not None or now_ns - self._started_ns < grace_ns:
            return
        if not self._replace_hung(now_ns):
            return
        self._start()
        self._started_ns = now_ns

    def _replace_hung(self, now_ns: int) -> bool:
        """End a guard that gives no sign any more; returns whether another one may be started now."""
        report = read_report(str(self._run_dir))
        if report is None or not is_alive(VmProcess(report.pid, report.ticks)):
            return True
        if now_ns - report.beat_ns < GIVE_UP_NS:
            return False
        _log.error("guard_hangs", pid=report.pid)
        kill_process(VmProcess(report.pid, report.ticks), signal.SIGKILL)
        return False

    def _start(self) -> None:
        command = [sys.executable, "-m", "nodedaemon.self_fencing.guard", str(self._run_dir), str(self._boot_id_path)]
        if self._watchdog_device:
            command.append(self._watchdog_device)
        try:
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._run_dir / "guard.log").open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # it outlives this daemon
                )
        except OSError as error:
            _log.error("guard_not_started", error=error.strerror)
            return
        _log.info("guard_started", pid=self._process.pid, directory=str(self._run_dir))
