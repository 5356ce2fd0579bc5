"""The plain HTTP endpoints: health for load balancers and systemd, facts for people, metrics for Prometheus."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from limiquantix.errors import ApiError

SERVICE_NAME = "limiquantix-controlplane"
READY_TIMEOUT_S = 2.0
"""How long one part may take to show that it works before it counts as not ready."""

ReadyProbe = Callable[[], Awaitable[None]]
"""Raises `ApiError` if the part does not work."""


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("limiquantix")


def routes(
    probes: Mapping[str, ReadyProbe], registry: CollectorRegistry, started_at: datetime, services: list[str]
) -> list[Route]:
    """Build the routes.

    Args:
        probes: what must work for this process to be ready, by name.
        services: full names of the RPC services served, for `/api/v1/info`.
    """

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy", "service": SERVICE_NAME})

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        names = list(probes)
        problems = await asyncio.gather(*(_problem(probes[name]) for name in names))
        components = {
            name: {"status": "unhealthy", "message": problem} if problem else {"status": "healthy"}
            for name, problem in zip(names, problems, strict=True)
        }
        is_ready = not any(problems)
        return JSONResponse(
            {"status": "ready" if is_ready else "not_ready", "components": components},
            status_code=200 if is_ready else 503,
        )

    async def info(_: Request) -> Response:
        return JSONResponse(
            {
                "name": "LimiQuantix",
                "service": SERVICE_NAME,
                "version": version(),
                "started_at": started_at.isoformat(),
                "services": services,
            }
        )

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return [
        Route("/health", health),
        Route("/healthz", health),
        Route("/live", live),
        Route("/ready", ready),
        Route("/api/v1/info", info),
        Route("/metrics", metrics),
    ]


async def _problem(probe: ReadyProbe) -> str:
    """Say what is wrong with a part; "" if it works."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await probe()
    except ApiError as error:
        return error.message
    except TimeoutError:
        return f"did not answer within {READY_TIMEOUT_S:g} s"
    return ""
