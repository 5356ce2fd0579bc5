"""gRPC without sockets: stubs, servicers, interceptors and messages are real, their bytes pass a network that lies.

A call is one message there and one back. Each may be late, lost, or held somewhere and delivered when nobody expects
it; links are cut in one direction each. What a server began goes on although its answer is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, NamedTuple

import grpc

from tests.simulation.product.loop import PROCESS, Process
from tests.simulation.product.network import Listener, Network

REFUSED_S = 3.0
"""How long connecting to a machine that is off takes at most, until it is given up."""


KEEPALIVE_S = 25.0
"""After which a client notices at the latest that its connection is dead."""


NOT_STREAMED = frozenset({"StreamMetrics", "StreamEvents"})
"""What would go on all the time, and decides nothing here."""


class _Details(NamedTuple):
    method: str
    invocation_metadata: Any


class _Answer(NamedTuple):
    code: grpc.StatusCode | None
    """None for a message of a stream, of which more comes."""
    details: str
    trailing: tuple[tuple[str, Any], ...]
    payload: bytes


class SimChannel:
    """A client's channel, as generated stubs use it."""

    def __init__(self, address: str, options: Any = None) -> None:
        self._address = address

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """Make what calls a method."""

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> _Call:
            payload = request_serializer(request)
            return _Call(self._address, method, payload, timeout, tuple(metadata or ()), response_deserializer)

        return call

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """Make what calls a method whose answer is many messages."""

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> _Stream:
            if method.rpartition("/")[2] in NOT_STREAMED:
                raise _error(_Answer(grpc.StatusCode.UNIMPLEMENTED, f"no {method} in the simulation", (), b""))
            payload = request_serializer(request)
            return _Stream(self._address, method, payload, timeout, tuple(metadata or ()), response_deserializer)

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """Make what calls no method: the product has none whose request is a stream."""

    stream_stream = stream_unary

    async def close(self, grace: float | None = None) -> None:
        """Let go."""


def _error(answer: _Answer) -> grpc.aio.AioRpcError:
    assert answer.code is not None
    trailing = grpc.aio.Metadata(*answer.trailing)
    return grpc.aio.AioRpcError(answer.code, grpc.aio.Metadata(), trailing, details=answer.details)


class _Stream:
    """A call under way whose answer is many messages, which come in order until it breaks off."""

    def __init__(
        self, address: str, method: str, payload: bytes, timeout_s: float | None, metadata: Any, decode: Any
    ) -> None:
        self._came: asyncio.Queue[_Answer] = asyncio.Queue()
        self._decode = decode
        self._cancel = _begin(address, method, payload, timeout_s, metadata, self._came.put_nowait)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (what := await self._came.get()).code is None:
            yield self._decode(what.payload)
        if what.code is not grpc.StatusCode.OK:
            raise _error(what)

    def cancel(self) -> None:
        """Want no more of it; the server hears that, unless it cannot be reached."""
        self._cancel()


