"""A one-time entry to a SPICE display, which is many connections: a viewer opens one for each of its channels.

QEMU itself asks each of them for the password, which is the entry's secret and good for little longer than the entry.
What is done here is to count: the first main channel that QEMU lets in is the session. Beside it, only channels that
say they belong to a session are passed on, for as long as a viewer may take to open them; they end with it.

Source of the messages: spice-protocol, spice/protocol.h, `SpiceLinkHeader`, `SpiceLinkMess`, `SpiceLinkReply`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from hypervisor.errors import HypervisorError
from hypervisor.types import ConsoleKind

CHANNELS_S: Final = 20.0
"""How long after its main channel a viewer may open others; it does so at once, but a tunnel may be slow."""
MAX_CONNECTIONS: Final = 32
"""Of one entry; viewers open about ten."""
_OPEN_DEADLINE_S: Final = 15.0
_HEADER: Final = struct.Struct("<4sIII")
_MAGIC: Final = b"REDQ"
_MAX_MESSAGE_BYTES: Final = 4096
_LINK_OK: Final = bytes(4)
_PIECE_BYTES: Final = 64 * 2**10

_log = structlog.get_logger(__name__)

Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NotSpice(Exception):
    """The other side does not speak SPICE."""


class SpiceListener:
    """One entry.

    Args:
        connect: opens a connection to the display.
        take: called when the session begins, with the task that lasts as long as it does.
    """

    kind = ConsoleKind.SPICE

    def __init__(
        self,
        vm_id: str,
        secret: str,
        connect: Callable[[], Awaitable[Side]],
        take: Callable[[SpiceListener, asyncio.Task[Any]], None],
    ) -> None:
        self.vm_id = vm_id
        self.secret = secret
        self._connect = connect
        self._take = take
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[Any] | None = None

    async def listen(self, host: str) -> int:
        """Begin; returns the port."""
        self._server = await asyncio.start_server(self._knock, host, 0, backlog=MAX_CONNECTIONS)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more. A session that has begun goes on; without one, everybody is hung up on."""
        if self._server is not None:
            self._server.close()
        if self._main is None:
            for connection in self._connections:
                connection.cancel()

    def _knock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._serve((reader, writer)), name="spice-channel")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """With its main channel, the whole session ends."""
        if task is self._main:
            self.close()
            for connection in self._connections:
                connection.cancel()

    async def _serve(self, viewer: Side) -> None:
        console: Side | None = None
        try:
            async with asyncio.timeout(_OPEN_DEADLINE_S):
                hello = await _message(viewer[0])
                (connection_id,) = struct.unpack_from("<I", hello, _HEADER.size)
                is_main = connection_id == 0
                if is_main == (self._main is not None):
                    return  # a second viewer, or a channel without a session
                console = await self._connect()
                await self._link(hello, viewer, console)
            await self._pass_on(viewer, console, asyncio.current_task() if is_main else None)
        except HypervisorError as error:
            _log.warning("console_not_opened", vm_id=self.vm_id, console=self.kind.value, error=str(error))
        except (NotSpice, EOFError, OSError, TimeoutError):
            return
        finally:
            if console is not None:
                console[1].close()

    async def _link(self, hello: bytes, viewer: Side, console: Side) -> None:
        """Pass the greeting on and back; what comes next is the password, which is for QEMU alone."""
        console[1].write(hello)
        viewer[1].write(await _message(console[0]))

    async def _pass_on(self, viewer: Side, console: Side, main: asyncio.Task[Any] | None) -> None:
        upward = asyncio.create_task(_copy(viewer[0], console[1]))
        downward = asyncio.create_task(self._answer(viewer, console, main))
        try:
            await asyncio.wait([upward, downward], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in (upward, downward):
                way.cancel()
            await asyncio.gather(upward, downward, return_exceptions=True)

    async def _answer(self, viewer: Side, console: Side, main: asyncio.Task[Any] | None) -> None:
        async with asyncio.timeout(_OPEN_DEADLINE_S):
            verdict = await console[0].readexactly(len(_LINK_OK))
        if verdict != _LINK_OK:
            _log.warning("console_refused", vm_id=self.vm_id, console=self.kind.value, reason="the password is wrong")
        elif main is not None:
            if self._main is not None:
                return  # another viewer was faster
            self._main = main
            self._take(self, main)
            asyncio.get_running_loop().call_later(CHANNELS_S, self.close)
        viewer[1].write(verdict)
        await _copy(console[0], viewer[1])


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read a greeting: a header that says how long the rest is, and the rest.

    Raises:
        NotSpice: it is none.
    """
    header = await reader.readexactly(_HEADER.size)
    magic, _, _, size_bytes = _HEADER.unpack(header)
    if magic != _MAGIC or not 4 <= size_bytes <= _MAX_MESSAGE_BYTES:
        raise NotSpice
    return header + await reader.readexactly(size_bytes)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
