"""The cluster's own processes: started under a reaper, logged to a file, started again when they die.

Each runs in a session of its own, so a Ctrl-C meant for this program does not reach them, and under a reaper that ends
them when this program is gone, however it went.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from controlplane.cli.dev.reaper import reaper_command

_KERNELS_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_OWN_PORT: Final = 20_000
_TRIED_PORTS: Final = 100
_STOP_DEADLINE_S: Final = 30.0
_LOG_TAIL_LINES: Final = 12
_RESTART_DELAY_S: Final = 0.5
_MAX_QUICK_DEATHS: Final = 5
_QUICK_DEATH_S: Final = 10.0
"""A process that dies this soon after its start, several times in a row, is broken and not restarted again."""


class ProcessFailed(Exception):
    """A process of the cluster cannot be kept running; the text has the end of its log."""


class DaemonProcess:
    """One daemon, kept running until `stop`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, tell: Callable[[str], None]) -> None:
        self.name = name
        self._command = list(command)
        self._log = log
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start it; must be called in the main thread, whose end the reaper watches."""
        await asyncio.to_thread(self._log.parent.mkdir, parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *reaper_command(self._command, parent=os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def supervise(self) -> None:
        """Start it again whenever it ends, until `stop` is called.

        Raises:
            ProcessFailed: it dies again and again.
        """
        quick_deaths = 0
        while self._process is not None:
            started_s = time.monotonic()
            status = await self._process.wait()
            if self._stopping:
                return
            quick_deaths = quick_deaths + 1 if time.monotonic() - started_s < _QUICK_DEATH_S else 1
            if quick_deaths >= _MAX_QUICK_DEATHS:
                raise ProcessFailed(
                    f"{self.name} ended {quick_deaths} times in a row (status {status}):\n{self.tail()}"
                )
            self._tell(f"{self.name} ended with status {status}; starting it again")
            await asyncio.sleep(_RESTART_DELAY_S)
            await self.start()

    def failed(self) -> bool:
        """Whether it has ended."""
        return self._process is not None and self._process.returncode is not None

    def tail(self) -> str:
        """The end of its log. Blocks for a moment."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    async def stop(self) -> None:
        """Ask it to end, and end it if it does not. Safe to call twice."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


class PortInUse(Exception):
    """A port that was asked for is taken."""


def require_free_port(port: int, flag: str) -> int:
    """Check that a loopback port can be listened on; 0 picks a free one.

    Raises:
        PortInUse: names the flag that chooses another.
    """
    return _probed(port, flag) if port else _any_free_port()


def _any_free_port() -> int:
    """Pick one that the kernel gives to nobody who asks for any: it is a moment until a program listens there."""
    try:
        end = int(_KERNELS_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        end = 0
    own = range(_FIRST_OWN_PORT, end)
    for port in random.sample(own, min(_TRIED_PORTS, len(own))):
        with suppress(PortInUse):
            return _probed(port, "")
    return _probed(0, "")


def _probed(port: int, flag: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            raise PortInUse(f"port {port} is taken ({error.strerror}); choose another with {flag}") from error
        return int(probe.getsockname()[1])


def free_port(preferred: int) -> int:
    """Pick the preferred loopback port if it is free, else any that is."""
    try:
        return require_free_port(preferred, "")
    except PortInUse:
        return require_free_port(0, "")
