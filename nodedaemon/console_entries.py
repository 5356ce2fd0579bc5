"""One-time entries to consoles: each a port on the host's loopback address that lets one connection in.

An entry is made for one caller, who is told its port and its secret. It listens for a minute; the first connection that
presents the secret ends the listening and is spliced to the console. Nothing else on the host listens for a console.
An entry is to one VM as it runs: whoever has it has nothing once that VM has ended, whatever then runs on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from hypervisor.errors import ConsoleAbsent, ConsoleInUse, HypervisorError
from hypervisor.types import ConsoleKind
from limiquantix.errors import Reason, ResourceExhausted
from nodedaemon.console_protocols import (
    Door,
    NotLetIn,
    SerialDoor,
    VncDoor,
    new_line_secret,
    new_vnc_password,
)
from nodedaemon.spice_entries import CHANNELS_S, SpiceListener

LIFE_S: Final = 60.0
"""How long an entry waits for its connection. Source: the documented life of a console's token."""
HOST: Final = "127.0.0.1"
MAX_ENTRIES: Final = 128
MAX_SESSIONS: Final = 256
"""Each costs this process two descriptors and some buffers."""
_MAX_KNOCKING: Final = 8
"""Connections to one entry that have not presented its secret yet; more are closed."""
_OPEN_DEADLINE_S: Final = 15.0
_PIECE_BYTES: Final = 64 * 2**10

_KINDS: Final[dict[ConsoleKind, tuple[type[Door], Callable[[], str]]]] = {
    ConsoleKind.VNC: (VncDoor, new_vnc_password),
    ConsoleKind.SERIAL: (SerialDoor, new_line_secret),
}

_log = structlog.get_logger(__name__)

OpenConsole = Callable[[str, ConsoleKind], Awaitable[socket.socket]]
SetPassword = Callable[[str, str, float], Awaitable[None]]
Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class ConsoleEntry:
    """What a caller has to know; `expires_at_s` is Unix time."""

    kind: ConsoleKind
    host: str
    port: int
    secret: str = field(repr=False)
    expires_at_s: float


