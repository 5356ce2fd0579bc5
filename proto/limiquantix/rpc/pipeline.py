"""What happens around every call, whichever transport brought it: validate, run, map errors, observe.

gRPC (`limiquantix.rpc.server`) and Connect/JSON (`controlplane.api.http`) run the same servicer objects through this
pipeline, so a request gets the same answer on both.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from limiquantix.errors import (
    ApiError,
    Code,
    DeadlineExceeded,
    FieldViolation,
    Internal,
    Reason,
    Unimplemented,
)
from limiquantix.rpc.canonical import canonicalise_ids
from limiquantix.rpc.limits import CallLimits, NoLimits
from limiquantix.rpc.standing import while_allowed
from limiquantix.rpc.validation import Check, require_bounded, validate

_log = logging.getLogger(__name__)

ErrorT = TypeVar("ErrorT", bound=ApiError)
ResponseT = TypeVar("ResponseT")

OK_CODE = 0


class CallContext(Protocol):
    """What a servicer may know of the call; grpc.aio's ServicerContext satisfies it, Connect has an adapter."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """Request metadata, keys in lower case."""
        ...

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        """Set the metadata that goes with the answer, whether that is a message or an error."""
        ...

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        ...


class CallOrigin(Protocol):
    """Where a call comes from; grpc.aio's ServicerContext satisfies it too."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Request metadata, keys in lower case."""
        ...

    def peer(self) -> str:
        """From where the call comes: "ipv4:192.0.2.7:51234", "ipv6:[::1]:80", "unix:..."."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the caller: with a certificate, its names under "x509_subject_alternative_name"."""
        ...


class CallGuard(Protocol):
    """Stands at the door: finds out who calls and whether they may, and keeps a record of it."""

    async def admit(self, method: str, origin: CallOrigin) -> None:
        """Find out who calls, before anything of the request is looked at; raises the `ApiError` to refuse it with."""
        ...

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        """Let the call happen inside, or raise the `ApiError` that it ends with; what the call raises passes through.

        Entered when it is known who calls and that the request is well-formed.

        Args:
            method: "/package.Service/Method".
        """
        ...

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """Find out whether a stream that goes on may still; asked again and again, from a task of the call's context.

        Raises:
            ApiError: what it is to end with; Unavailable if that cannot be known at this moment.
        """
        ...


