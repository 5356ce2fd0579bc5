"""The connections that a library accepted in this process: who is at their other end, how much came, and their end.

gRPC's core does not tell of its connections and cannot be told to close one. Its sockets are this process's own, so the
kernel tells and does both, without any privilege. Sources: proc_pid_fd(5), tcp(7) and the kernel's `struct tcp_info`;
socket(7) and the kernel's "Linux Socket Filtering" for filters of listening sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from limiquantix.rpc.peers import plain_address

_TCP_INFO_BYTES: Final = 256
_ACKNOWLEDGED_AND_RECEIVED: Final = struct.Struct("QQ")
_ACKNOWLEDGED_OFFSET: Final = 120
"""Of `tcpi_bytes_acked`, which `tcpi_bytes_received` follows; both since Linux 4.1."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection as the kernel sees it now.

    Attributes:
        id: of the socket, which no other ever has.
        address: of the other end, an IPv4 one as such however the socket has it.
        received_bytes: all that came, TLS included.
        sent_bytes: all that the other end has acknowledged.
    """

    id: int
    address: str
    port: int
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class _Socket:
    """What does not change of a socket; `peer` is None for what is no connection accepted at the port."""

    cookie: int
    is_listening: bool = False
    peer: tuple[str, int] | None = None


class OwnSockets:
    """The sockets of this process at one of its listening ports. For one thread at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._known: dict[int, _Socket] = {}

    def accepted(self) -> Sequence[Accepted]:
        """Look at all connections. Takes 2 us for each descriptor of the process, as much again for each connection."""
        known, self._known = self._known, {}
        found = []
        for name in os.listdir("/proc/self/fd"):
            descriptor = int(name)
            cookie = _cookie_of(descriptor)
            if not cookie:
                continue
            seen = known.get(descriptor)
            if seen is None or seen.cookie != cookie:
                seen = self._identified(descriptor, cookie)
            if seen is None:
                continue
            self._known[descriptor] = seen
            if seen.peer is not None and (counts := _counts_of(descriptor)) is not None:
                sent_bytes, received_bytes = counts
                found.append(Accepted(cookie, *seen.peer, received_bytes=received_bytes, sent_bytes=sent_bytes))
        return found

    def end(self, connection: Accepted) -> None:
        """Reset a connection; what has come and was not read yet is dropped. Harmless when it is gone."""
        for descriptor, known in self._known.items():
            if known.cookie == connection.id:
                with _duplicate(descriptor, known.cookie) as held:
                    if held is not None:
                        _disconnect(held)

    def bar(self, addresses: Collection[str]) -> None:
        """Have the kernel take no new connections of these addresses, and of no others; those that stand go on."""
        program = _filter_against(addresses)
        for descriptor, known in self._known.items():
            if known.is_listening:
                with _duplicate(descriptor, known.cookie) as held:
                    if held is not None:
                        _attach(held, program)

    def _identified(self, descriptor: int, cookie: int) -> _Socket | None:
        """Find out what a socket is; None if it is gone, or is on its way: then it is looked at again next time."""
        with _duplicate(descriptor, cookie) as held:
            if held is None:
                return None
            if held.family not in (socket.AF_INET, socket.AF_INET6) or held.type != socket.SOCK_STREAM:
                return _Socket(cookie)
            try:
                return self._at_the_port(held, cookie)
            except OSError:
                return None

    def _at_the_port(self, held: socket.socket, cookie: int) -> _Socket:
        if held.getsockname()[1] != self._port:
            return _Socket(cookie)
        if held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return _Socket(cookie, is_listening=True)
        address, port = held.getpeername()[:2]
        return _Socket(cookie, peer=(plain_address(address), port))


@contextlib.contextmanager
def _duplicate(descriptor: int, cookie: int) -> Iterator[socket.socket | None]:
    """Hold on to a socket for a moment; None if the descriptor is another's by now."""
    try:
        copy = os.dup(descriptor) if _cookie_of(descriptor) == cookie else -1
    except OSError:
        copy = -1
    if copy < 0 or not (found := _cookie_of(copy)):
        # One that became a file in between is left open: closing any descriptor of a file drops all locks that this
        # process has on it (fcntl(2)), and without SQLite's the next program that closes the database cuts it under us.
        yield None
        return
    with socket.socket(fileno=copy) as held:
        yield held if found == cookie else None


