"""Control planes in this process, as their configuration builds them, for hosts whose daemons are processes.

Several on one database are told apart by their names; a test may decide their election.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from controlplane.app import open_plane
from controlplane.config import ControlPlaneConfig, GrpcSettings, HttpSettings
from controlplane.coordination.interface import Coordinator
from tests.support.entry import Entry, authority_of, prepare, security_settings


@dataclass(frozen=True)
class ClosedPlane:
    """One that serves, and a channel that calls it as the administrator."""

    entry: Entry
    channel: grpc.aio.Channel


@asynccontextmanager
async def closed_plane(
    directory: Path, url: str, coordinator: Coordinator | None = None, *, name: str = "plane", **sections: Any
) -> AsyncIterator[ClosedPlane]:
    """Run one on free ports.

    Args:
        directory: the same for all on one database: what they share is kept there.
        coordinator: instead of the one of the configuration.
        name: no other's in that directory.
        sections: of its configuration.
    """
    own = directory / name
    own.mkdir()
    config = ControlPlaneConfig.model_validate(
        {
            "http": HttpSettings(listen_address="127.0.0.1:0"),
            "grpc": GrpcSettings(listen_address="127.0.0.1:0"),
            "database": {"url": url},
        }
        | security_settings(own, directory / "secret.key")
        | sections
    )
    token = prepare(url)
    plane = await open_plane(config, coordinator)
    try:
        addresses = await plane.start()
        entry = Entry(f"https://{addresses.http}", addresses.grpc, addresses.hosts, authority_of(url), token)
        async with entry.channel() as channel:
            yield ClosedPlane(entry, channel)
    finally:
        await plane.stop()
