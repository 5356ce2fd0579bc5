"""Serve an ASGI application on one address, inside an event loop that belongs to somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from limiquantix.rpc.server import AddressInUse

_BACKLOG = 512
_GRACE_S = 5
_MAX_CONCURRENT_CONNECTIONS = 2_000
_KEEP_ALIVE_S = 75

REQUEST_DEADLINE_S = 60.0
"""From the first byte of a request, or from connecting, to its last: 16 MiB over 2.2 Mbit/s."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """uvicorn's connection, closed when its caller takes too long over a request.

    uvicorn itself waits for ever, so a few thousand callers that send nothing would keep all others out.
    """

    request_deadline_s = REQUEST_DEADLINE_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        """Let the clock run exactly while a request is under way to us."""
        if not self._is_arriving() or self.transport.is_closing():
            self._clear_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.request_deadline_s, self.transport.close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_arriving(self) -> bool:
        if self.cycle is None:
            return True  # the first one; those after it begin with their first byte
        if self.cycle.response_complete:
            return bool(self.conn.trailing_data[0])
        return self.cycle.more_body


def _protocol(deadline_s: float) -> type[asyncio.Protocol]:
    """Make the class that uvicorn makes its connections from."""
    return type("Protocol", (_Protocol,), {"request_deadline_s": deadline_s})


class HttpServer:
    """Owns one listening HTTP server.

    Args:
        request_deadline_s: how long a request may take to arrive; what is later is cut off.
    """

    def __init__(self, application: ASGIApp, request_deadline_s: float = REQUEST_DEADLINE_S) -> None:
        self._application = application
        self._request_deadline_s = request_deadline_s
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> int:
        """Listen on "host:port" (port 0 takes a free one) and serve.

        Returns:
            The port it listens on.

        Raises:
            AddressInUse: the address cannot be bound.
        """
        listener = _listen(address)
        config = uvicorn.Config(
            self._application,
            http=_protocol(self._request_deadline_s),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
            limit_concurrency=_MAX_CONCURRENT_CONNECTIONS,
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Finish running requests within a few seconds and stop. Safe to call twice."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._server = self._task = None


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio sets TCP_NODELAY only then; without it each answer waits 40 ms for the client's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressInUse(f"cannot listen on {address}: {error.strerror}") from error
    return listener
