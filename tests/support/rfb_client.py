"""A VNC viewer's side of the beginning of a session, for tests. Source: RFC 6143, 7.1 to 7.3."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

from nodedaemon.vnc_cipher import answer_to

DEADLINE_S = 60.0


class NotLetIn(Exception):
    """The server refused; the message is its own."""


@dataclass(frozen=True, slots=True)
class Screen:
    """What a server says of its screen."""

    width: int
    height: int
    name: str


class RfbClient:
    """One connection to a VNC server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, host: str, port: int) -> RfbClient:
        """Connect; `ConnectionRefusedError` if nothing listens."""
        return cls(*await asyncio.open_connection(host, port))

    async def log_in(self, password: str = "", *, version: bytes = b"RFB 003.008\n") -> Screen:
        """Go through the handshake, with VNC authentication if the server wants it.

        Raises:
            NotLetIn: the server says no, or hangs up.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._log_in(password, version)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise NotLetIn("the server hung up") from error

    async def _log_in(self, password: str, version: bytes) -> Screen:
        assert (await self.reader.readexactly(12)).startswith(b"RFB 003.")
        self.writer.write(version)
        if version == b"RFB 003.003\n":
            (kind,) = struct.unpack(">I", await self.reader.readexactly(4))
        else:
            count = (await self.reader.readexactly(1))[0]
            if not count:
                raise NotLetIn(await self._reason())
            kinds = await self.reader.readexactly(count)
            kind = 2 if 2 in kinds else kinds[0]
            self.writer.write(bytes([kind]))
        if kind == 2:
            self.writer.write(answer_to(await self.reader.readexactly(16), password))
        if kind == 2 or version == b"RFB 003.008\n":
            (result,) = struct.unpack(">I", await self.reader.readexactly(4))
            if result:
                raise NotLetIn(await self._reason() if version == b"RFB 003.008\n" else "refused")
        self.writer.write(b"\x01")
        width, height = struct.unpack(">HH", await self.reader.readexactly(4))
        await self.reader.readexactly(16)
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        return Screen(width, height, (await self.reader.readexactly(length)).decode())

    async def _reason(self) -> str:
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        return (await self.reader.readexactly(length)).decode()

    async def ended(self) -> bool:
        """Wait until the server closes the connection."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.reader.read(2**16):
                continue
        return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
