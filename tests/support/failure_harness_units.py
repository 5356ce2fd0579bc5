"""Control planes and node daemons as real processes that are killed and come back at the same addresses."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support import node_daemon_process
from tests.support.entry import Entry, authority_of, prepare, security_settings

START_DEADLINE_S = 60.0
_POLL_S = 0.03
_numbers = itertools.count()


def own_loopback_address() -> str:
    """Name a loopback address that nobody else on this machine uses, so that its ports stay ours while we are dead."""
    number = os.getpid() * 16 + next(_numbers) % 16
    return f"127.{64 + (number >> 16) % 64}.{(number >> 8) % 256}.{number % 254 + 1}"


@dataclass
class Unit:
    """One program with its files, dead or alive.

    `is_up` tells from its output since `_log_offset` whether it serves.
    """

    name: str
    log_path: Path
    command: Sequence[str]
    up_marker: bytes
    kill_count: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _log_offset: int = 0

    def start(self) -> None:
        """Start it; it need not be up when this returns."""
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                [node_daemon_process.command()[0], "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=node_daemon_process.environment(),
            )

    def kill(self) -> None:
        """Kill it as `kill -9` does; fine if it is dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.kill_count += 1

    @property
    def is_alive(self) -> bool:
        """Whether it was started and not killed since. One that ended by itself fails the test."""
        if self._process is None:
            return False
        assert self._process.poll() is None, f"{self.name} ended by itself:\n{self.output()[-4000:]}"
        return True

    def is_up(self) -> bool:
        """Whether it serves."""
        return self.is_alive and self.up_marker in self.output().encode()

    def output(self) -> str:
        """What it said since its last start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    async def until_up(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self.is_up():
            assert time.monotonic() < deadline, f"{self.name} does not come up:\n{self.output()[-4000:]}"
            await asyncio.sleep(_POLL_S)

    def end(self) -> None:
        """End it for good, in order if it can be."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@dataclass
class Plane:
    """A control plane's program and where it listens: to people, and to hosts."""

    unit: Unit
    http_address: str
    grpc_address: str
    hosts_address: str


@dataclass
class Node:
    """A node daemon's program and where its host's things are."""

    unit: Unit
    hostname: str
    images_dir: Path
    data_dir: Path


@dataclass
class Units:
    """Everything that can be killed. `token` is the administrator's API key."""

    database_url: str
    token: str
    planes: list[Plane] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def entry(self) -> Entry:
        """Say how the ports are opened, those of the first control plane; it makes the authority at its first start."""
        first, authority = self.planes[0], authority_of(self.database_url)
        return Entry(f"https://{first.http_address}", first.grpc_address, first.hosts_address, authority, self.token)

    def all(self) -> list[Unit]:
        """Every program."""
        return [*(plane.unit for plane in self.planes), *(node.unit for node in self.nodes)]


def plane_at(directory: Path, database_url: str, port: int) -> Plane:
    """Describe a control plane that may be killed."""
    directory.mkdir()
    address = own_loopback_address()
    plane = Plane(
        Unit(directory.name, directory / "log", (), b"control_plane_started"),
        *(f"{address}:{port + offset}" for offset in range(3)),
    )
    settings = security_settings(directory, directory.parent / "secret.key", hosts_listen=plane.hosts_address)
    settings["security"]["names"] = [address]
    settings |= {
        "operations": {"lease_s": 2},
        "scheduler": {"cpu_overcommit_ratio": 16.0, "reserved_cores": 0},  # the VMs sleep, on however small a machine
        "nodes": {"heartbeat_interval_s": 3},
        # Hosts are silent here for as long as it takes, and several control planes without etcd cannot elect one.
        "ha": {"enabled": False},
        "database": {"url": database_url},
        "http": {"listen_address": plane.http_address, "allowed_hosts": [address]},
        "grpc": {"listen_address": plane.grpc_address},
    }
    config_path = directory / "controlplane.yaml"
    config_path.write_text(yaml.safe_dump(settings))
    plane.unit.command = ("controlplane", "--config", str(config_path), "--migrate")
    return plane


def node_at(directory: Path, planes: Sequence[Plane], hypervisor: Mapping[str, Any]) -> Node:
    """Describe a node daemon that may be killed; `hypervisor` is its configuration's section."""
    directory.mkdir()
    data_dir, images_dir = directory / "data", directory / "images"
    images_dir.mkdir()
    config = {
        "node": {"hostname": directory.name, "data_dir": str(data_dir)},
        "server": {"listen_address": f"{own_loopback_address()}:{_PORT}", "metrics_port": 0},
        "hypervisor": {"storage_path": str(images_dir), **hypervisor},
        "control_plane": {
            "address": ",".join(plane.hosts_address for plane in planes),
            "heartbeat_interval_secs": 1,
        },
        "migration": {"pki_path": None},  # nothing is moved, and nothing shall be written to /etc
    }
    config_path = directory / "node.yaml"
    config_path.write_text(yaml.safe_dump(config))
    unit = Unit(
        directory.name, directory / "log", ("nodedaemon", "--config", str(config_path)), b'"event":"registered"'
    )
    return Node(unit, directory.name, images_dir, data_dir)


_PORT = 7443
"""Any that is not ephemeral: the address is ours alone."""


@asynccontextmanager
async def running_units(
    directory: Path, database_url: str, hypervisors: Sequence[Mapping[str, Any]], plane_count: int = 1
) -> AsyncIterator[Units]:
    """Start control planes on one database, and a node daemon for each hypervisor; end them whatever happens.

    Hosts join before their daemons are started.
    """
    units = Units(database_url, await asyncio.to_thread(prepare, database_url))
    try:
        for number in range(plane_count):
            units.planes.append(plane_at(directory / f"plane-{number}", database_url, _PORT))
            units.planes[-1].unit.start()
            await units.planes[-1].unit.until_up()
        entry = await asyncio.to_thread(units.entry)
        for number, hypervisor in enumerate(hypervisors):
            units.nodes.append(node_at(directory / f"node-{number}", units.planes, hypervisor))
            await entry.admit(units.nodes[-1].data_dir, units.nodes[-1].hostname)
            units.nodes[-1].unit.start()
        for unit in units.all():
            await unit.until_up()
        yield units
    finally:
        for unit in units.all():
            unit.end()
