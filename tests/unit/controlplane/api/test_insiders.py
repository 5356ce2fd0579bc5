"""Who counts as an insider of a control plane, where nobody can log in."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from controlplane.access.methods import METRICS
from controlplane.api.http.insiders import Insiders
from limiquantix.rpc.pipeline import CallPipeline
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.access_scene import ClosedToAll


@pytest.fixture
def guard() -> ClosedToAll:
    return ClosedToAll()


async def asked(guard: ClosedToAll, address: str, **headers: str) -> list[httpx.Response]:
    """Ask for something that is for insiders only, and then whether one asks."""
    insiders = Insiders(CallPipeline({}, RpcMetrics(build_registry()), guard))

    async def inside(_: Request) -> Response:
        return PlainTextResponse("inside")

    async def is_one(request: Request) -> Response:
        return PlainTextResponse(str(await insiders.has(request)))

    application = Starlette(routes=[Route("/inside", insiders.only(inside)), Route("/is-one", is_one)])
    transport = httpx.ASGITransport(application, client=(address, 51234))
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url="http://plane", headers=sent) as client:
        return [await client.get("/inside"), await client.get("/is-one")]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.66.0.9", "::1"])
async def test_whoever_is_on_the_machine_is_one(guard: ClosedToAll, address: str) -> None:
    assert [answer.text for answer in await asked(guard, address)] == ["inside", "True"]
    assert guard.wanted == []


@pytest.mark.parametrize(
    ("address", "peer"), [("192.0.2.7", "ipv4:192.0.2.7:51234"), ("2001:db8::1", "ipv6:[2001:db8::1]:51234")]
)
async def test_others_are_what_the_guard_says(guard: ClosedToAll, address: str, peer: str) -> None:
    refused, is_one = await asked(guard, address)

    assert (refused.status_code, refused.json()) == (
        401,
        {"code": "unauthenticated", "message": "nobody comes in here"},
    )
    assert is_one.text == "False"
    assert guard.wanted == [(METRICS, peer)], "who does not say that they are one is not asked"


async def test_others_who_say_that_they_are_one_are_asked(guard: ClosedToAll) -> None:
    _, is_one = await asked(guard, "192.0.2.7", authorization="Bearer x")

    assert (is_one.text, len(guard.wanted)) == ("False", 2)


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_real_ip", "via"])
async def test_proxy_on_the_machine_does_not_make_its_callers_insiders(guard: ClosedToAll, header: str) -> None:
    refused, is_one = await asked(guard, "127.0.0.1", **{header: "for=192.0.2.7"})

    assert (refused.status_code, is_one.text) == (401, "False")
