"""A world for each test: services on a fresh database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.state.factory import create_store
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.stores import PATIENT


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Every service of a control plane, with no nodes yet."""
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    yield World(store)
    await store.close()
