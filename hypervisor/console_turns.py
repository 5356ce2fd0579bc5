"""Turns at a console that is for one at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from hypervisor.errors import ConsoleInUse

LEAVING_S: Final = 5.0
"""How long one may take to be gone who has left: the stream is given back by way of libvirt's daemon."""
_LOOK_S: Final = 0.05


async def in_turn(open_once: Callable[[], Awaitable[socket.socket]]) -> socket.socket:
    """Open a console as soon as whoever is leaving it has left.

    Somebody who closes a window and opens it again has given the line up, and must not be told that it is in use.

    Raises:
        ConsoleInUse: somebody stays.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + LEAVING_S
    while True:
        try:
            return await open_once()
        except ConsoleInUse:
            if loop.time() >= until_s:
                raise
            await asyncio.sleep(_LOOK_S)