# -- what Python's sockets do not offer

_LIBC: Final = ctypes.PyDLL(None, use_errno=True)
"""Called without letting go of the interpreter's lock: while a flood keeps it busy, to get it back takes 5 ms."""
_SO_COOKIE: Final = 57


def _cookie_of(descriptor: int) -> int:
    """Read the kernel's number of a socket, which no other ever has; 0 for all else."""
    cookie = ctypes.c_uint64()
    return cookie.value if _read(descriptor, socket.SOL_SOCKET, _SO_COOKIE, cookie) else 0


def _counts_of(descriptor: int) -> tuple[int, int] | None:
    """Read how many bytes a TCP socket has sent that were acknowledged, and how many it has received."""
    info = (ctypes.c_char * _TCP_INFO_BYTES)()
    if not _read(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, info):
        return None
    return _ACKNOWLEDGED_AND_RECEIVED.unpack_from(info, _ACKNOWLEDGED_OFFSET)


def _read(descriptor: int, level: int, option: int, into: ctypes.c_uint64 | ctypes.Array[ctypes.c_char]) -> bool:
    length = ctypes.c_uint32(ctypes.sizeof(into))
    return bool(_LIBC.getsockopt(descriptor, level, option, ctypes.byref(into), ctypes.byref(length)) == 0)


_NOWHERE: Final = struct.pack("H14x", socket.AF_UNSPEC)


def _disconnect(held: socket.socket) -> None:
    """Reset a connection: `shutdown` would leave megabytes in its buffer that the library goes on to read."""
    _LIBC.connect(held.fileno(), _NOWHERE, len(_NOWHERE))


_SO_ATTACH_FILTER: Final = 26
_LOAD_BYTE, _LOAD_WORD, _AND, _IF_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x06
_NETWORK_HEADER: Final = -0x100000
"""`SKF_NET_OFF`: offsets from here are into the packet's IP header."""
_IPV4_SOURCE, _IPV6_SOURCE = 12, 8
_TAKE, _DROP = 0xFFFF_FFFF, 0
_Instruction = tuple[int, int, int, int]
"""Code, how many instructions to skip if true and if false, and the operand: `struct sock_filter`."""
MAX_BARRED: Final = 60
"""Addresses that one filter holds; jumps reach 255 instructions far."""


def _filter_against(addresses: Collection[str]) -> Sequence[_Instruction]:
    """Write a filter that drops packets from some addresses: of IPv4 one each, of IPv6 the /64 of each."""
    found = [ipaddress.ip_address(address) for address in sorted(addresses)[:MAX_BARRED]]
    v4 = [int(each) for each in found if each.version == 4]
    v6 = sorted({int(each) >> 64 for each in found if each.version == 6})
    four: list[_Instruction] = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV4_SOURCE)]
    for number, address in enumerate(v4):
        four.append((_IF_EQUAL, len(v4) - number, 0, address))
    four += [(_RETURN, 0, 0, _TAKE), (_RETURN, 0, 0, _DROP)]
    six: list[_Instruction] = []
    for network in v6:
        six += [
            (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV6_SOURCE),
            (_IF_EQUAL, 0, 3, network >> 32),
            (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV6_SOURCE + 4),
            (_IF_EQUAL, 0, 1, network & 0xFFFF_FFFF),
            (_RETURN, 0, 0, _DROP),
        ]
    six.append((_RETURN, 0, 0, _TAKE))
    version: list[_Instruction] = [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_AND, 0, 0, 0xF0),
        (_IF_EQUAL, 0, len(four), 0x40),
    ]
    return [*version, *four, *six]


def _attach(held: socket.socket, program: Sequence[_Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each[:3], each[3] & _TAKE) for each in program))
    held.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
