"""A way for this process to call servers in a network namespace: a forwarder whose outer side is on loopback here."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_NAMESPACES: Final = Path("/run/netns")
_DEADLINE_S: Final = 10.0
_CHUNK_BYTES: Final = 65536


class Doors:
    """Forwards connections into one namespace, from a thread of its own that lives there."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._is_inside = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"doors to {namespace}", daemon=True)

    def start(self) -> None:
        """Enter the namespace."""
        self._thread.start()
        assert self._is_inside.wait(_DEADLINE_S), f"the namespace {self._namespace} cannot be entered"

    def stop(self) -> None:
        """Close all doors and what goes through them."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_DEADLINE_S)

    def open(self, address: str) -> str:
        """Make a door to "a.b.c.d:port" in there; returns where it is here. It stays open while nobody listens."""
        host, _, port = address.rpartition(":")
        outer = socket.create_server(("127.0.0.1", 0))
        here = f"127.0.0.1:{outer.getsockname()[1]}"

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _forward(reader, writer, host, int(port))

        async def listen() -> None:
            await asyncio.start_server(forward, sock=outer)

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(_DEADLINE_S)
        return here

    def _run(self) -> None:
        descriptor = os.open(_NAMESPACES / self._namespace, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                return
        finally:
            os.close(descriptor)
        self._is_inside.set()
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_end_tasks())
        finally:
            self._loop.close()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    with suppress(OSError):
        there_reader, there_writer = await asyncio.open_connection(host, port)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, there_writer))
                pumps.create_task(_pump(there_reader, writer))
        finally:
            there_writer.close()
    with suppress(OSError):
        writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
    target.close()


@contextmanager
def doors_to(namespace: str) -> Iterator[Doors]:
    """Have doors to a namespace while the context lasts."""
    doors = Doors(namespace)
    doors.start()
    try:
        yield doors
    finally:
        doors.stop()
