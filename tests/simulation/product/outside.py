"""What the product finds around it, replaced: clocks, chance, threads, gRPC's wire, listening sockets.

Nothing of the product is changed. What it asks of the standard library and of the libraries for the network is answered
by the simulated machine whose process asks. `replace` has to run before the product is imported, so histories run in
processes of their own; `runs` starts them.
"""
# ruff: noqa: PLC0415 - what is replaced in libraries needs them imported, and must not import the product before

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as datetime_module
import random
import secrets
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests.simulation.product.loop import PROCESS, VirtualLoop

_ours = ("controlplane", "nodedaemon", "hypervisor", "telemetry", "limiquantix")
_real_datetime = datetime_module.datetime


def _running() -> VirtualLoop | None:
    loop = asyncio._get_running_loop()
    return loop if isinstance(loop, VirtualLoop) else None


def _reading(real: Callable[..., Any], of_boot: bool, scale: int) -> Callable[..., Any]:
    def read(*args: Any) -> Any:
        process = PROCESS.get()
        if process is not None:
            machine = process.machine
            value = machine.clock_s() if of_boot else machine.wall_s()
        elif (loop := _running()) is not None:
            value = loop.now_s if of_boot else loop.now_s + 1_800_000_000.0
        else:
            return real(*args)
        return int(value * scale) if scale > 1 else value

    return read


class _Threads:
    """Takes the place of a pool of threads: what is submitted is done a little later, all at once."""

    def __init__(self, *args: Any, **words: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        loop = _running()
        assert loop is not None, "threads exist in histories only"
        loop.call_later(0.001 * loop.random.random(), work, *args)

    def shutdown(self, wait: bool = True, **words: Any) -> None:
        pass


class _OfKind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real_datetime)


class _Datetime(_real_datetime, metaclass=_OfKind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _real_datetime.fromtimestamp(time.time(), tz)


def _uuid4() -> uuid.UUID:
    loop = _running()
    bits = random.getrandbits(128) if loop is None else loop.random.getrandbits(128)
    return uuid.UUID(int=bits, version=4)


def _connecting(real: Callable[..., Any]) -> Callable[..., Any]:
    def connect(*args: Any, **words: Any) -> Any:
        connection = real(*args, **words)
        process = PROCESS.get()
        if process is not None:
            process.at_death.append(connection.close)  # as the kernel does with files, so locks and transactions end
        return connection

    return connect


def replace() -> None:
    """Put it all in place; for a process that does nothing but run histories."""
    for name, of_boot, scale in (
        ("monotonic", True, 1),
        ("monotonic_ns", True, 10**9),
        ("perf_counter", True, 1),
        ("clock_gettime", True, 1),
        ("clock_gettime_ns", True, 10**9),
        ("time", False, 1),
        ("time_ns", False, 10**9),
    ):
        setattr(time, name, _reading(getattr(time, name), of_boot, scale))
    concurrent.futures.ThreadPoolExecutor = _Threads  # type: ignore[misc,assignment]
    uuid.uuid4 = _uuid4
    secrets.token_bytes = lambda nbytes=None: random.randbytes(nbytes or 32)
    connect = _connecting(sqlite3.connect)
    sqlite3.connect = connect
    sqlite3.dbapi2.connect = connect
    _replace_network()


def _replace_network() -> None:
    import grpc
    import prometheus_client
    import uvicorn

    from tests.simulation.product.wire import SimChannel, SimServer

    grpc.aio.insecure_channel = SimChannel  # type: ignore[assignment]
    grpc.aio.server = SimServer  # type: ignore[assignment]

    async def serve(self: Any, sockets: Any = None) -> None:
        for each in sockets or ():
            each.close()
        await asyncio.get_running_loop().create_future()

    uvicorn.Server.serve = serve  # type: ignore[method-assign]

    class Quiet:
        server_port = 9091

    prometheus_client.start_http_server = lambda *args, **words: (Quiet(), None)  # type: ignore[assignment]


def replace_calendar() -> None:
    """Have modules of the product that took `datetime` by name read the simulated clock; once they are imported."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _ours and getattr(module, "datetime", None) is _real_datetime:
            module.datetime = _Datetime  # type: ignore[attr-defined]
