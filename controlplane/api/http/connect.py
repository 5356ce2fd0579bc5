"""The gRPC servicers as Connect endpoints: one adapter made from the descriptors, no code a method.

`POST /<package>.<Service>/<Method>` with `application/json` or `application/proto`; gRPC-Web works on the same paths.
Every call goes through the same pipeline as over gRPC, so both transports answer alike.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from connectrpc.code import Code as ConnectCode
from connectrpc.codec import Codec
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.interceptor import MetadataInterceptor
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from protobuf.wkt import Any as AnyMessage
from protobuf.wkt import Struct
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from controlplane.api.http.body_limits import with_body_limits
from controlplane.api.http.json_codec import BinaryCodec, DecodeNotes, StrictJsonCodec, decode_notes
from limiquantix.errors import ApiError, Code, FieldViolation
from limiquantix.rpc.pipeline import CallPipeline, is_filled
from limiquantix.rpc.status import to_status

IGNORED_FIELDS_HEADER = "limiquantix-ignored-fields"
_PLAIN_IN_PATHS = '[]"'
_MAX_IGNORED_HEADER_BYTES = 4_096
"""Clients and proxies refuse answers with longer headers."""

CONNECT_CODES = {code: ConnectCode[code.name if code is not Code.CANCELLED else "CANCELED"] for code in Code}


class ConnectContext:
    """A Connect call as servicers see any call, see `CallContext`."""

    def __init__(self, context: RequestContext[Any, Any]) -> None:
        self._context = context

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Request headers, keys in lower case."""
        return [(key.lower(), value) for key, value in self._context.request_headers.allitems()]

    def time_remaining(self) -> float | None:
        """Seconds until the deadline the caller set with `Connect-Timeout-Ms`."""
        remaining_ms = self._context.timeout_ms
        return None if remaining_ms is None else remaining_ms / 1000

    def peer(self) -> str:
        """The address at the other end of the connection, as gRPC writes it."""
        host, _, port = (self._context.client_address or "").rpartition(":")
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Nothing: no certificate is asked for over HTTP."""
        return {}

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        """Say something beside the answer: in its headers, since unary HTTP calls have nothing after the body."""
        for key, value in trailing_metadata:
            self._context.response_headers[key] = value if isinstance(value, str) else value.decode("ascii", "replace")

    def set_code(self, code: object) -> None:
        """Called by generated methods nobody filled, just before they raise NotImplementedError, which says it all."""

    def set_details(self, details: str) -> None:
        """See `set_code`."""


class ReadableDetail(ErrorDetail):
    """An error detail that JSON shows in plain words too, as the protocol's `debug`, beside its base64 bytes."""

    def __init__(self, packed: any_pb2.Any) -> None:
        super().__init__(AnyMessage(type_url=packed.type_url, value=packed.value))
        fields = json_format.MessageToDict(packed)
        fields.pop("@type")
        self._readable = Struct.from_json(json.dumps(fields))

    def value(self, desc_or_registry: Any = None) -> Any:
        """What the library shows as `debug` when asked for no particular type."""
        return self._readable if desc_or_registry is None else super().value(desc_or_registry)


def to_connect_error(error: ApiError) -> ConnectError:
    """Encode an error with the same details that gRPC carries."""
    details = [ReadableDetail(packed) for packed in to_status(error).details]
    return ConnectError(CONNECT_CODES[error.code], error.message, details)


class ServiceApplication:
    """One service as an ASGI application below `path`."""

    def __init__(self, descriptor: ServiceDescriptor, servicer: object, pipeline: CallPipeline) -> None:
        self._path = f"/{descriptor.full_name}"
        methods = {
            f"{self._path}/{method.name}": _MethodApplication(method, getattr(servicer, method.name), pipeline)
            for method in descriptor.methods
        }
        unknown = _UnknownMethods(self._path)

        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            await methods.get(scope["path"], unknown)(scope, receive, send)

        self._app = with_body_limits(dispatch, pipeline.limits)

    @property
    def path(self) -> str:
        """Where the service is mounted."""
        return self._path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _MethodApplication(ConnectASGIApplication[Any]):
    """One method: what the library makes of a body, unpacked, is bounded by application and not by method."""

    def __init__(self, method: MethodDescriptor, behaviour: Callable[..., Any], pipeline: CallPipeline) -> None:
        self._path = f"/{method.containing_service.full_name}/{method.name}"
        endpoint = _endpoint(method, behaviour, pipeline)
        super().__init__(
            service=behaviour,
            endpoints=lambda _: {self._path: endpoint},
            interceptors=[_Entrance(self._path, pipeline)],
            read_max_bytes=pipeline.limits.of(self._path).request_bytes,
            codecs=[_InConnectTerms(BinaryCodec()), _InConnectTerms(StrictJsonCodec())],
        )

    @property
    def path(self) -> str:
        """The only path that is answered."""
        return self._path


