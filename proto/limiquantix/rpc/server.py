"""A grpc.aio server as every LimiQuantix daemon runs it: pipeline, health, reflection, TLS, bounded messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from limiquantix.errors import ApiError, InvalidArgument, Reason
from limiquantix.rpc.pipeline import CallPipeline, is_filled
from limiquantix.rpc.status import to_status

MAX_MESSAGE_BYTES = 16 * 2**20
"""Bound of one message: a full page of 1,000 VMs with large specs is about 4 MiB."""

MAX_CONCURRENT_CALLS = 1_000

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server on the same port silently takes half of the calls
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one side; with `ca_path` the other side must show a certificate of that CA."""

    cert_path: Path
    key_path: Path
    ca_path: Path | None = None


class AddressInUse(Exception):
    """The listen address cannot be bound; the message names it."""


Admit = Callable[[str, Any], Awaitable[None]]
"""Looks at a call before it is served, given its method and metadata; raises an `ApiError` to refuse it."""


class PipelineInterceptor(grpc.aio.ServerInterceptor):
    """Puts every call of the server's own services through the pipeline; health and reflection pass untouched."""

    def __init__(self, pipeline: CallPipeline, services: Sequence[str], admit: Admit | None = None) -> None:
        self._pipeline = pipeline
        self._admit = admit
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one method; made once a method, since gRPC asks for it at every call."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(self._prefixes):
            return handler
        return self._wrapped.setdefault(method, self._wrap(method, handler))

    def _wrap(self, method: str, handler: Any) -> Any:
        deserialize = _readable_or_not(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), deserialize, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), deserialize, handler.response_serializer
        )

    def _unary(self, method: str, behaviour: Callable[..., Awaitable[Message]]) -> Any:
        filled = is_filled(behaviour)

        async def serve(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            if self._admit is not None and filled:
                await self._admit(method, context.invocation_metadata())
            return await behaviour(request, context)

        async def call(request: Message | None, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            try:
                if request is None:
                    return await self._pipeline.unary(method, Empty(), _refuse_unreadable, filled=False)
                return await self._pipeline.unary(method, request, lambda: serve(request, context), filled=filled)
            except ApiError as error:
                await _abort(context, error)
                raise AssertionError("abort returned") from error

        return call

    def _stream(self, method: str, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
        filled = is_filled(behaviour)

        async def call(request: Message | None, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            try:
                if request is None:
                    await self._pipeline.unary(method, Empty(), _refuse_unreadable, filled=False)
                    return
                if self._admit is not None and filled:
                    await self._admit(method, context.invocation_metadata())
                responses = self._pipeline.stream(method, request, lambda: behaviour(request, context), filled=filled)
                async for response in responses:
                    yield response
            except ApiError as error:
                await _abort(context, error)

        return call


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ApiError) -> None:
    """End a call with an error, without losing the metadata that the servicer has set."""
    status = rpc_status.to_status(to_status(error))
    metadata = (*(context.trailing_metadata() or ()), *status.trailing_metadata)
    await context.abort(status.code, status.details, metadata)


def _readable_or_not(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """Make bytes that are no such message None: what the library would answer is UNKNOWN, with the exception's text."""

    def read(data: bytes) -> Message | None:
        try:
            return deserialize(data)
        except DecodeError:
            return None

    return read


async def _refuse_unreadable() -> NoReturn:
    raise InvalidArgument(Reason.MALFORMED_REQUEST, "the bytes sent are not a message of the method's request type")


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
    """

    def __init__(
        self,
        pipeline: CallPipeline,
        services: Sequence[str],
        add_services: Callable[[grpc.aio.Server], None],
        tls: TlsFiles | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._services = tuple(services)
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=[PipelineInterceptor(pipeline, services, admit)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        handlers: Any = _GenericHandlers(self._server)
        add_services(handlers)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, handlers)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), handlers)

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
                port = self._server.add_secure_port(address, server_credentials(self._tls))
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


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Load a server's certificate; clients must show one too when a CA is given."""
    return grpc.ssl_server_credentials(
        [(tls.key_path.read_bytes(), tls.cert_path.read_bytes())],
        root_certificates=tls.ca_path.read_bytes() if tls.ca_path else None,
        require_client_auth=tls.ca_path is not None,
    )
