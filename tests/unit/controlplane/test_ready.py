"""What `/ready` says of parts that must work, and of those without which the API is served all the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from controlplane.api.http.endpoints import routes
from controlplane.api.http.insiders import Insiders
from limiquantix.errors import Reason, Unavailable
from limiquantix.rpc.pipeline import CallPipeline
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.access_scene import ClosedToAll
from tests.support.builders import START_OF_TIME


async def works() -> None:
    """Nothing is wrong."""


async def fails() -> None:
    raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")


def says(words: str) -> Callable[[], Awaitable[str]]:
    async def problem() -> str:
        return words

    return problem


async def asked(probe: Callable[[], Awaitable[None]], advice: str, address: str) -> httpx.Response:
    insiders = Insiders(CallPipeline({}, RpcMetrics(build_registry()), ClosedToAll()))
    advisory = {"coordination": says(advice)}
    routed = routes({"database": probe}, CollectorRegistry(), START_OF_TIME, [], insiders, advisory)
    transport = httpx.ASGITransport(Starlette(routes=routed), client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://plane") as client:
        return await client.get("/ready")


@pytest.mark.parametrize(
    ("probe", "advice", "status", "components"),
    [
        (works, "", 200, {"database": {"status": "healthy"}, "coordination": {"status": "healthy"}}),
        (
            works,
            "etcd does not answer",
            200,
            {
                "database": {"status": "healthy"},
                "coordination": {"status": "degraded", "message": "etcd does not answer"},
            },
        ),
        (
            fails,
            "",
            503,
            {
                "database": {"status": "unhealthy", "message": "the database does not answer"},
                "coordination": {"status": "healthy"},
            },
        ),
    ],
)
async def test_ready_fails_for_what_is_needed_only(
    probe: Callable[[], Awaitable[None]], advice: str, status: int, components: dict[str, dict[str, str]]
) -> None:
    answer = await asked(probe, advice, "127.0.0.1")

    assert (answer.status_code, answer.json()["components"]) == (status, components)
    assert answer.json()["status"] == ("ready" if status == 200 else "not_ready")


async def test_ready_tells_strangers_what_does_not_work_and_not_why() -> None:
    answer = await asked(fails, "etcd at 10.0.0.3 does not answer", "192.0.2.7")

    assert answer.status_code == 503
    assert answer.json()["components"] == {"database": {"status": "unhealthy"}, "coordination": {"status": "degraded"}}
