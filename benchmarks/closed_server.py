"""One control plane with its doors twice: as it is served, and bare, without TLS and without a guard.

All doors lead to the same servicers over the same database in the same process, so what differs between two of them is
what stands at the door. Nothing but this program makes a control plane without a guard. It writes where they are, and
what callers need to be let in, to a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import uvloop

from benchmarks.cluster import tell
from controlplane.api.call_limits import limits_of
from controlplane.api.checks import CHECKS
from controlplane.cli.dev.processes import DaemonProcess
from controlplane.composition.api import ServedService, served_of
from controlplane.composition.balancing import balancing_of
from controlplane.composition.coordination import coordinator_of
from controlplane.composition.core import Core, core_of
from controlplane.composition.ha import high_availability_of
from controlplane.composition.listening import Listening, listening_of
from controlplane.composition.rules import utc_now
from controlplane.composition.security import Running, Security, open_security
from controlplane.config import ControlPlaneConfig, DatabaseSettings
from controlplane.identity.administrators import Administrators
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.settings import SecretSettings
from controlplane.security_settings import SecuritySettings
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.state.engine import SWITCH_INTERVAL_S
from controlplane.state.factory import create_store
from controlplane.state.interface import Store
from controlplane.state.seals import Seals
from limiquantix.rpc.pipeline import CallGuard, CallPipeline
from limiquantix.rpc.server import RpcServer
from telemetry.garbage import ShortCollections
from telemetry.metrics import RpcMetrics, build_registry

USER_COUNT = 8
"""Who call in turn, since each of them has a limit of calls a second that one alone would meet."""
DATABASE, KEY_FILE, _READY = "limiquantix.db", "secret.key", "doors.json"
_LOOPBACK = "127.0.0.1:0"
_START_DEADLINE_S = 60.0
_POLL_INTERVAL_S = 0.05
_STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Doors:
    """Addresses of each door.

    Attributes:
        bare: no TLS, no guard.
        encrypted: TLS, no guard.
        people: as it is served to people and programs.
        hosts: as it is served to hosts.
        tokens: of users who may do everything, to be used in turn.
    """

    bare: str
    encrypted: str
    people: str
    hosts: str
    tokens: Sequence[str]


@asynccontextmanager
async def running_doors(directory: Path, cpu: int) -> AsyncIterator[Doors]:
    """Run the server in a process of its own on one CPU, over the database and the key file of the directory.

    Raises:
        RuntimeError: it does not start.
    """
    command = [sys.executable, "-m", "benchmarks.closed_server", str(directory), "--cpu", str(cpu)]
    daemon = DaemonProcess("control plane with bare doors", command, directory / "log", tell)
    await daemon.start()
    ready = directory / _READY
    try:
        async with asyncio.timeout(_START_DEADLINE_S):
            while not await asyncio.to_thread(ready.exists):
                if daemon.failed():
                    raise RuntimeError(f"the control plane with bare doors ended at once:\n{daemon.tail()}")
                await asyncio.sleep(_POLL_INTERVAL_S)
        yield Doors(**json.loads(await asyncio.to_thread(ready.read_text)))
    finally:
        await daemon.stop()


async def serve(directory: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = ControlPlaneConfig(
        database=DatabaseSettings(url=f"sqlite:///{directory / DATABASE}"),
        security=SecuritySettings(runtime_dir=directory / "run"),
        secrets=SecretSettings(key_file=directory / KEY_FILE),
    )
    keyring = Keyring(config.secrets, utc_now)
    store = create_store(config.database.url, seals=Seals(keyring.box))
    await store.open()
    await keyring.unlock(store)
    security = await open_security(config, store, keyring)
    tokens = await _tokens(store, security)
    core, listening, services = _built(config, store, security)
    servers = {
        "bare": _server(services, None, None),
        "encrypted": _server(services, None, security),
        "people": _server(services, security.guard, security),
        "hosts": _server(services, security.hosts_guard, security, asks_for_certificate=True),
    }
    await core.worker.register()
    await listening.heartbeats.refresh()
    addresses = {name: f"127.0.0.1:{await server.start(_LOOPBACK)}" for name, server in servers.items()}
    doors = Doors(**addresses, tokens=tokens)
    running: Sequence[Running] = (core.worker, core.hub, listening.heartbeats, *security.background)
    leases = () if listening.leases is None else (listening.leases,)
    tasks = [asyncio.create_task(each.run()) for each in (*running, *leases)]
    ShortCollections().install()
    await asyncio.to_thread(_publish, directory / _READY, json.dumps(asdict(doors)))
    await stop.wait()
    for server in servers.values():
        await server.stop(_STOP_GRACE_S)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await store.close()


def _built(
    config: ControlPlaneConfig, store: Store, security: Security
) -> tuple[Core, Listening, Sequence[ServedService]]:
    """Build what a control plane is made of; see `controlplane.app`."""
    coordinator = coordinator_of(config)
    core = core_of(config, store, restarts_vms=coordinator is not None, machine=security.own.credentials)
    listening, feeds = listening_of(core, coordinator), MetricsFeeds(core.daemons)
    balancing = balancing_of(core, feeds, listening.hearing)
    ha = high_availability_of(core, balancing.alerts, listening, coordinator)
    return core, listening, served_of(core, balancing, listening, ha, feeds, security)


def _server(
    services: Sequence[ServedService],
    guard: CallGuard | None,
    shown: Security | None,
    *,
    asks_for_certificate: bool = False,
) -> RpcServer:
    limits = limits_of(each.descriptor for each in services)
    pipeline = CallPipeline(CHECKS, RpcMetrics(build_registry()), guard, limits)

    def add(server: object) -> None:
        for each in services:
            each.add_to(each.servicer, server)

    tls = None if shown is None else shown.own.credentials.server(asks_for_certificate=asks_for_certificate)
    return RpcServer(pipeline, [each.descriptor.full_name for each in services], add, tls)


async def _tokens(store: Store, security: Security) -> list[str]:
    """Make users who may do everything, and log them in."""
    administrators, tokens = Administrators(store, security.passwords, utc_now), []
    for number in range(USER_COUNT):
        password = secrets.token_urlsafe()
        user = await administrators.create(f"user-{number}", password)
        await security.callers.look()
        tokens.append((await security.sessions.login(user.name, password, "")).access_token)
    return tokens


def _publish(path: Path, text: str) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--cpu", type=int, required=True, help="The only CPU to run on.")
def main(directory: Path, cpu: int) -> None:
    """Serve the database in DIRECTORY."""
    os.sched_setaffinity(0, {cpu})
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(serve(directory))


if __name__ == "__main__":
    main()
