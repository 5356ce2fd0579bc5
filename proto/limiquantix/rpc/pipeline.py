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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

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
from limiquantix.rpc.validation import Check, require_bounded, validate

_log = logging.getLogger(__name__)

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


class CallObserver(Protocol):
    """Sees each finished call, for metrics and logs."""

    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Take note of a finished call; `method` is "/package.Service/Method", `code` 0 or a `Code`."""
        ...


def is_filled(behaviour: Callable[..., object]) -> bool:
    """Tell whether a servicer defines the method: those it inherits from generated code are plain functions."""
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


class CallPipeline:
    """Runs servicer methods; stateless but for its configuration, so safe for any number of calls at once."""

    def __init__(self, checks: Mapping[type[Message], Check], observer: CallObserver) -> None:
        self._checks = checks
        self._observer = observer

    async def unary(
        self,
        method: str,
        request: Message,
        handler: Callable[[], Awaitable[ResponseT]],
        found: Sequence[FieldViolation] = (),
        *,
        filled: bool = True,
    ) -> ResponseT:
        """Validate the request and await the handler.

        Args:
            found: faults that decoding found already, reported together with those found here.
            filled: False for a method of the contract that nobody wrote, see `is_filled`; then the request does not
                matter, and a caller must not be told to mend it first.

        Raises:
            ApiError: always of a class that a transport can encode; nothing else leaves but cancellation.
        """
        started_s = time.monotonic()
        code = OK_CODE
        try:
            if filled:
                self._prepare(request, found)
            return await handler()
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
        filled: bool = True,
    ) -> AsyncIterator[ResponseT]:
        """Validate the request and pass the handler's messages on; errors as in `unary`."""
        started_s = time.monotonic()
        code = OK_CODE
        try:
            if filled:
                self._prepare(request, found)
            async for response in handler():
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

    def _prepare(self, request: Message, found: Sequence[FieldViolation]) -> None:
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
