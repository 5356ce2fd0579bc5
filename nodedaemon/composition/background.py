"""What goes on by itself while the daemon runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final
from urllib.parse import urlsplit

import structlog

from limiquantix.errors import ApiError
from nodedaemon.composition.core import Core, cancel
from nodedaemon.composition.machine import Machine
from nodedaemon.config import NodeConfig
from nodedaemon.generations import Generations
from nodedaemon.guest_watch import GuestWatch
from nodedaemon.identity.migration_certificates import MigrationCertificates
from nodedaemon.identity.renewal import GrpcRenewer, Renewal
from nodedaemon.observer import VmObserver
from nodedaemon.planned_shutdown import PlannedShutdown
from nodedaemon.registration import Registration
from nodedaemon.reporter import Reporter
from nodedaemon.self_fencing.learning import learn_until_sure
from nodedaemon.servicer import NodeDaemonServicer
from nodedaemon.storage_health import StorageHealth

FORGET_INTERVAL_S: Final = 3600.0
"""How often generations of VMs long gone are dropped; also how much of its running time a killed daemon forgets."""

CATCH_UP_S: Final = 2.0
"""How long what a daemon before left is settled before this one serves; what takes longer goes on meanwhile."""

_log = structlog.get_logger(__name__)


async def catch_up(core: Core, servicer: NodeDaemonServicer) -> None:
    """Begin to fence, learn what is protected, finish starts; returns when it is done or after a while, and goes on."""
    settled = asyncio.Event()

    async def learn_and_settle() -> None:
        await learn_until_sure(core.hypervisor, core.fencing)
        await servicer.starts.settle()
        settled.set()
        await servicer.starts.run()

    core.lasting.append(asyncio.create_task(core.fencing.run(), name="self-fencing"))
    core.lasting.append(asyncio.create_task(learn_and_settle(), name="catch-up"))
    with suppress(TimeoutError):
        await asyncio.wait_for(settled.wait(), CATCH_UP_S)


def run_background(
    config: NodeConfig, stack: AsyncExitStack, core: Core, servicer: NodeDaemonServicer, machine: Machine
) -> list[asyncio.Task[None]]:
    """Start it all; `stack` ends it. Returns what ends only by a defect."""
    kept = machine.renewal()
    migration = _migration_certificates(core, *kept) if kept is not None else None
    reporting, tell = _reporting(config, stack, core, migration)
    watch = GuestWatch(core.hypervisor, core.guests, tell)
    stack.callback(core.hypervisor.subscribe(watch.on_event))
    stack.callback(core.hypervisor.subscribe(servicer.bandwidths.on_event))
    core.lasting.extend(reporting)
    storage = StorageHealth(core.paths.root)
    core.report.tell_lost_storage(lambda: storage.lost_ids)
    tasks = [
        asyncio.create_task(_forget_regularly(core.generations, core.observer), name="generations"),
        asyncio.create_task(servicer.bandwidths.run(), name="bandwidths"),
        asyncio.create_task(watch.run(), name="guest-watch"),
        asyncio.create_task(storage.run(), name="storage-health"),
    ]
    if kept is not None:
        renewal, renewer = kept
        stack.push_async_callback(renewer.close)
        tasks.append(asyncio.create_task(renewal.run(), name="certificate"))
    if migration is not None:
        tasks.append(asyncio.create_task(migration.run(), name="migration-certificate"))
    stack.push_async_callback(cancel, tasks)
    return [*tasks, *core.lasting]


def planned_shutdown(config: NodeConfig, core: Core) -> PlannedShutdown:
    """Make what is done when the machine goes down."""

    async def beat() -> None:
        await asyncio.gather(*(each() for each in core.beats))

    return PlannedShutdown(
        core.hypervisor,
        core.planes.any,
        lambda: core.report.node_id,
        core.fencing.boot_id,
        stop_s=config.shutdown.vm_stop_secs,
        migrate_s=config.shutdown.migrate_secs,
        door=core.gate,
        under_way=core.commands.under_way,
        beat=beat,
    )


def _migration_certificates(core: Core, renewal: Renewal, renewer: GrpcRenewer) -> MigrationCertificates | None:
    """Make what keeps the hypervisor's certificate good; None where it needs none, or there is nobody to ask."""
    migration = core.hypervisor.migration
    if migration is None or migration.certificates is None or core.planes.any is None:
        return None
    address = urlsplit(migration.peer_uri).hostname or ""
    return MigrationCertificates(renewer, migration.certificates, lambda: renewal.identity, address)


def _reporting(
    config: NodeConfig, stack: AsyncExitStack, core: Core, migration: MigrationCertificates | None
) -> tuple[list[asyncio.Task[None]], Callable[[str], None]]:
    """Start registration and reporting if there is a control plane to tell.

    Returns:
        The tasks, and a function that has a VM reported.
    """
    if core.planes.any is None:
        return [], lambda vm_id: None
    reporter = Reporter(core.observer, core.planes.any, core.report.full_state)
    stack.callback(core.hypervisor.subscribe(reporter.on_event))
    registration = Registration(
        core.planes.any,
        core.report,
        reporter,
        float(config.control_plane.heartbeat_interval_secs),
        instances=core.planes.each,
        fencing=core.fencing,
        once_registered=planned_shutdown(config, core).call_off,
        on_revocation=migration.revoked if migration is not None else lambda at: None,
    )
    if migration is not None:
        migration.tell_changes(registration.look_soon)
    core.beats.append(registration.beat_everywhere)
    tasks = [
        asyncio.create_task(reporter.run(), name="reporter"),
        asyncio.create_task(registration.run(), name="registration"),
    ]
    return tasks, reporter.vm_has_news


async def _forget_regularly(generations: Generations, observer: VmObserver) -> None:
    """Keep the generations of VMs that are long gone from adding up."""
    while True:
        try:
            dropped = await generations.forget_unused({vm.status.vm_id for vm in await observer.read_all()})
            if dropped:
                _log.info("generations_forgotten", vm_count=dropped)
        except (ApiError, TimeoutError) as error:
            _log.warning("generations_not_forgotten", error=str(error) or "time-out")
        await asyncio.sleep(FORGET_INTERVAL_S)
