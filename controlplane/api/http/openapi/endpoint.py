"""`GET /openapi.json`: the document, made at the first request and kept as bytes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

OPENAPI_PATH = "/openapi.json"


def openapi_route(build: Callable[[], dict[str, Any]]) -> Route:
    """Serve what `build` makes, which takes a few hundred milliseconds and is called once, in a thread."""

    @functools.cache
    def encoded() -> tuple[bytes, str]:
        body = orjson.dumps(build())
        return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    async def document(request: Request) -> Response:
        body, etag = await asyncio.to_thread(encoded)
        headers = {"etag": etag, "cache-control": "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    return Route(OPENAPI_PATH, document)
