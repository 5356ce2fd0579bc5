"""The guard: kills a host's protected VMs at the end of its lease, whatever has become of daemon and libvirt.

A process of its own, `limiquantix-guard`. It reads orders from a file on a tmpfs and finds processes by pid files, so
that it waits for nobody. It is locked into memory and goes before others, as far as it may.
A second thread looks for processes, since that may hang on one that hangs; those it found before are killed without.
If it cannot kill in time, it stops to feed the watchdog, and the host is reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time

from hypervisor.processes import VmProcess, find_vm_processes, is_alive, kill_process, start_ticks
from nodedaemon.self_fencing.orders import (
    LOCK_NAME,
    ORDERS_NAME,
    REPORT_NAME,
    Orders,
    Report,
    read_orders,
    write_file,
)

TICK_S = 0.05
"""How often it looks at its orders; a share of the time within which it has to kill."""
SCAN_S = 0.2
SCAN_HURRY_S = 0.02
REPORT_NS = 250_000_000
FEED_NS = 1_000_000_000
WATCHDOG_S = 10
"""As in the unit of systemd. With the default times, whoever does not run for so long has lost its lease."""
_WDIOC_SETTIMEOUT = 0xC0045706
"""Source: linux/watchdog.h, _IOWR('W', 6, int)."""
IDLE_NS = 2_000_000_000
"""How long it outlives a daemon that has left it nothing to guard."""
_SLOW_SCAN_NS = 2_000_000_000
_MAX_KILLED = 1000
_PRIORITY = 10
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
"""Source: mlock(2)."""


def now_ns() -> int:
    """Read the clock that leases are counted by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Scanner(threading.Thread):
    """Looks for processes of VMs, over and over."""

    def __init__(self) -> None:
        super().__init__(name="scanner", daemon=True)
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._orders: Orders | None = None
        self._known: dict[str, VmProcess] = {}
        self.began_ns = 0
        """When the last look that was finished began."""
        self.under_way_ns = 0

    def aim(self, orders: Orders | None, *, hurry: bool) -> None:
        """Say what to look for."""
        self._orders = orders
        if hurry:
            self._hurry.set()
        else:
            self._hurry.clear()

    def known(self) -> dict[str, VmProcess]:
        """Return the processes that were found, of the VMs that are looked for."""
        orders = self._orders
        wanted = frozenset(orders.vm_ids) if orders is not None else frozenset()
        with self._lock:
            return {vm_id: process for vm_id, process in self._known.items() if vm_id in wanted}

    def forget_dead(self) -> None:
        """Drop processes that are gone."""
        with self._lock:
            known = dict(self._known)
        gone = [(vm_id, process) for vm_id, process in known.items() if not is_alive(process)]
        with self._lock:
            for vm_id, process in gone:
                if self._known.get(vm_id) == process:
                    del self._known[vm_id]

    def run(self) -> None:
        """Look until the program ends."""
        while True:
            self.scan()
            if self._hurry.wait(SCAN_S):
                time.sleep(SCAN_HURRY_S)

    def scan(self) -> None:
        """Look once."""
        began, orders = now_ns(), self._orders
        self.under_way_ns = began
        if orders is not None and orders.pid_dir and orders.vm_ids:
            with contextlib.suppress(OSError):
                found = find_vm_processes(orders.pid_dir, frozenset(orders.vm_ids))
                with self._lock:
                    self._known.update(found)
        self.began_ns, self.under_way_ns = began, 0


class Watchdog:
    """What resets the host unless it is fed: a device, systemd, or both.

    A device is told to do so after `WATCHDOG_S`; one whose driver does not take that keeps its own time, often 30 or
    60 s. Source: the kernel's watchdog-api.rst, "WDIOC_SETTIMEOUT".
    """

    def __init__(self, path: str, notify_address: str = "") -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC) if path else -1
        if path:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._descriptor, _WDIOC_SETTIMEOUT, struct.pack("i", WATCHDOG_S))
        self._notify_address = "\0" + notify_address[1:] if notify_address.startswith("@") else notify_address

    def feed(self) -> None:
        """Put it off."""
        if self._descriptor >= 0:
            os.write(self._descriptor, b"\0")
        self._notify(b"WATCHDOG=1")

    def say_ready(self) -> None:
        """Tell systemd that it works."""
        self._notify(b"READY=1")

    def disarm(self) -> None:
        """End it in an orderly way. Source: the kernel's watchdog-api.rst, "Magic Close"."""
        if self._descriptor >= 0:
            os.write(self._descriptor, b"V")
            os.close(self._descriptor)
            self._descriptor = -1

    def _notify(self, message: bytes) -> None:
        if self._notify_address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(message, self._notify_address)


