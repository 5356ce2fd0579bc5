"""Self-fencing, from what this host was told before."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypervisor.base import Hypervisor
from nodedaemon.config import NodeConfig
from nodedaemon.self_fencing.guard_link import GuardLink, default_run_dir
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.learning import remember_orders
from nodedaemon.self_fencing.memory import open_memory


async def open_fencing(config: NodeConfig, stack: AsyncExitStack, hypervisor: Hypervisor) -> SelfFencing:
    """Begin with what this host was told before; VMs whose lease ended meanwhile are killed as soon as it runs.

    Raises:
        DataDirError: what it was told is damaged.
        Unavailable: it cannot be written down.
    """
    settings, processes = config.self_fencing, hypervisor.processes
    memory = await asyncio.to_thread(open_memory, config.node.data_dir)
    stack.callback(memory.close)
    has_processes = processes is not None and processes.pid_dir is not None
    obstacle = "" if settings.enabled else "self_fencing.enabled is false in the node daemon's configuration"
    if has_processes and settings.guard == "off" and not obstacle:
        obstacle = "self_fencing.guard is off in the node daemon's configuration"
    beside = config.node.data_dir / "guard"  # a simulated host leaves nothing elsewhere
    run_dir = settings.run_dir or (default_run_dir(config.node.data_dir) if has_processes else beside)
    guard = GuardLink(
        run_dir,
        config.node.boot_id_path,
        starts=has_processes and settings.guard == "spawn" and settings.enabled,
        watchdog_device=settings.watchdog_device,
    )
    boot_id = (await asyncio.to_thread(config.node.boot_id_path.read_text)).strip()
    orders = guard.last_orders(boot_id)
    await remember_orders(memory, orders)
    return SelfFencing(
        memory,
        processes,
        guard,
        boot_id=boot_id,
        kill_ms=int(settings.kill_s * 1000),
        obstacle=obstacle,
        is_blank=memory.is_new and orders is None and guard.report() is not None,
    )
