"""Who may read what a control plane tells of its own insides over plain HTTP: metrics, and why a part does not work."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from controlplane.access.methods import METRICS
from limiquantix.errors import ApiError, Code
from limiquantix.rpc.pipeline import CallOrigin, CallPipeline

_PASSED_ON = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""Headers by which a proxy on this machine gives itself away: who calls it may be anybody."""
_STATUS = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429, Code.UNAVAILABLE: 503}

Handler = Callable[[Request], Awaitable[Response]]


class Insiders:
    """Tells them from strangers: whoever is on this machine itself, and callers with the permission for metrics."""

    def __init__(self, pipeline: CallPipeline) -> None:
        self._pipeline = pipeline

    async def require(self, request: Request) -> None:
        """Let an insider pass.

        Raises:
            ApiError: it is none.
        """
        if not _is_from_here(request):
            await self._pipeline.admit(METRICS, _Origin(request))

    async def has(self, request: Request) -> bool:
        """Tell whether an insider asks. That one does not is no refusal, and on no record."""
        if not _is_from_here(request) and "authorization" not in request.headers:
            return False
        try:
            await self.require(request)
        except ApiError:
            return False
        return True

    def only(self, handler: Handler) -> Handler:
        """Wrap an endpoint that is for insiders only."""

        async def wrapped(request: Request) -> Response:
            try:
                await self.require(request)
            except ApiError as error:
                document = {"code": error.code.name.lower(), "message": error.message}
                return JSONResponse(document, status_code=_STATUS.get(error.code, 500))
            return await handler(request)

        return wrapped


def _is_from_here(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _PASSED_ON):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


class _Origin(CallOrigin):
    """A plain request, as guards see calls."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return [(name.lower(), value) for name, value in self._request.headers.items()]

    def peer(self) -> str:
        client = self._request.client
        if client is None:
            return "unix:"
        return f"ipv6:[{client.host}]:{client.port}" if ":" in client.host else f"ipv4:{client.host}:{client.port}"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}