class Guard:
    """One guard on one directory. `tick` does everything that is due and returns how long to wait."""

    def __init__(self, directory: str, scanner: Scanner, watchdog: Watchdog, boot_id: str) -> None:
        self._directory = directory
        self._scanner = scanner
        self._watchdog = watchdog
        self._boot_id = boot_id
        self._ticks = start_ticks(os.getpid()) or 0
        self._orders: Orders | None = None
        self._stamp: tuple[int, int] | None = None
        self._killed: dict[str, int] = {}
        self._killed_end_ns = 0
        self._killed_count = 0
        self._doomed: dict[str, VmProcess] = {}
        self._reported_ns = self._fed_ns = 0
        self._last: tuple[object, ...] = ()
        self._busy_ns = now_ns()

    def tick(self) -> float:
        """Do what is due; returns the seconds until there is something again."""
        self._take_orders()
        orders, now = self._orders, now_ns()
        is_killing = orders is not None and orders.must_kill(now)
        self._scanner.aim(orders, hurry=is_killing)
        if is_killing or now - self._reported_ns >= REPORT_NS:
            self._scanner.forget_dead()
        known = self._scanner.known()
        if orders is not None and is_killing:
            self._kill(orders, known)
        if known or (orders is not None and start_ticks(orders.daemon_pid) == orders.daemon_ticks):
            self._busy_ns = now
        is_well = not is_killing or orders is None or self._is_done_or_in_time(orders, now)
        if is_well and now - self._fed_ns >= FEED_NS:
            self._watchdog.feed()
            self._fed_ns = now
        self._report(known, now, is_well=is_well)
        if orders is None or not orders.is_armed or is_killing:
            return TICK_S
        return min(TICK_S, max(0.001, (orders.end_ns - now_ns()) / 1e9))

    def may_end(self, *, asked: bool, stays: bool) -> bool:
        """Whether nothing is left to guard, and its daemon is gone or somebody asked it to end."""
        if asked:
            return not self._scanner.known()
        return not stays and now_ns() - self._busy_ns > IDLE_NS

    def tidy(self) -> None:
        """Leave only orders that may concern a VM; a daemon that is there gives them again if they vanish."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._directory, REPORT_NAME))
        if self._orders is None or not self._orders.is_armed or not self._orders.vm_ids:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _take_orders(self) -> None:
        try:
            status = os.stat(os.path.join(self._directory, ORDERS_NAME))
        except OSError:
            return  # what was said last holds
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp != self._stamp:
            orders = read_orders(self._directory)
            if orders is not None and orders.boot_id == self._boot_id:
                self._orders, self._stamp = orders, stamp

    def _kill(self, orders: Orders, known: dict[str, VmProcess]) -> None:
        if orders.end_ns != self._killed_end_ns:
            self._killed, self._killed_end_ns, self._doomed = {}, orders.end_ns, {}
        for vm_id, process in known.items():
            if kill_process(process) and self._doomed.get(vm_id) != process:
                self._doomed[vm_id] = process
                self._killed_count += 1
                if len(self._killed) < _MAX_KILLED:
                    self._killed[vm_id] = -1
        for vm_id, process in list(self._doomed.items()):
            if not is_alive(process):
                del self._doomed[vm_id]
                if vm_id in self._killed:
                    self._killed[vm_id] = now_ns() - orders.end_ns

    def _is_done_or_in_time(self, orders: Orders, now: int) -> bool:
        is_in_time = now < orders.end_ns + orders.kill_ms * 1_000_000
        has_looked = self._scanner.began_ns >= orders.end_ns or not orders.pid_dir or not orders.vm_ids
        return is_in_time or (has_looked and not self._doomed and not self._scanner.known())

    def _report(self, known: dict[str, VmProcess], now: int, *, is_well: bool) -> None:
        obstacle = ""
        if not is_well:
            obstacle = f"{len(known) or 'unknown'} VM processes do not die, or cannot be looked at"
        elif 0 < self._scanner.under_way_ns < now - _SLOW_SCAN_NS:
            obstacle = "looking for the processes of VMs hangs"
        state = (obstacle, len(known), self._killed_count, len(self._doomed), self._killed_end_ns)
        if state == self._last and now - self._reported_ns < REPORT_NS:
            return
        report = Report(
            os.getpid(), self._ticks, now, obstacle, len(known), self._killed_count, self._killed, self._killed_end_ns
        )
        with contextlib.suppress(OSError):  # a full tmpfs: the daemon sees that nothing new comes
            write_file(self._directory, REPORT_NAME, report)
        self._last, self._reported_ns = state, now


def harden() -> None:
    """Be there when it matters: in memory, first in line, spared when memory ends. Each as far as it is permitted."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            libc.mlockall(_MCL_CURRENT | _MCL_FUTURE)


def rehearse(directory: str) -> None:
    """Go through everything that killing needs once, so that none of it has to be read from a disk that is gone."""
    own = VmProcess(os.getpid(), start_ticks(os.getpid()) or 0)
    kill_process(own, signal.SIGCONT)
    find_vm_processes(directory, frozenset())


def main(arguments: list[str]) -> int:
    """Guard until there is nothing to guard; 3 if another guard does already, 2 for wrong usage."""
    stays = "--stay" in arguments
    words = [word for word in arguments if word != "--stay"]
    if len(words) not in (2, 3):
        sys.stderr.write("usage: limiquantix-guard [--stay] DIRECTORY BOOT_ID_PATH [WATCHDOG_DEVICE]\n")
        return 2
    directory = words[0]
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 3
    with open(words[1]) as file:
        boot_id = file.read().strip()
    threading.stack_size(256 * 1024)
    harden()
    rehearse(directory)
    watchdog = Watchdog(words[2] if len(words) == 3 else "", os.environ.get("NOTIFY_SOCKET", ""))
    scanner = Scanner()
    guard = Guard(directory, scanner, watchdog, boot_id)
    guard.tick()
    scanner.start()
    watchdog.say_ready()
    asked_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    while not guard.may_end(asked=asked_to_end.is_set(), stays=stays):
        time.sleep(guard.tick())
    watchdog.disarm()
    guard.tidy()
    return 0


def run() -> None:
    """Be the command `limiquantix-guard`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