class _Entrance(MetadataInterceptor[None]):
    """Asks who calls while the body is still on its way: nobody's is waited for, kept or decoded."""

    def __init__(self, name: str, pipeline: CallPipeline) -> None:
        self._name = name
        self._pipeline = pipeline

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Let the call in, or raise what it is answered."""
        try:
            await self._pipeline.enter(self._name, ConnectContext(ctx))
        except ApiError as error:
            raise to_connect_error(error) from error


class _UnknownMethods(ConnectASGIApplication[Any]):
    """Answers for a service's methods that there are not, as the library does."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__(service=self, endpoints=lambda _: {})

    @property
    def path(self) -> str:
        """Where the service is mounted."""
        return self._path


class _InConnectTerms(Codec[Message, Any]):
    """A codec whose faults are Connect's own errors, since decoding happens outside the pipeline."""

    def __init__(self, codec: Codec[Message, Any]) -> None:
        self._codec = codec

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: Message) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        try:
            return self._codec.decode(data, message_class)
        except ApiError as error:
            raise to_connect_error(error) from error


def _endpoint(method: MethodDescriptor, behaviour: Callable[..., Any], pipeline: CallPipeline) -> Any:
    name = f"/{method.containing_service.full_name}/{method.name}"
    info: MethodInfo[Any, Any] = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )
    if method.server_streaming:
        return Endpoint.server_stream(info, _stream(name, behaviour, pipeline))
    return Endpoint.unary(info, _unary(name, behaviour, pipeline))


def _decode_faults() -> Sequence[FieldViolation]:
    notes = decode_notes.get()
    return notes.faults if notes is not None else ()


def _unary(
    name: str, behaviour: Callable[..., Awaitable[Message]], pipeline: CallPipeline
) -> Callable[[Message, RequestContext[Any, Any]], Awaitable[Message]]:
    filled = is_filled(behaviour)

    async def call(request: Message, context: RequestContext[Any, Any]) -> Message:
        adapted = ConnectContext(context)
        try:
            return await pipeline.unary(
                *(name, request, lambda: behaviour(request, adapted), _decode_faults()),
                origin=adapted,
                filled=filled,
                has_entered=True,
            )
        except ApiError as error:
            raise to_connect_error(error) from error

    return call


def _stream(
    name: str, behaviour: Callable[..., AsyncIterator[Message]], pipeline: CallPipeline
) -> Callable[[Message, RequestContext[Any, Any]], AsyncIterator[Message]]:
    filled = is_filled(behaviour)

    async def call(request: Message, context: RequestContext[Any, Any]) -> AsyncIterator[Message]:
        adapted = ConnectContext(context)
        try:
            responses = pipeline.stream(
                *(name, request, lambda: behaviour(request, adapted), _decode_faults()),
                origin=adapted,
                filled=filled,
                has_entered=True,
            )
            async for response in responses:
                yield response
        except ApiError as error:
            raise to_connect_error(error) from error

    return call


def report_ignored_fields(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that its answers name the request fields that were not understood."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        notes = DecodeNotes()
        token = decode_notes.set(notes)

        async def send_with_header(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start" and notes.ignored:
                value = _ignored_fields(notes.ignored)
                message["headers"] = [*message.get("headers", ()), (IGNORED_FIELDS_HEADER.encode(), value)]
            await send(message)

        try:
            await app(scope, receive, send_with_header)
        finally:
            decode_notes.reset(token)

    return wrapped


def _ignored_fields(paths: Iterable[str]) -> bytes:
    """List as many paths as a header has room for.

    They are quoted, because a caller may name a field anything: also a line break that begins another header, or the
    space that no header may begin with.
    """
    value = ",".join(quote(path, safe=_PLAIN_IN_PATHS) for path in paths)
    if len(value) > _MAX_IGNORED_HEADER_BYTES:
        value = value[:_MAX_IGNORED_HEADER_BYTES].rpartition(",")[0]
    return value.encode()
