"""Ports for programs that must be told one before they listen, or that others shall find where they were before.

Asking the kernel for a free one and giving it back is a race: whoever asks next, in another of the tests' processes,
may get the same. These are of a range out of which the kernel gives none, and each stays this process's own.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_FIRST: Final = 12_000
_OTHERWISE_TO: Final = 32_768
"""On a machine that gives out nearly all: what others of the tests' processes have is left alone at least."""
_FEWEST: Final = 1_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: Final[list[socket.socket]] = []
"""One of each port, under a name that only one process of the machine can have; they end with this process."""


def own_ports(count: int) -> list[int]:
    """Find ports of the loopback address on which nothing listens, neither TCP nor UDP, and keep them."""
    given_out_from = int(_RANGE.read_text().split()[0])
    ports = range(_FIRST, given_out_from if given_out_from > _FIRST + _FEWEST else _OTHERWISE_TO)
    found: list[int] = []
    for port in random.sample(ports, len(ports)):
        if len(found) == count:
            return found
        if _is_mine(port) and _is_free(port):
            found.append(port)
    raise AssertionError("all ports are taken")


def own_port() -> int:
    """Find one, see `own_ports`."""
    return own_ports(1)[0]


def _is_mine(port: int) -> bool:
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0limiquantix-tests-port-{port}")
    except OSError:
        name.close()
        return False
    _held.append(name)
    return True


def _is_free(port: int) -> bool:
    with ExitStack() as stack:
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