class ConsoleEntries:
    """All entries and sessions of this host.

    Args:
        open_console: connects to a console, see `Hypervisor.open_console`.
        set_password: sets the password of a SPICE display, see `Hypervisor.set_console_password`; without it there are
            no entries to these.
        life_s: how long an entry waits for its connection.
    """

    def __init__(
        self, open_console: OpenConsole, set_password: SetPassword | None = None, *, life_s: float = LIFE_S
    ) -> None:
        self._open_console = open_console
        self._set_password = set_password
        self._life_s = life_s
        self._waiting: set[_Listener | SpiceListener] = set()
        self._sessions: set[asyncio.Task[None]] = set()

    def supports(self, kind: ConsoleKind) -> bool:
        """Tell whether there are entries for this kind of console."""
        return kind in _KINDS or (kind is ConsoleKind.SPICE and self._set_password is not None)

    async def make(self, vm_id: str, kind: ConsoleKind) -> ConsoleEntry:
        """Make an entry to a console that is there.

        A SPICE display has one password, so a new entry to it ends older ones that wait.

        Raises:
            HypervisorError: the password of the display cannot be set.
            ResourceExhausted: too many entries wait, or too many consoles are open.
        """
        if len(self._waiting) >= MAX_ENTRIES or len(self._sessions) >= MAX_SESSIONS:
            raise ResourceExhausted(
                Reason.TOO_MANY_CONSOLES,
                f"this host has {len(self._waiting)} consoles waiting to be connected to and {len(self._sessions)} "
                "open, and takes no more; close some, or try again in a minute",
                retry_after_s=self._life_s,
            )
        listener: _Listener | SpiceListener
        if kind in _KINDS:
            door, new_secret = _KINDS[kind]
            listener = _Listener(vm_id, kind, door, new_secret(), self._let_in)
        else:
            listener = await self._spice_listener(vm_id)
        self._waiting.add(listener)
        try:
            port = await listener.listen(HOST)
        except BaseException:
            self._waiting.discard(listener)
            raise
        asyncio.get_running_loop().call_later(self._life_s, self._time_out, listener)
        return ConsoleEntry(kind, HOST, port, listener.secret, time.time() + self._life_s)

    def revoke(self, vm_id: str) -> None:
        """End the entries to a VM that nobody has used; sessions end with its consoles. Fine if there are none."""
        for listener in [each for each in self._waiting if each.vm_id == vm_id]:
            self._expire(listener)

    async def close(self) -> None:
        """End all entries and sessions."""
        for listener in tuple(self._waiting):
            self._expire(listener)
        sessions = tuple(self._sessions)
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    async def _spice_listener(self, vm_id: str) -> SpiceListener:
        if self._set_password is None:
            raise ValueError("entries to SPICE displays need a way to set their password")
        secret = new_line_secret()
        await self._set_password(vm_id, secret, self._life_s + CHANNELS_S)
        for older in [each for each in self._waiting if (each.vm_id, each.kind) == (vm_id, ConsoleKind.SPICE)]:
            self._expire(older)

        async def connect() -> Side:
            return await asyncio.open_connection(sock=await self._open_console(vm_id, ConsoleKind.SPICE))

        return SpiceListener(vm_id, secret, connect, self._begin_session)

    def _begin_session(self, listener: _Listener | SpiceListener, session: asyncio.Task[None]) -> None:
        _log.info("console_opened", vm_id=listener.vm_id, console=listener.kind.value)
        self._waiting.discard(listener)
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    def _time_out(self, listener: _Listener | SpiceListener) -> None:
        if listener in self._waiting:
            self._expire(listener)

    def _expire(self, listener: _Listener | SpiceListener) -> None:
        self._waiting.discard(listener)
        listener.close()

    def _let_in(self, listener: _Listener, door: Door) -> None:
        """Take a connection that knows the secret."""
        self._expire(listener)
        self._begin_session(listener, asyncio.create_task(self._serve(listener, door), name="console"))

    async def _serve(self, listener: _Listener, door: Door) -> None:
        try:
            try:
                async with asyncio.timeout(_OPEN_DEADLINE_S):
                    console = await self._connect(listener, door)
            except (HypervisorError, NotLetIn, EOFError, OSError, TimeoutError) as error:
                _log.warning("console_not_opened", vm_id=listener.vm_id, console=listener.kind.value, error=str(error))
                reason = str(error) if isinstance(error, ConsoleAbsent | ConsoleInUse) else "the host's log says why"
                await door.refuse(f"the console cannot be opened: {reason}")
                return
            await splice((door.reader, door.writer), console)
        finally:
            door.writer.close()

    async def _connect(self, listener: _Listener, door: Door) -> Side:
        reader, writer = await asyncio.open_connection(sock=await self._open_console(listener.vm_id, listener.kind))
        try:
            await door.welcome(reader, writer)
        except BaseException:
            writer.close()
            raise
        return reader, writer


class _Listener:
    """One entry while it waits."""

    def __init__(
        self,
        vm_id: str,
        kind: ConsoleKind,
        door: type[Door],
        secret: str,
        let_in: Callable[[_Listener, Door], None],
    ) -> None:
        self.vm_id = vm_id
        self.kind = kind
        self.secret = secret
        self._door = door
        self._let_in = let_in
        self._server: asyncio.Server | None = None
        self._knocking: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def listen(self, host: str) -> int:
        """Begin; returns the port."""
        self._server = await asyncio.start_server(self._knock, host, 0, backlog=_MAX_KNOCKING)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more, and hang up on whoever has not presented the secret by now."""
        self._is_over = True
        if self._server is not None:
            self._server.close()
        for task in self._knocking - {asyncio.current_task()}:
            task.cancel()

    def _knock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_over or len(self._knocking) >= _MAX_KNOCKING:
            writer.close()
            return
        task = asyncio.create_task(self._ask(self._door(reader, writer)), name="console-entry")
        self._knocking.add(task)
        task.add_done_callback(self._knocking.discard)
        task.add_done_callback(lambda asked: writer.close() if asked.cancelled() else None)  # even before it began

    async def _ask(self, door: Door) -> None:
        is_in = False
        try:
            await door.ask(self.secret)
            if not self._is_over:  # else another one was faster
                is_in = True
                self._let_in(self, door)
        except NotLetIn as error:
            _log.warning("console_refused", vm_id=self.vm_id, console=self.kind.value, reason=str(error))
            await door.refuse(str(error))
        except (EOFError, OSError):
            return  # it left
        finally:
            if not is_in:
                door.writer.close()


async def splice(one: Side, other: Side) -> None:
    """Pass bytes on both ways, as fast as the slower side takes them, until either side ends; closes both."""
    ways = [
        asyncio.create_task(_pass_on(one[0], other[1])),
        asyncio.create_task(_pass_on(other[0], one[1])),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for _, writer in (one, other):
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
