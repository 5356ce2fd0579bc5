"""A grpc.aio server as every LimiQuantix daemon runs it: pipeline, health, reflection, TLS, bounded messages."""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_status import rpc_status

from limiquantix.errors import ApiError, InvalidArgument, Reason
from limiquantix.rpc.limits import MAX_MESSAGE_BYTES, CallLimit
from limiquantix.rpc.pipeline import CallPipeline, is_filled
from limiquantix.rpc.status import to_status

MAX_CONCURRENT_CALLS = 5_000
"""Calls that are taken at once; more are refused. 10,000 nodes with high availability send so many heartbeats a second,
so that one second in which none is answered has none refused. Each that waits takes some 20 KiB."""

MAX_STREAMS_PER_CONNECTION = 1_000
"""Calls under way on one connection; further ones wait at the client. Programs that do more at once open another."""

_MAX_PENDING_CALLS = 10 * MAX_STREAMS_PER_CONNECTION
"""Calls that have come and that Python has not looked at yet. Of more, gRPC cancels some by chance, whoever made them:
by its own default of 1,000 one connection of a stranger is enough to have others' calls cancelled."""

_MAX_METADATA_BYTES = 16 * 2**10
"""Headers of one call: a token of an OIDC issuer with hundreds of groups has some 8 KiB."""

MAX_HEADER_FIELDS = 128
"""Of one call. `_MAX_METADATA_BYTES` is held against each HTTP/2 frame alone, so that a call of small frames can have
millions; that costs microseconds for each, every time that it is asked for them."""

_HANDSHAKE_MS = 10_000
"""From connecting to the client's HTTP/2 settings: whoever sends nothing holds a connection no longer."""

