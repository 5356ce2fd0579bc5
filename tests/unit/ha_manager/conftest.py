"""A process that decides about high availability, and three nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from controlplane.domain.node import Node
from controlplane.domain.operation import Json
from tests.support.control_plane_world import World
from tests.support.ha_plane import FakeFailover, HaPlane, already_set
from tests.support.ha_scene import add_node


@pytest.fixture
async def nodes(world: World) -> list[Node]:
    """Three nodes that share storage."""
    return [await add_node(world) for _ in range(3)]


@pytest.fixture
def asked() -> dict[str, Json]:
    """Parameters of the failovers that were carried out, by request id."""
    return {}


@pytest.fixture
def may_end() -> asyncio.Event:
    """Failovers wait for it; it is set."""
    return already_set()


@pytest.fixture
async def plane(world: World, asked: dict[str, Json], may_end: asyncio.Event) -> AsyncIterator[HaPlane]:
    """A process that decides, whose operations do nothing."""
    world.other_workflows = (FakeFailover(asked, may_end),)
    world.restart()
    await world.worker.register()
    plane = HaPlane(world)
    yield plane
    await plane.power.stop()
    await world.settle()
