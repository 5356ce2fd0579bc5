"""The plain HTTP endpoints: health for load balancers and systemd, facts for people, metrics for Prometheus.

Who asks whether it works, or which version it is, needs no credential: load balancers have none, and programs ask
before they log in. These answers are the same for everybody and name nothing of the cluster. Metrics, and the words in
which parts say what is wrong with them, such as addresses of databases, are for insiders.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlplane.api.http.insiders import Insiders
from limiquantix.errors import ApiError

SERVICE_NAME = "limiquantix-controlplane"
READY_TIMEOUT_S = 2.0
"""How long one part may take to show that it works before it counts as not ready."""

ReadyProbe = Callable[[], Awaitable[None]]
"""Raises `ApiError` if the part does not work."""

Advisory = Callable[[], Awaitable[str]]
"""Says what is wrong with the part; "" if it works."""

AnswerT = TypeVar("AnswerT")


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("limiquantix")


def routes(
    probes: Mapping[str, ReadyProbe],
    registry: CollectorRegistry,
    started_at: datetime,
    services: list[str],
    insiders: Insiders,
    advisory: Mapping[str, Advisory] | None = None,
) -> list[Route]:
    """Build the routes.

    Args:
        probes: what must work for this process to be ready, by name.
        advisory: what is shown beside it, without which this process still serves its API.
        services: full names of the RPC services served, for `/api/v1/info`.
    """

    hints = advisory or {}

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy", "service": SERVICE_NAME})

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        words = await asyncio.gather(*map(_problem, probes.values()), *map(_in_time, hints.values()))
        problems = dict(zip([*probes, *hints], words, strict=True))
        is_told = any(words) and await insiders.has(request)
        components = {
            name: _component(problem, is_needed=name in probes, is_told=is_told) for name, problem in problems.items()
        }
        is_ready = not any(problems[name] for name in probes)
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
        Route("/metrics", insiders.only(metrics)),
    ]


def _component(problem: str, *, is_needed: bool, is_told: bool) -> dict[str, str]:
    if not problem:
        return {"status": "healthy"}
    return {"status": "unhealthy" if is_needed else "degraded", **({"message": problem} if is_told else {})}


async def _problem(probe: ReadyProbe) -> str:
    """Say what is wrong with a part; "" if it works."""
    try:
        return await _in_time(probe) or ""
    except ApiError as error:
        return error.message


async def _in_time(ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT | str:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await ask()
    except TimeoutError:
        return f"did not answer within {READY_TIMEOUT_S:g} s"
