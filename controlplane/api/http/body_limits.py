"""Refuse a body that is too large for its method as soon as that shows: by its announced length, or as it arrives."""

from __future__ import annotations

import base64

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from limiquantix.errors import ApiError
from limiquantix.rpc.limits import CallLimits
from limiquantix.rpc.status import to_status

_ENVELOPE_BYTES = 5
"""What Connect puts before the request of a stream."""


def with_body_limits(app: ASGIApp, limits: CallLimits) -> ASGIApp:
    """Wrap an application whose paths are methods. Compressed bodies are counted as they come."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        limit = limits.of(path)
        left_bytes = limit.request_bytes + _ENVELOPE_BYTES
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > left_bytes:
            await _refusal(limit.refusal(path))(scope, receive, send)
            return
        is_too_large = False

        async def counted() -> AsgiMessage:
            nonlocal left_bytes, is_too_large
            message = await receive()
            left_bytes -= len(message.get("body", b""))
            if left_bytes >= 0:
                return message
            is_too_large = True
            return {"type": "http.disconnect"}

        async def unless_refused(message: AsgiMessage) -> None:
            if not is_too_large:
                await send(message)

        await app(scope, counted, unless_refused)
        if is_too_large:
            await _refusal(limit.refusal(path))(scope, receive, send)

    return wrapped


def _refusal(error: ApiError) -> JSONResponse:
    details = [
        {"type": packed.type_url.rpartition("/")[2], "value": base64.b64encode(packed.value).decode().rstrip("=")}
        for packed in to_status(error).details
    ]
    # The connection stays open: a caller that still sends would not see the answer; what it sends is dropped.
    document = {"code": error.code.name.lower(), "message": error.message, "details": details}
    return JSONResponse(document, status_code=413)
