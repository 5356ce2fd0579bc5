"""A store on a fresh database, once for every kind of database, and control planes with people on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.state.interface import Store
from tests.support.databases import FRESH_DATABASES, MakeDatabase
from tests.support.identity_scene import Clock, Plane
from tests.support.stores import open_store


@pytest.fixture(params=list(FRESH_DATABASES.values()), ids=list(FRESH_DATABASES))
def make_database(request: pytest.FixtureRequest) -> MakeDatabase:
    """Way to make a fresh database of one kind."""
    make: MakeDatabase = request.param
    return make


@pytest.fixture
def url(make_database: MakeDatabase, tmp_path: Path) -> str:
    """A fresh database."""
    return make_database(tmp_path)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store on a fresh database."""
    async with open_store(url) as opened:
        yield opened


@pytest.fixture
async def other(url: str, store: Store) -> AsyncIterator[Store]:
    """The same database, as another process has it."""
    async with open_store(url) as second:
        yield second


@pytest.fixture
def clock() -> Clock:
    """The time of `plane` and `second`."""
    return Clock()


@pytest.fixture
def plane(store: Store, clock: Clock) -> Plane:
    """A control plane, as far as it knows people and programs."""
    return Plane(store, clock)


@pytest.fixture
def second(other: Store, clock: Clock) -> Plane:
    """Another control plane on the same database."""
    return Plane(other, clock)
