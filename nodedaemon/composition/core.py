"""What the rest of the daemon rests on: the hypervisor, what is known of its VMs, and how they are changed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

from hypervisor.base import Hypervisor
from hypervisor.registry import create_hypervisor
from limiquantix.errors import ApiError
from nodedaemon.change_count import StateChanges, next_boot_number
from nodedaemon.commands import Commands
from nodedaemon.composition.control_planes import ControlPlanes
from nodedaemon.composition.fencing import open_fencing
from nodedaemon.composition.listening import STOP_GRACE_S
from nodedaemon.composition.machine import Machine
from nodedaemon.composition.settings import hypervisor_settings
from nodedaemon.config import NodeConfig
from nodedaemon.disk_images import DiskImages
from nodedaemon.fence_gate import FenceGate
from nodedaemon.generations import Generations, open_generations
from nodedaemon.guest_facts import GuestFacts
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.servicer import NodeDaemonServicer
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.vm_actor import VmActors
from nodedaemon.vm_migrations import MigrationSettings
from telemetry.host import read_host_facts

_CLOSE_DEADLINE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Core:
    """Parts that others share; `guests` is what is known of guests, by VM id."""

    hypervisor: Hypervisor
    generations: Generations
    fencing: SelfFencing
    planes: ControlPlanes
    guests: dict[str, GuestFacts]
    observer: VmObserver
    paths: StoragePaths
    report: HostReport
    gate: FenceGate
    commands: Commands
    lasting: list[asyncio.Task[None]]
    """What goes on while calls under way get their time to end: the lease must not end before them."""
    beats: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Each tells all control planes how this host is now; empty where there are none."""


async def open_core(
    config: NodeConfig, stack: AsyncExitStack, machine: Machine, once_silent: Callable[[], None] = lambda: None
) -> Core:
    """Open files and hypervisor, and look at what is there; `stack` undoes it in reverse.

    Args:
        once_silent: called when `stack` is about to end what goes on longest, heartbeats among it.

    Raises:
        DataDirError, HypervisorError, OSError: something it needs is not there.
    """
    boot_number = await asyncio.to_thread(next_boot_number, config.node.data_dir, time.time())
    generations = await open_generations(config.node.data_dir)
    stack.push_async_callback(generations.close)
    management_ip = (await asyncio.to_thread(read_host_facts)).management_ip
    hypervisor = create_hypervisor(hypervisor_settings(config, management_ip))
    await hypervisor.open()
    stack.push_async_callback(hypervisor.close)

    fencing = await open_fencing(config, stack, hypervisor)
    planes = ControlPlanes(machine, stack)
    lasting: list[asyncio.Task[None]] = []
    stack.push_async_callback(cancel, lasting)
    stack.callback(once_silent)
    guests: dict[str, GuestFacts] = {}
    observer = VmObserver(hypervisor, StateChanges(boot_number), generations.newest, guests=guests)
    with suppress(ApiError, TimeoutError):  # what exists now began before us; if nothing answers, so be it
        await observer.read_all()
    paths = StoragePaths(config.hypervisor.storage_path)
    await asyncio.to_thread(paths.root.mkdir, parents=True, exist_ok=True)
    report = HostReport(
        hypervisor,
        observer,
        HostMeter(hypervisor, paths.root),
        hostname=config.node.hostname or socket.gethostname(),
        labels=config.node.labels,
        node_id=machine.node_id,
        storage_root=paths.root,
    )
    actors = VmActors(config.limits.concurrent_operations, config.limits.queued_operations_per_vm)
    stack.push_async_callback(actors.close, STOP_GRACE_S)
    gate = FenceGate(fencing, lambda: planes.any is not None)
    commands = Commands(actors, generations, gate)
    fencing.watch_changes(commands.under_way)
    return Core(hypervisor, generations, fencing, planes, guests, observer, paths, report, gate, commands, lasting)


async def open_servicer(config: NodeConfig, stack: AsyncExitStack, core: Core) -> NodeDaemonServicer:
    """Make the service; it goes on with migrations that a daemon before left."""
    # The generated stub calls every method abstract; those not overridden answer UNIMPLEMENTED.
    servicer = NodeDaemonServicer(  # type: ignore[abstract]
        core.hypervisor,
        core.observer,
        core.commands,
        DiskImages(core.paths),
        core.paths,
        core.report,
        MigrationSettings(config.node.data_dir / "migrations", config.node.data_dir / "console"),
        core.fencing,
        lambda: core.planes.any is None or core.fencing.can_judge,
    )
    stack.push_async_callback(servicer.close)
    await servicer.migrations.start()
    return servicer


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """End tasks, and wait for those that end in time."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_DEADLINE_S)
