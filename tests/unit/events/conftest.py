"""A store for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.state.interface import Store
from tests.support.databases import fresh_sqlite
from tests.support.stores import open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store on a fresh database."""
    async with open_store(fresh_sqlite(tmp_path)) as opened:
        yield opened