REQUEST_DEADLINE_S = 10.0
"""From the headers of a call to its request; the headers are enough to take up one of `MAX_CONCURRENT_CALLS`."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server on the same port silently takes half of the calls
    # Else it lets each connection send 4 MiB, and more as it measures, before anybody has looked at the call's headers.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_PENDING_CALLS),
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
)


class AddressInUse(Exception):
    """The listen address cannot be bound; the message names it."""


Admit = Callable[[str, Any], Awaitable[None]]
"""Looks at a call before it is served, given its method and metadata; raises an `ApiError` to refuse it."""


class _Unfit(enum.Enum):
    """Stands for a request that no message was made of."""

    UNREADABLE = enum.auto()
    TOO_LARGE = enum.auto()


class PipelineInterceptor(grpc.aio.ServerInterceptor):
    """Puts every call of the server's own services through the pipeline, and has its guard admit all others.

    To the library all methods take streams of requests, of which one is read: so the guard is asked before the request
    is waited for, and that ends. On the wire there is no difference.
    """

    def __init__(
        self,
        pipeline: CallPipeline,
        services: Sequence[str],
        admit: Admit | None = None,
        request_s: float = REQUEST_DEADLINE_S,
    ) -> None:
        self._pipeline = pipeline
        self._request_s = request_s
        self._admit = admit
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one method; made once a method, since gRPC asks for it at every call."""
        if len(handler_call_details.invocation_metadata) > MAX_HEADER_FIELDS:
            return _TOO_MANY_FIELDS
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrap = self._wrap if method.startswith(self._prefixes) else self._behind_the_guard
        return self._wrapped.setdefault(method, wrap(method, handler))

    def _behind_the_guard(self, method: str, handler: Any) -> Any:
        """Wrap what is no service of ours: health, whose methods take one request, and reflection, which takes many."""

        async def asked(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            """Return what the handler is to be given, once it is known who calls."""
            try:
                await self._pipeline.admit(method, context)
                if handler.request_streaming:
                    return requests
                request = await self._arrived(context)
                if isinstance(request, _Unfit):
                    raise self._refusal(method, request)
                return request
            except ApiError as error:
                await _abort(context, error)

        async def unary(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await handler.unary_unary(await asked(requests, context), context)

        async def answering(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async for response in serve(await asked(requests, context), context):
                yield response

        async def writing(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await serve(await asked(requests, context), context)

        serve = handler.stream_stream or handler.unary_stream
        stream = answering if inspect.isasyncgenfunction(serve) else writing
        deserialize = handler.request_deserializer
        if not handler.request_streaming:
            deserialize = _readable_or_not(deserialize, self._pipeline.limits.of(method))
        coders = (deserialize, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, *coders)
        return grpc.stream_unary_rpc_method_handler(unary, *coders)

    def _wrap(self, method: str, handler: Any) -> Any:
        deserialize = _readable_or_not(handler.request_deserializer, self._pipeline.limits.of(method))
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), deserialize, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), deserialize, handler.response_serializer
        )

    def _unary(self, method: str, behaviour: Callable[..., Awaitable[Message]]) -> Any:
        filled = is_filled(behaviour)

        async def serve(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            if self._admit is not None and filled:
                await self._admit(method, context.invocation_metadata())
            return await behaviour(request, context)

        async def call(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            try:
                await self._pipeline.enter(method, context)
                request = await self._arrived(context)
                if isinstance(request, _Unfit):
                    raise self._pipeline.refused(method, self._refusal(method, request))
                return await self._pipeline.unary(
                    method, request, lambda: serve(request, context), origin=context, filled=filled, has_entered=True
                )
            except ApiError as error:
                await _abort(context, error)
                raise AssertionError("abort returned") from error

        return call

    def _stream(self, method: str, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
        filled = is_filled(behaviour)

        async def call(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            try:
                await self._pipeline.enter(method, context)
                request = await self._arrived(context)
                if isinstance(request, _Unfit):
                    raise self._pipeline.refused(method, self._refusal(method, request))
                if self._admit is not None and filled:
                    await self._admit(method, context.invocation_metadata())
                responses = self._pipeline.stream(
                    method,
                    request,
                    lambda: behaviour(request, context),
                    origin=context,
                    filled=filled,
                    has_entered=True,
                )
                async for response in responses:
                    yield response
            except ApiError as error:
                await _abort(context, error)

        return call

    async def _arrived(self, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Wait for the request of a call that has one, but not for ever.

        The library itself waits as long as the caller likes, so calls whose requests never come would take up all that
        the server takes at once.
        """
        try:
            async with asyncio.timeout(self._request_s):
                request = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request came within {self._request_s:g} s")
        return _Unfit.UNREADABLE if request is grpc.aio.EOF else request

    def _refusal(self, method: str, unfit: _Unfit) -> ApiError:
        if unfit is _Unfit.TOO_LARGE:
            return self._pipeline.limits.of(method).refusal(method)
        words = "the bytes sent are not a message of the method's request type"
        return InvalidArgument(Reason.MALFORMED_REQUEST, words)


async def _refuse_fields(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    """End a call without looking at its headers, which is what costs."""
    words = f"a call has at most {MAX_HEADER_FIELDS} header fields; send fewer"
    await _abort(context, InvalidArgument(Reason.MALFORMED_REQUEST, words))
    raise AssertionError("abort returned")


_TOO_MANY_FIELDS: Any = grpc.stream_unary_rpc_method_handler(_refuse_fields)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ApiError) -> None:
    """End a call with an error, without losing the metadata that the servicer has set."""
    status = rpc_status.to_status(to_status(error))
    metadata = (*(context.trailing_metadata() or ()), *status.trailing_metadata)
    await context.abort(status.code, status.details, metadata)


def _readable_or_not(deserialize: Callable[[bytes], Message], limit: CallLimit) -> Callable[[bytes], Message | _Unfit]:
    """Tell what is wrong with bytes: what the library would answer is UNKNOWN, with the exception's text."""

    def read(data: bytes) -> Message | _Unfit:
        if len(data) > limit.request_bytes:
            return _Unfit.TOO_LARGE
        try:
            return deserialize(data)
        except DecodeError:
            return _Unfit.UNREADABLE

    return read


class _GenericHandlers:
    """A server as generated code adds services to it, but for the registration of each unary method.

    The library waits for calls of all registered methods at once, anew for every call: with a hundred of them that is a
    fifth of what a small call costs. Calls of methods that are not registered come through one place. Streams are
    registered: the library does not tell a handler that came through that place when its client is gone.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        """Register streams; the service's generic handler has all other methods."""
        streams = {
            name: handler
            for name, handler in handlers.items()
            if handler.request_streaming or handler.response_streaming
        }
        self._server.add_registered_method_handlers(service_name, streams)


class RpcServer:
    """Owns one listening gRPC server.

    Args:
        add_services: registers the servicers, e.g. `lambda s: add_VMServiceServicer_to_server(vm, s)`.
        services: their full names, for health, reflection and the pipeline.
        admit: looks at each call of these services before it is served.
        reflects: whether the server describes its services to whom the guard admits.
        request_s: how long a call's request may take to come.
    """

    def __init__(
        self,
        pipeline: CallPipeline,
        services: Sequence[str],
        add_services: Callable[[grpc.aio.Server], None],
        tls: grpc.ServerCredentials | None = None,
        admit: Admit | None = None,
        *,
        reflects: bool = True,
        request_s: float = REQUEST_DEADLINE_S,
    ) -> None:
        self._services = tuple(services)
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=[PipelineInterceptor(pipeline, services, admit, request_s)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        handlers: Any = _GenericHandlers(self._server)
        add_services(handlers)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, handlers)
        if reflects:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            # Not `enable_server_reflection`: for anything but a bare server it takes the servicer that keeps a thread
            # for each caller as long as that one likes.
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer(names), handlers
            )

    async def start(self, address: str) -> int:
        """Listen on "host:port" (port 0 takes a free one) and serve.

        Returns:
            The port it listens on.

        Raises:
            AddressInUse: the address cannot be bound.
        """
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                # Kept in `_tls`: gRPC asks credentials that change for the newest certificate at every handshake.
                port = self._server.add_secure_port(address, self._tls)
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {address}: is another process using it?") from error
        await self._server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Tell health watchers, let running calls finish for `grace_s`, then cut them off. Safe to call twice."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
