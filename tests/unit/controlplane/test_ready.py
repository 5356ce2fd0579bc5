"""What `/ready` says of parts that must work, and of those without which the API is served all the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from controlplane.api.http.endpoints import routes
from limiquantix.errors import Reason, Unavailable
from tests.support.builders import START_OF_TIME


async def works() -> None:
    """Nothing is wrong."""


async def fails() -> None:
    raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")


def says(words: str) -> Callable[[], Awaitable[str]]:
    async def problem() -> str:
        return words

    return problem


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
    advisory = {"coordination": says(advice)}
    application = Starlette(routes=routes({"database": probe}, CollectorRegistry(), START_OF_TIME, [], advisory))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://plane") as client:
        answer = await client.get("/ready")

    assert (answer.status_code, answer.json()["components"]) == (status, components)
    assert answer.json()["status"] == ("ready" if status == 200 else "not_ready")
