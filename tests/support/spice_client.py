"""A SPICE viewer's side of the beginning of a channel, for tests. Source: spice-protocol, spice/protocol.h."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct

DEADLINE_S = 60.0
MAIN_CHANNEL, DISPLAY_CHANNEL = 1, 2
_HEADER = struct.Struct("<4sIII")
_KEY_BYTES = 162
_MAIN_INIT = 103
_HASH_BYTES = 20


class NotLetIn(Exception):
    """The server refused or hung up."""


class SpiceChannel:
    """One connection to a SPICE server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def link(
        cls, host: str, port: int, password: str, *, session_id: int = 0, kind: int = MAIN_CHANNEL
    ) -> SpiceChannel:
        """Connect and present the password.

        Raises:
            NotLetIn: the server says no, or hangs up.
            ConnectionRefusedError: nothing listens.
        """
        channel = cls(*await asyncio.open_connection(host, port))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await channel._link(password, session_id, kind)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise NotLetIn("the server hung up") from error
        return channel

    async def _link(self, password: str, session_id: int, kind: int) -> None:
        body = struct.pack("<IBBIII", session_id, kind, 0, 0, 0, 18)
        self.writer.write(_HEADER.pack(b"REDQ", 2, 2, len(body)) + body)
        magic, _, _, size_bytes = _HEADER.unpack(await self.reader.readexactly(_HEADER.size))
        assert magic == b"REDQ"
        reply = await self.reader.readexactly(size_bytes)
        (error,) = struct.unpack_from("<I", reply)
        if error:
            raise NotLetIn(f"error {error}")
        self.writer.write(_encrypted(password.encode() + b"\0", reply[4 : 4 + _KEY_BYTES]))
        (error,) = struct.unpack("<I", await self.reader.readexactly(4))
        if error:
            raise NotLetIn(f"error {error}")

    async def session_id(self) -> int:
        """Read what the main channel says first: the id by which other channels belong to it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                _, kind, size_bytes, _ = struct.unpack("<QHII", await self.reader.readexactly(18))
                message = await self.reader.readexactly(size_bytes)
                if kind == _MAIN_INIT:
                    return int(struct.unpack_from("<I", message)[0])

    async def ended(self) -> bool:
        """Wait until the server closes the connection."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.reader.read(2**16):
                continue
        return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()


def _encrypted(message: bytes, public_key: bytes) -> bytes:
    """Encrypt by RSA with OAEP and SHA-1. Source: RFC 8017, 7.1.1."""
    marker = public_key.index(b"\x02\x81\x81\x00") + 4  # an integer of 129 bytes: the modulus
    modulus = int.from_bytes(public_key[marker : marker + 128])
    exponent = int.from_bytes(public_key[marker + 130 : marker + 130 + public_key[marker + 129]])
    padding = bytes(128 - 2 * _HASH_BYTES - 2 - len(message))
    block = hashlib.sha1(b"").digest() + padding + b"\x01" + message  # noqa: S324  # what the protocol says
    seed = os.urandom(_HASH_BYTES)
    masked = _mixed(block, _mask(seed, len(block)))
    masked_seed = _mixed(seed, _mask(masked, _HASH_BYTES))
    return pow(int.from_bytes(b"\0" + masked_seed + masked), exponent, modulus).to_bytes(128)


def _mask(seed: bytes, length: int) -> bytes:
    digests = (hashlib.sha1(seed + struct.pack(">I", number)).digest() for number in range(length // _HASH_BYTES + 1))  # noqa: S324
    return b"".join(digests)[:length]


def _mixed(first: bytes, second: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(first, second, strict=True))
