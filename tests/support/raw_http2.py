"""HTTP/2 spoken frame by frame, as no well-behaved library would: floods, resets, endless headers.

Source: RFC 9113, sections 4 and 6; RFC 7541, section 6.2.2 (literals that are not indexed need no table).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """Encode a header that no table gets to know."""
    return b"\0" + _text(name.encode()) + _text(value.encode())


def _text(data: bytes) -> bytes:
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, encoded = len(data) - 127, bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes(encoded) + bytes([rest]) + data


def call_headers(path: str, *more: bytes) -> bytes:
    """Encode the headers of a gRPC call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return b"".join(literal(name, value) for name, value in fields.items()) + b"".join(more)


class RawConnection:
    """One connection that says what it is told to; as a context manager it closes."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self) -> None:
        """Begin as a client must."""
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, data: bytes) -> bool:
        """Send; False once the server has closed the connection, or does not read any more."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Give what the server sends, kind, flags, stream and payload, until it closes or nothing came in time."""
        buffer = b""
        with contextlib.suppress(OSError):
            while True:
                received = self._socket.recv(65_536)
                if not received:
                    return
                buffer += received
                while len(buffer) >= 9:
                    length = int.from_bytes(buffer[:3])
                    if len(buffer) < 9 + length:
                        break
                    kind, flags, stream = struct.unpack(">BBI", buffer[3:9])
                    yield kind, flags, stream & 0x7FFF_FFFF, buffer[9 : 9 + length]
                    buffer = buffer[9 + length :]

    def is_closed_by_server(self) -> bool:
        """Wait for the end of the connection; False if it does not come in time."""
        try:
            while self._socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True
