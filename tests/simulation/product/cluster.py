"""A whole cluster in one process: control planes, hosts, their database, etcd and network, and somebody who asks."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.product.coordination import Site
from tests.simulation.product.host import Host
from tests.simulation.product.loop import Machine, Process, VirtualLoop
from tests.simulation.product.network import Network
from tests.simulation.product.operator import Operator
from tests.simulation.product.plane import Plane
from tests.simulation.product.power import Controllers
from tests.simulation.product.store import DatabaseWeather
from tests.simulation.product.witness import Witness

WITH_CONTROLLERS = 0.35
"""The share of clusters whose hosts have power controllers."""


class Cluster:
    """All of it, off."""

    def __init__(self, loop: VirtualLoop, directory: Path, database: Path, plane_count: int, host_count: int) -> None:
        self.loop = loop
        self.network = Network(loop)
        self.site = Site(loop.time, loop.random)
        self.database = DatabaseWeather(loop)
        self.witness = Witness(loop, database)
        self.controllers = Controllers(loop, directory) if loop.random.random() < WITH_CONTROLLERS else None
        policy = loop.random.choice(("conditional", "conditional", "failover", "freeze", "migrate"))
        settings = {
            "ha": {"admission": {"policy": "none"}, "shutdown_policy": policy},
            "power": {"devices_path": None if self.controllers is None else self.controllers.path},
        }
        self.planes = [
            Plane(loop, self.network, number, database, self.database, self.site, self.witness.committed, settings)
            for number in range(plane_count)
        ]
        addresses = [plane.address for plane in self.planes]
        self.hosts = [
            Host(loop, self.network, number, directory, ",".join(addresses), self.witness.guest_changed)
            for number in range(host_count)
        ]
        self.witness.hosts = self.hosts
        if self.controllers is not None:
            self.controllers.name(self.hosts)
        self.desk = Process(loop, "operator", Machine(loop, "operator", drift=0.0))
        self.operator = self.desk.context.run(Operator, loop, addresses, self.witness)

    def power_on(self) -> None:
        """Start everything that is not running."""
        for plane in self.planes:
            plane.start()
        for host in self.hosts:
            host.power_on()
            host.start_daemon()

    def mend(self) -> None:
        """End all faults."""
        self.loop.note("everything is mended")
        network = self.network
        network.cut.clear()
        network.loss = network.slow_s = network.straggle = 0.0
        network.is_calm = True
        network.traps.clear()
        if self.controllers is not None:
            self.controllers.silent.clear()
        self.site.is_away = False
        self.site.cut.clear()
        self.database.is_away = False
        self.database.cut.clear()
        self.database.slow_s = self.database.failing = 0.0
        for process in self.processes():
            process.dies_in_steps = -1
            process.go_on()
        self.power_on()

    def leader(self) -> Plane | None:
        """Who is elected; None for nobody."""
        elected = self.site.elected()
        addresses = {plane.address: plane for plane in self.planes}
        return None if elected is None else addresses.get(elected.candidate.address)

    def processes(self) -> list[Process]:
        """All that live and may be hit."""
        found = [each.process for each in self.planes] + [each.daemon for each in self.hosts]
        return [each for each in found if each is not None and each.is_alive]
