"""A page whose name was made to resolve to this machine must not reach an API that asks for no login."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.support.running_control_plane import RunningControlPlane, running_control_plane

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    async with running_control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


async def _status(plane: RunningControlPlane, host: str) -> int:
    async with httpx.AsyncClient(base_url=f"http://{plane.addresses.http}", trust_env=False) as client:
        return (await client.get("/health", headers={"Host": host})).status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8080", "[::1]:8080"])
async def test_request_by_a_loopback_name_is_served(plane: RunningControlPlane, host: str) -> None:
    assert await _status(plane, host) == httpx.codes.OK


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example:8080", "www.localhost", ""])
async def test_request_by_another_name_is_refused(plane: RunningControlPlane, host: str) -> None:
    assert await _status(plane, host) == httpx.codes.BAD_REQUEST
