"""Serve an ASGI application on one address, inside an event loop that belongs to somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from controlplane.api.http.safe_headers import safe_headers
from controlplane.api.http.tls import ServerTls
from limiquantix.rpc.server import AddressInUse

_BACKLOG = 512
_GRACE_S = 5
_MAX_CONCURRENT_CONNECTIONS = 2_000
MAX_CONNECTIONS_OF_ONE_ADDRESS = _MAX_CONCURRENT_CONNECTIONS // 2
"""Many people may stand behind one address, but whoever opens connections and says nothing leaves some for others."""
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

    uvicorn itself waits for ever, so a few thousand callers that send nothing would keep all others out; and so would
    one that opens as many connections, anew whenever they are closed.
    """

    request_deadline_s = REQUEST_DEADLINE_S
    max_of_one_address = MAX_CONNECTIONS_OF_ONE_ADDRESS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.close()
            return
        self._set_deadline()

    def _is_one_too_many(self) -> bool:
        if self.client is None:
            return False
        host = self.client[0]
        clients = (each.client for each in self.connections if isinstance(each, _Protocol))
        return sum(client is not None and client[0] == host for client in clients) > self.max_of_one_address

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other answer is, with the headers that uvicorn leaves out here."""
        headers = (
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"connection", b"close"),
        )
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in headers), b"", msg.encode("ascii")]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

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


def _protocol(deadline_s: float, max_of_one_address: int) -> type[asyncio.Protocol]:
    """Make the class that uvicorn makes its connections from."""
    return type("Protocol", (_Protocol,), {"request_deadline_s": deadline_s, "max_of_one_address": max_of_one_address})


class HttpServer:
    """Owns one listening HTTP server.

    Args:
        request_deadline_s: how long a request may take to arrive; what is later is cut off.
        tls: with what is encrypted; without it nothing is.
        max_of_one_address: how many connections one address may have; more are closed.
    """

    def __init__(
        self,
        application: ASGIApp,
        request_deadline_s: float = REQUEST_DEADLINE_S,
        tls: ServerTls | None = None,
        max_of_one_address: int = MAX_CONNECTIONS_OF_ONE_ADDRESS,
    ) -> None:
        self._application = application
        self._protocol = _protocol(request_deadline_s, max_of_one_address)
        self._tls = tls
        self._server: _Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

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
            http=self._protocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,  # anybody on this machine could say that a call comes from elsewhere
            server_header=False,
            headers=list(safe_headers(over_tls=self._tls is not None)),
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
            limit_concurrency=_MAX_CONCURRENT_CONNECTIONS,
        )
        config.load()
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            config.ssl = self._tls.context
            self._tasks.append(loop.create_task(self._tls.follow(), name="certificate"))
        self._server = _Server(config)
        self._tasks.append(loop.create_task(self._server.serve(sockets=[listener]), name="http"))
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Finish running requests within a few seconds and stop. Safe to call twice."""
        if self._server is None:
            return
        self._server.should_exit = True
        *followers, serving = self._tasks
        await serving
        for each in followers:
            each.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        self._server, self._tasks = None, []


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
