"""The whole HTTP side as one ASGI application: Connect services, plain endpoints, CORS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from controlplane.api.callers import OPERATION_ID, REQUEST_ID, WAIT
from controlplane.api.http.connect import IGNORED_FIELDS_HEADER, ServiceApplication, report_ignored_fields
from controlplane.api.http.proxies import Network, with_true_addresses
from controlplane.api.http.safe_headers import with_no_store

_CORS_MAX_AGE_S = 7_200

_CONNECT_HEADERS = (
    "content-type",
    "connect-protocol-version",
    "connect-timeout-ms",
    "grpc-timeout",
    "x-grpc-web",
    "x-user-agent",
    "authorization",
    REQUEST_ID,
    WAIT,
)
_GRPC = "application/grpc"
_CONNECT_TYPES = ("application/json", "application/proto", "application/connect+", "application/grpc-web")
_EXPOSED_HEADERS = ("grpc-status", "grpc-message", "grpc-status-details-bin", IGNORED_FIELDS_HEADER, OPERATION_ID)


def build_application(
    services: Iterable[ServiceApplication],
    routes: Iterable[BaseRoute],
    cors_origins: Sequence[str],
    allowed_hosts: Sequence[str] = ("*",),
    trusted_proxies: Sequence[Network] = (),
) -> ASGIApp:
    """Assemble the application.

    Args:
        cors_origins: origins whose pages may call the API from a browser; none by default.
        allowed_hosts: names by which requests may address this server, "*" for any. A page whose own name was made to
            resolve to this machine (DNS rebinding) is of the same origin for its browser; only the name gives it away.
        trusted_proxies: networks of reverse proxies that are believed whose calls they pass on.
    """
    mounts = [Mount(service.path, app=_keeping_path(service)) for service in services]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)]
    if cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=list(_CONNECT_HEADERS),
                expose_headers=list(_EXPOSED_HEADERS),
                max_age=_CORS_MAX_AGE_S,
            )
        )
    application = Starlette(
        routes=[*routes, *mounts], middleware=middleware, exception_handlers={404: _not_found, 500: _server_error}
    )
    return with_true_addresses(with_no_store(report_ignored_fields(application)), trusted_proxies)


def _keeping_path(service: ServiceApplication) -> ASGIApp:
    """Undo what mounting does to the path: Connect looks its methods up by the full one."""

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        content_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip()
        if content_type == _GRPC or content_type.startswith(f"{_GRPC}+"):
            await _grpc_refused(scope, receive, send)
            return
        if scope["method"] == "POST" and not content_type.startswith(_CONNECT_TYPES):
            await _type_refused(scope, receive, send)
            return
        await service({**scope, "root_path": ""}, receive, send)

    return app


_grpc_refused = JSONResponse(
    {"code": "unimplemented", "message": "gRPC needs HTTP/2: use the gRPC port, or gRPC-Web or JSON here"},
    status_code=415,
)


_type_refused = JSONResponse(
    {"code": "invalid_argument", "message": "say what the body is: send the header 'Content-Type: application/json'"},
    status_code=415,
    headers={"Accept-Post": "application/json, application/proto"},
)


async def _not_found(request: Request, error: Exception) -> Response:
    message = f"{request.url.path} does not exist; RPCs are POST /<package>.<Service>/<Method>"
    return JSONResponse({"code": "unimplemented", "message": message}, status_code=404)


async def _server_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"code": "internal", "message": "internal error; the server's log has it"}, status_code=500)
