"""How a person's program proves at a console's door that it knows the secret, one way for each kind of console.

* VNC: the viewer's own authentication, answered here; it takes the secret for the display's password. QEMU's display is
  then opened without one, and both sides go on from where the handshake leaves them, the same in every version of RFB.
* Serial: the first line is the secret. The answer is the line "OK", and after it comes whatever the guest says; or a
  line that begins with "ERROR: " and the end.

Source: RFC 6143, 7.1 and 7.2.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import string
import struct
from abc import ABC, abstractmethod
from typing import Final

from nodedaemon.vnc_cipher import CHALLENGE_BYTES, PASSWORD_LENGTH, answer_to

VERSION: Final = b"RFB 003.008\n"
_OLD_VERSIONS: Final = {b"RFB 003.003\n": 3, b"RFB 003.005\n": 3, b"RFB 003.007\n": 7}
"""3.5 is what some viewers say by mistake, to be taken for 3.3."""
_NO_SECURITY: Final = 1
_VNC_SECURITY: Final = 2
_OK: Final = struct.pack(">I", 0)
_FAILED: Final = struct.pack(">I", 1)
_SERIAL_SECRET_BYTES: Final = 24
_MAX_LINE_BYTES: Final = 256


class NotLetIn(Exception):
    """The other side did not prove that it knows the secret, or does not speak the protocol."""


class Door(ABC):
    """One connection that asks to be let in, from its first byte until what it asked for is connected to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @abstractmethod
    async def ask(self, secret: str) -> None:
        """Have the other side prove that it knows the secret; waits for as long as it takes.

        Raises:
            NotLetIn: it does not.
        """

    @abstractmethod
    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bring the console's own side to where bytes can be passed on as they are, and say that it goes on.

        Raises:
            NotLetIn: the console does not speak its protocol.
        """

    @abstractmethod
    async def refuse(self, reason: str) -> None:
        """Say why not, as far as the protocol can."""


class SerialDoor(Door):
    """See the module."""

    async def ask(self, secret: str) -> None:
        """Read one line; see `Door`."""
        line = await _line(self.reader)
        if not hmac.compare_digest(line.rstrip(b"\r\n"), secret.encode()):
            raise NotLetIn("the secret is wrong")

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See `Door`."""
        self.writer.write(b"OK\n")

    async def refuse(self, reason: str) -> None:
        """See `Door`."""
        self.writer.write(f"ERROR: {reason}\n".encode())


class VncDoor(Door):
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._minor = 8

    async def ask(self, secret: str) -> None:
        """Go through VNC authentication; see `Door`."""
        self.writer.write(VERSION)
        version = await self.reader.readexactly(len(VERSION))
        if not version.startswith(b"RFB ") or not version.endswith(b"\n"):
            self._minor = 0
            raise NotLetIn("it is no VNC viewer")
        self._minor = _OLD_VERSIONS.get(version, 8)
        if self._minor == 3:
            self.writer.write(struct.pack(">I", _VNC_SECURITY))
        else:
            self.writer.write(bytes([1, _VNC_SECURITY]))
            if (await self.reader.readexactly(1))[0] != _VNC_SECURITY:
                raise NotLetIn("it wants another kind of authentication than VNC's")
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self.writer.write(challenge)
        answer = await self.reader.readexactly(CHALLENGE_BYTES)
        if not hmac.compare_digest(answer, answer_to(challenge, secret)):
            raise NotLetIn("the password is wrong")

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Go through the display's handshake, which asks for nothing; see `Door`."""
        await reader.readexactly(len(VERSION))
        writer.write(VERSION)
        count = (await reader.readexactly(1))[0]
        if _NO_SECURITY not in await reader.readexactly(count):
            raise NotLetIn("the display asks for a password")
        writer.write(bytes([_NO_SECURITY]))
        if await reader.readexactly(len(_OK)) != _OK:
            raise NotLetIn("the display refused the connection")
        self.writer.write(_OK)

    async def refuse(self, reason: str) -> None:
        """Fail the authentication; see `Door`."""
        if self._minor:
            words = reason.encode()
            self.writer.write(_FAILED + (struct.pack(">I", len(words)) + words if self._minor == 8 else b""))


def new_vnc_password() -> str:
    """Make a password that a viewer can be told: 8 characters of 62, which are 47 bits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(PASSWORD_LENGTH))


def new_line_secret() -> str:
    """Make the secret of a serial console, of 192 bits."""
    return secrets.token_urlsafe(_SERIAL_SECRET_BYTES)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Read up to a newline, not a byte further."""
    line = b""
    while not line.endswith(b"\n"):
        if len(line) == _MAX_LINE_BYTES:
            raise NotLetIn("the first line has to be the secret")
        line += await reader.readexactly(1)
    return line