class _Call:
    """A call with one answer, which is made when it is awaited."""

    def __init__(
        self, address: str, method: str, payload: bytes, timeout_s: float | None, metadata: Any, decode: Any
    ) -> None:
        self._asked = (address, method, payload, timeout_s, metadata)
        self._timeout_s = timeout_s
        self._decode = decode
        self._trailing = grpc.aio.Metadata()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._make().__await__()

    async def _make(self) -> Any:
        future: asyncio.Future[_Answer] = Network.current.loop.create_future()

        def receive(answer: _Answer) -> None:
            if not future.done():
                future.set_result(answer)

        _begin(*self._asked, receive)
        try:
            async with asyncio.timeout(self._timeout_s):
                came = await future
        except TimeoutError:
            raise _error(_Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", (), b"")) from None
        if came.code is not grpc.StatusCode.OK:
            raise _error(came)
        self._trailing = grpc.aio.Metadata(*came.trailing)
        return self._decode(came.payload)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What came with the answer; after that."""
        return self._trailing


def _begin(
    address: str,
    method: str,
    payload: bytes,
    timeout_s: float | None,
    metadata: Any,
    receive: Callable[[_Answer], None],
) -> Callable[[], object]:
    """Have a call made; `receive` gets all that comes of it. Returns what has the server told to end it."""
    network, caller = Network.current, PROCESS.get()
    assert caller is not None, "only processes call"
    source, target = caller.machine.name, network.site(address)
    sent: deque[_Answer] = deque()
    served: list[asyncio.Task[None]] = []

    def hear(what: _Answer) -> None:
        if caller.is_alive:
            receive(what)

    def arrive_back() -> None:
        if sent:  # whatever overtook what, they are in order
            hear(sent.popleft())

    def answer(what: _Answer) -> None:
        sent.append(what)
        if not network.send(target, source, arrive_back):
            lost()

    def lost() -> None:
        wait_s = network.loop.random.uniform(KEEPALIVE_S / 4, KEEPALIVE_S)
        network.loop.outside(wait_s, lambda: hear(unreachable("keepalive timeout")))

    def unreachable(why: str) -> _Answer:
        return _Answer(grpc.StatusCode.UNAVAILABLE, why, (), b"")

    def arrive() -> None:
        listener = network.listeners.get(address)
        if target in network.off:
            wait_s = network.loop.random.uniform(0.1, REFUSED_S)
            network.loop.outside(wait_s, lambda: hear(unreachable("no route to host")))
        elif listener is None or not listener.process.is_alive:
            answer(unreachable("connection refused"))
        else:
            served.append(listener.server.take(listener.process, method, payload, timeout_s, metadata, answer, lost))

    def end() -> None:
        for task in served:
            task.cancel()

    if not network.call(source, target, method, arrive):
        lost()
    return lambda: network.send(source, target, end)


class _Context:
    """What a servicer sees of a call."""

    def __init__(self, metadata: Any, ends_s: float | None, now_s: Callable[[], float]) -> None:
        self._metadata, self._ends_s, self._now_s = metadata, ends_s, now_s
        self._trailing: tuple[tuple[str, Any], ...] = ()
        self.asked: Any = None
        self.aborted: _Answer | None = None

    async def read(self) -> Any:
        """Give the request, which has arrived."""
        return self.asked

    def invocation_metadata(self) -> Any:
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def time_remaining(self) -> float | None:
        return None if self._ends_s is None else max(0.0, self._ends_s - self._now_s())

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self.aborted = _Answer(code, details, tuple(trailing_metadata), b"")
        raise grpc.aio.AbortError


class SimServer:
    """A server, as `grpc.aio.server` makes it."""

    def __init__(
        self, interceptors: Sequence[Any] = (), options: Any = None, maximum_concurrent_rpcs: Any = None
    ) -> None:
        self._interceptor = interceptors[0]
        self._generic: list[Any] = []
        self._addresses: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Add a service."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        """Streams, which nobody calls here."""

    def add_insecure_port(self, address: str) -> int:
        """Say where it will listen."""
        self._addresses.append(address)
        return int(address.rpartition(":")[2])

    async def start(self) -> None:
        """Listen."""
        process = PROCESS.get()
        assert process is not None
        for address in self._addresses:
            Network.current.listeners[address] = Listener(process, self)

    async def stop(self, grace: float | None) -> None:
        """Listen no more."""
        for address in self._addresses:
            Network.current.listeners.pop(address, None)

    def take(
        self,
        process: Process,
        method: str,
        payload: bytes,
        timeout_s: float | None,
        metadata: Any,
        answer: Callable[[_Answer], None],
        lost: Callable[[], None],
    ) -> asyncio.Task[None]:
        """Serve a call that arrived, in a task of the process that listens.

        If that dies, whoever called is told, by the machine, or sooner or later by its own keepalive.
        """
        has_answered = False

        def once(what: _Answer) -> None:
            nonlocal has_answered
            if not has_answered:
                has_answered = what.code is not None
                answer(what)

        def reset() -> None:
            if process.machine.name in Network.current.off:
                lost()
            else:
                once(_Answer(grpc.StatusCode.UNAVAILABLE, "connection reset", (), b""))

        process.at_death.append(reset)
        task = process.spawn(self._serve(method, payload, timeout_s, metadata, once))
        task.add_done_callback(lambda _: process.at_death.remove(reset), context=None)
        return task

    async def _serve(self, method: str, payload: bytes, timeout_s: float | None, metadata: Any, answer: Any) -> None:
        loop = Network.current.loop
        details = _Details(method, metadata)
        context = _Context(metadata, None if timeout_s is None else loop.now_s + timeout_s, loop.time)

        async def find(asked: Any) -> Any:
            found = (handlers.service(details) for handlers in self._generic)
            return next((handler for handler in found if handler is not None), None)

        handler = await self._interceptor.intercept_service(find, details)
        try:
            async with asyncio.timeout(timeout_s):
                context.asked = handler.request_deserializer(payload)
                if handler.response_streaming:
                    async for each in handler.stream_stream(None, context):
                        answer(_Answer(None, "", (), handler.response_serializer(each)))
                    encoded = b""
                else:
                    encoded = handler.response_serializer(await handler.stream_unary(None, context))
        except grpc.aio.AbortError:
            assert context.aborted is not None
            answer(context.aborted)
        except TimeoutError:
            answer(_Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", (), b""))
        else:
            answer(_Answer(grpc.StatusCode.OK, "", context.trailing_metadata(), encoded))
