"""A libvirt daemon of our own: started without systemd, hidden from any other, gone without a trace.

Its configuration, VM definitions and caches lie below one data directory and outlive it; its processes, mounts, sockets
and bridge do not, however this program ends: the reaper above it sees to that. The development cluster, the tests and
the benchmarks use it.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from controlplane.cli.dev.leftovers import add_bridge, bridge_mac, leftovers_command, remove_bridge
from controlplane.cli.dev.libvirt_choice import SYSTEM_BIN_PATH, find_daemon, libvirt_answers
from controlplane.cli.dev.private_mounts import private_mounts_command
from controlplane.cli.dev.reaper import COMMAND_GRACE_S, DESCENDANT_GRACE_S, FINALLY_GRACE_S, reaper_command

SOCKET_PATH_BYTES: Final = 107
"""The longest path of a UNIX socket. Source: unix(7), 108 bytes with the closing zero."""
_LONGEST_SOCKET_NAME: Final = "libvirt-admin-sock"
_STOP_DEADLINE_S: Final = COMMAND_GRACE_S + DESCENDANT_GRACE_S + FINALLY_GRACE_S + 5.0
"""Longer than the reaper can take, so that running into it means a process that even SIGKILL does not end."""
_LOG_TAIL_LINES: Final = 15
_LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024

_QEMU_CONF: Final = """\
# Written at every start; changes are lost.
# QEMU as the user who runs the daemon: disks stay theirs, and no directory needs opening to anybody else.
user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
# No systemd-machined, and two daemons must not meet in one cgroup.
cgroup_controllers = [ ]
namespaces = [ ]
# There is no virtlogd beside this daemon.
stdio_handler = "file"
"""
_DAEMON_CONF: Final = """\
# Written at every start; changes are lost.
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_level = 3
log_outputs = "3:stderr"
host_uuid = "{host_uuid}"
"""


class PrivateLibvirtError(Exception):
    """The private daemon cannot be had; the text says why and what to do."""


class PrivateLibvirt:
    """A private libvirt daemon below `data_dir`; as root only, on a machine with libvirtd or virtqemud installed.

    Use it as `async with PrivateLibvirt(directory) as libvirt: ... libvirt.uri`, in the main thread (see
    `reaper_command`). Only one may run on a data directory; a second waits for the first one's end within its own
    time-out. VMs that run at `stop` are ended; their definitions are there again at the next start.

    cache_dir: libvirt's cache, by default below the data directory. What libvirt learns about QEMU costs it 1.5 s the
        first time; tests with fresh data directories share one cache.
    bridge: a bridge without address or DHCP to provide while none of that name exists, or None for no bridge. Several
        daemons share it; it goes with the last of them.
    tell: called with one line for the user where something was not as wished but the daemon runs.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        cache_dir: Path | None = None,
        bridge: str | None = "virbr0",
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._cache_dir = (cache_dir or self._data_dir / "cache").absolute()
        self._run_dir = socket_directory(self._data_dir)
        self._bridge = None if bridge is None else (bridge, bridge_mac(_digest(self._data_dir)))
        self._tell = tell
        self._daemon = find_daemon()
        self._reaper: asyncio.subprocess.Process | None = None

    @property
    def uri(self) -> str:
        """The libvirt URI that reaches this daemon, from any process of the machine run by root."""
        return f"qemu+unix:///system?socket={quote(str(self.socket))}"

    @property
    def socket(self) -> Path:
        """The UNIX socket the daemon listens on."""
        modular = self._daemon is not None and self._daemon.name != "libvirtd"
        return self._run_dir / ("virtqemud-sock" if modular else "libvirt-sock")

    @property
    def log(self) -> Path:
        """What the daemon, and the reaper above it, had to say; one older file is kept."""
        return self._data_dir / "log" / "daemon.log"

    @property
    def reaper_pid(self) -> int | None:
        """The process above everything this daemon started, None while it does not run."""
        return None if self._reaper is None or self._reaper.returncode is not None else self._reaper.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, timeout_s: float = 30.0) -> None:
        """Start the daemon and return once it answers; raises `PrivateLibvirtError`, leaving nothing, if it does not.

        Takes 0.2 s, and 1.5 s more while libvirt does not know this QEMU yet. Starting twice is an error.
        """
        if self.reaper_pid is not None:
            raise PrivateLibvirtError(f"the private libvirt daemon below {self._data_dir} runs already")
        daemon = self._require()
        until_s = time.monotonic() + timeout_s
        try:
            await asyncio.to_thread(self._data_dir.mkdir, mode=0o755, parents=True, exist_ok=True)
            lock = await self._lock(until_s)
            try:
                await asyncio.to_thread(self._prepare, daemon)
                self._reaper = await self._spawn(daemon, lock)
            finally:
                os.close(lock)  # the reaper has its own copy now
        except OSError as error:
            raise PrivateLibvirtError(f"cannot lay out a libvirt daemon below {self._data_dir}: {error}") from error
        try:
            await self._wait_until_it_answers(until_s)
            if self._bridge is not None:
                await asyncio.to_thread(self._provide_bridge, *self._bridge)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the daemon, the VMs it runs and all else it started; does nothing when it does not run."""
        reaper = self._reaper
        if reaper is None:
            return
        if reaper.returncode is None:
            reaper.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_DEADLINE_S):
                await reaper.wait()
        except TimeoutError:
            left = await asyncio.to_thread(processes_inside, self._run_dir)
            raise PrivateLibvirtError(
                f"processes {left} of the private libvirt daemon did not end in {_STOP_DEADLINE_S:.0f} s; "
                f"see {self.log}"
            ) from None
        self._reaper = None

    def _require(self) -> Path:
        """Return the daemon to run, or say why none can be."""
        if os.geteuid() != 0:
            raise PrivateLibvirtError("a private libvirt daemon needs root; as another user, use qemu:///session")
        if self._daemon is None:
            raise PrivateLibvirtError("neither libvirtd nor virtqemud is installed; run deploy/setup-host.sh")
        for hidden in self._binds():
            if self._data_dir.resolve().is_relative_to(hidden):
                raise PrivateLibvirtError(
                    f"the data directory {self._data_dir} lies in {hidden}, which the private daemon replaces; "
                    "choose another --data-dir"
                )
        return self._daemon

    def _binds(self) -> dict[Path, Path]:
        """What the daemon sees at the paths compiled into it."""
        return {
            Path("/etc/libvirt"): self._data_dir / "etc",
            Path("/var/lib/libvirt"): self._data_dir / "lib",
            Path("/run/libvirt"): self._run_dir,
            Path("/var/log/libvirt"): self._data_dir / "log",
            Path("/var/cache/libvirt"): self._cache_dir,
        }

    async def _lock(self, until_s: float) -> int:
        """Take the data directory; held by the reaper, so also while it tidies up after a kill -9 of its parent."""
        path = self._data_dir / "daemon.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    os.close(descriptor)
                    raise PrivateLibvirtError(
                        f"another private libvirt daemon uses {self._data_dir}; end it, or choose another --data-dir"
                    ) from None
                await asyncio.sleep(0.05)
            else:
                return descriptor

    def _prepare(self, daemon: Path) -> None:
        """Lay out the directories and write the configuration; ends what a killed reaper could not."""
        for pid in processes_inside(self._run_dir):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._run_dir, ignore_errors=True)
        for directory in self._binds().values():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = self._data_dir / "etc"
        identity = self._data_dir / "host-uuid"
        if not identity.exists():
            identity.write_text(f"{uuid.uuid4()}\n")
        for name, text in self._configuration(daemon, identity.read_text().strip()).items():
            (configuration / name).write_text(text)
        filters, own_filters = Path("/etc/libvirt/nwfilter"), configuration / "nwfilter"
        if filters.is_dir() and not own_filters.exists():
            shutil.copytree(filters, own_filters)
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def _configuration(self, daemon: Path, host_uuid: str) -> dict[str, str]:
        """Contents of the daemon's files in /etc/libvirt, by name."""
        return {"qemu.conf": _QEMU_CONF, f"{daemon.name}.conf": _DAEMON_CONF.format(host_uuid=host_uuid)}

    def _command(self, daemon: Path) -> list[str]:
        return private_mounts_command([str(daemon), "-p", "/run/libvirt/daemon.pid"], self._binds())

    async def _spawn(self, daemon: Path, lock: int) -> asyncio.subprocess.Process:
        cleanup = leftovers_command(self._run_dir, self._bridge)
        words = reaper_command(self._command(daemon), parent=os.getpid(), cleanup=cleanup)
        log = await asyncio.to_thread(self.log.open, "ab")
        with log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S%z')} {daemon}\n".encode())
            log.flush()
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                # Ctrl-C at the terminal is for the program that started us, which then ends us in its order.
                start_new_session=True,
                # A plain environment: what systemd or a desktop session adds can change what libvirtd does.
                env={"PATH": SYSTEM_BIN_PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/root")},
            )

    async def _wait_until_it_answers(self, until_s: float) -> None:
        while not await libvirt_answers(self.socket, timeout_s=max(0.05, until_s - time.monotonic())):
            if self.reaper_pid is None:
                raise PrivateLibvirtError(f"{self._daemon} ended at once; {await self._log_tail()}")
            if time.monotonic() >= until_s:
                raise PrivateLibvirtError(f"{self._daemon} did not answer in time; {await self._log_tail()}")
            await asyncio.sleep(0.02)

    async def _log_tail(self) -> str:
        text = await asyncio.to_thread(self.log.read_text, errors="replace")
        tail = "\n  ".join(text.rpartition("--- ")[2].splitlines()[1:][-_LOG_TAIL_LINES:])
        return f"{self.log} ends with:\n  {tail}"

    def _provide_bridge(self, name: str, mac: str) -> None:
        """Make the bridge unless there is one; failing is a warning, as VMs that do not name it run without it."""
        try:
            remove_bridge(name, mac)  # left by a reaper that was killed
            add_bridge(name, mac)
        except (OSError, subprocess.SubprocessError) as error:
            self._tell(f"no bridge {name}, so VMs that name it will not start: {error}")


def socket_directory(data_dir: Path) -> Path:
    """Return where the daemon's sockets go: below `data_dir`, or in /run where their paths would be too long."""
    directory = data_dir / "run"
    if len(os.fsencode(directory / _LONGEST_SOCKET_NAME)) <= SOCKET_PATH_BYTES:
        return directory
    # Always the same name, so that a later start finds what an earlier one left. Only root writes in /run.
    return Path("/run", f"limiquantix-{_digest(data_dir).hex()[:12]}")


def processes_inside(run_dir: Path) -> list[int]:
    """Return the processes that see `run_dir` as their /run/libvirt: those a private daemon started, QEMU included."""
    found: list[int] = []
    try:
        ours = run_dir.stat()
    except FileNotFoundError:
        return found
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                theirs = (process / "root/run/libvirt").stat()
            except OSError:
                continue
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                found.append(int(process.name))
    return found


def _digest(data_dir: Path) -> bytes:
    return hashlib.sha256(os.fsencode(data_dir.resolve())).digest()