class CallObserver(Protocol):
    """Sees each finished call, for metrics and logs."""

    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Take note of a finished call; `method` is "/package.Service/Method", `code` 0 or a `Code`."""
        ...


def is_filled(behaviour: Callable[..., object]) -> bool:
    """Tell whether a servicer defines the method: those it inherits from generated code are plain functions."""
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


class CallPipeline:
    """Runs servicer methods; stateless but for its configuration, so safe for any number of calls at once.

    Args:
        guard: asked for every call of a method that somebody wrote; None where the transport lets in nobody else.
        limits: how long calls may take; transports read there how large requests may be. None for no more than a
            message's size.
    """

    def __init__(
        self,
        checks: Mapping[type[Message], Check],
        observer: CallObserver,
        guard: CallGuard | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._checks = checks
        self._observer = observer
        self._guard = guard
        self.limits: CallLimits = limits or NoLimits()

    async def admit(self, method: str, origin: CallOrigin) -> None:
        """Ask the guard who calls and whether they may, for what a server offers beside its own services.

        What the request says does not matter there: the guard is shown an empty one.

        Raises:
            ApiError: nobody who may.
        """
        if self._guard is not None:
            await self._guard.admit(method, origin)
            async with self._guard.around(method, Empty(), origin):
                pass

    async def enter(self, method: str, origin: CallOrigin) -> None:
        """Ask the guard who calls, before the request is waited for; then tell `unary` or `stream` so.

        Raises:
            ApiError: as `unary`.
        """
        if self._guard is None:
            return
        started_s = time.monotonic()
        try:
            await self._guard.admit(method, origin)
        except Exception as error:
            mapped = _as_api_error(method, error)
            self._observer.call_finished(method, mapped.code, time.monotonic() - started_s)
            raise mapped from error

    def refused(self, method: str, error: ErrorT) -> ErrorT:
        """Note that a call ended before there was a request that anything could be asked about; returns the error."""
        self._observer.call_finished(method, error.code, 0.0)
        return error

    async def unary(
        self,
        method: str,
        request: Message,
        handler: Callable[[], Awaitable[ResponseT]],
        found: Sequence[FieldViolation] = (),
        *,
        origin: CallOrigin,
        filled: bool = True,
        has_entered: bool = False,
    ) -> ResponseT:
        """Validate the request and await the handler.

        Args:
            has_entered: whether `enter` let the call in.
            found: faults that decoding found already, reported together with those found here.
            filled: False for a method of the contract that nobody wrote, see `is_filled`; then the request does not
                matter, and a caller must not be told to mend it first.

        Raises:
            ApiError: always of a class that a transport can encode; nothing else leaves but cancellation.
        """
        started_s = time.monotonic()
        code = OK_CODE
        try:
            if self._guard is None:
                self._prepare(request, found, filled=filled)
                return await self._in_time(method, handler)
            if not has_entered:
                await self._guard.admit(method, origin)
            self._prepare(request, found, filled=filled)
            async with self._guard.around(method, request, origin):
                return await self._in_time(method, handler)
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception as error:
            mapped = _as_api_error(method, error)
            code = mapped.code
            raise mapped from error
        finally:
            self._observer.call_finished(method, code, time.monotonic() - started_s)

    async def stream(
        self,
        method: str,
        request: Message,
        handler: Callable[[], AsyncIterator[ResponseT]],
        found: Sequence[FieldViolation] = (),
        *,
        origin: CallOrigin,
        filled: bool = True,
        has_entered: bool = False,
    ) -> AsyncIterator[ResponseT]:
        """Validate the request and pass the handler's messages on, as long as the guard lets; errors as in `unary`."""
        started_s = time.monotonic()
        code = OK_CODE
        guard = self._guard
        try:
            if guard is None:
                self._prepare(request, found, filled=filled)
                async for response in handler():
                    yield response
                return
            if not has_entered:
                await guard.admit(method, origin)
            self._prepare(request, found, filled=filled)
            async with guard.around(method, request, origin):
                messages = while_allowed(handler(), lambda: guard.recheck(method, request, origin))
                async with aclosing(messages):
                    async for response in messages:
                        yield response
        except (asyncio.CancelledError, GeneratorExit):
            code = Code.CANCELLED
            raise
        except Exception as error:
            mapped = _as_api_error(method, error)
            code = mapped.code
            raise mapped from error
        finally:
            self._observer.call_finished(method, code, time.monotonic() - started_s)

    async def _in_time(self, method: str, handler: Callable[[], Awaitable[ResponseT]]) -> ResponseT:
        async with asyncio.timeout(self.limits.of(method).deadline_s):
            return await handler()

    def _prepare(self, request: Message, found: Sequence[FieldViolation], *, filled: bool) -> None:
        if not filled:
            return
        require_bounded(request, found)
        canonicalise_ids(request)
        validate(request, self._checks, found)


def _as_api_error(method: str, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NotImplementedError):
        return Unimplemented(
            Reason.NOT_IMPLEMENTED, f"{method} is documented but not in this version", metadata={"method": method}
        )
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(Reason.DEADLINE_EXCEEDED, f"{method} did not finish in time")
    correlation_id = uuid.uuid4().hex
    _log.exception("unexpected error in %s, correlation id %s", method, correlation_id)
    return Internal(
        Reason.INTERNAL,
        f"internal error; the server's log has it under correlation id {correlation_id}",
        metadata={"correlation_id": correlation_id},
    )
