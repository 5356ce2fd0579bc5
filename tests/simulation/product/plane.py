"""A control plane: its machine, and the whole real process on it but for sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controlplane.app import ControlPlane
from controlplane.config import ControlPlaneConfig
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import create_store
from limiquantix.errors import ApiError
from tests.simulation.product.coordination import SimCoordinator, Site
from tests.simulation.product.loop import Machine, Process, Violation, VirtualLoop
from tests.simulation.product.network import Network
from tests.simulation.product.store import DatabaseWeather, WeatheredStore


class Plane:
    """One of several, through all its lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        number: int,
        database: Path,
        weather: DatabaseWeather,
        site: Site,
        witness: Callable[[], None],
        settings: Mapping[str, Any],
    ) -> None:
        """Lay it out, off.

        Args:
            settings: sections of the configuration, which all of a cluster have alike.
        """
        self.name = f"plane-{number}"
        self.machine = Machine(loop, self.name, drift=0.0005)
        self.process: Process | None = None
        self._loop, self._weather, self._site, self._witness = loop, weather, site, witness
        address = f"127.0.1.{number + 1}"
        network.sites[address] = self.name
        self.address = f"{address}:8081"
        self._config = ControlPlaneConfig.model_validate(
            {
                "database": {"url": f"sqlite:///{database}"},
                "grpc": {"listen_address": self.address},
                "http": {"listen_address": "127.0.0.1:0"},
                "coordination": {"backend": "etcd", "endpoints": ["http://127.0.0.1:2379"]},
                "drs": {"enabled": False},
                **settings,
            }
        )

    def start(self) -> None:
        """Start it, as systemd does."""
        if self.process is not None and self.process.is_alive:
            return
        self._loop.note(f"{self.name} starts")
        process = self.process = Process(self._loop, self.name, self.machine)
        process.at_death.append(lambda: self._loop.outside(self._loop.random.uniform(0.5, 10.0), self.start))
        main = process.spawn(self._run(process))
        self._loop.buried.append(main)
        main.add_done_callback(lambda task: self._ended(process, task))

    async def _run(self, process: Process) -> None:
        store = create_store(self._config.database.url, StoreLimits.for_connections(2))
        seen = WeatheredStore(store, self._weather, process, self._witness)
        plane = ControlPlane(self._config, seen, SimCoordinator(self._site, self.name))
        self._loop.buried.append(plane)
        try:
            await plane.start()
        except ApiError as error:  # the database is away: the program ends, and systemd starts it again
            self._loop.note(f"{self.name} does not start: {error.message}")
            self._loop.outside(0.0, lambda: process.die("since it cannot start"))
            await asyncio.get_running_loop().create_future()
        await plane.run(until=asyncio.Event())

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._loop.failure = Violation(f"{self.name} ended by itself: {error!r}")
        self._loop.failure.__cause__ = error
