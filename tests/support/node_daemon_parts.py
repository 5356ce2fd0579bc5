"""A node daemon's parts on the mock hypervisor, put together as its composition root does, in this process."""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.change_count import StateChanges
from nodedaemon.commands import Commands
from nodedaemon.disk_images import DiskImages
from nodedaemon.generations import Generations, open_generations
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.memory import open_memory
from nodedaemon.servicer import NodeDaemonServicer
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.vm_actor import VmActors
from nodedaemon.vm_migrations import MigrationSettings


@dataclass
class NodeDaemonParts:
    """A node daemon's parts on the mock, without a wire."""

    hypervisor: MockHypervisor
    servicer: NodeDaemonServicer
    report: HostReport
    paths: StoragePaths
    generations: Generations
    commands: Commands
    fencing: SelfFencing

    async def create(self, *, disk_count: int = 0, vcpu_count: int = 1) -> str:
        disks = [pb.DiskSpec(id=str(uuid.uuid4()), size_gib=1) for _ in range(disk_count)]
        spec = pb.VMSpec(cpu_cores=vcpu_count, memory_mib=64, disks=disks)
        vm_id = str(uuid.uuid4())
        await self.servicer.CreateVM(pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec), None)
        return vm_id

    async def start(self, vm_id: str) -> None:
        await self.servicer.StartVM(pb.VMIdRequest(vm_id=vm_id), None)

    async def status(self, vm_id: str) -> pb.VMStatusResponse:
        return await self.servicer.GetVMStatus(pb.VMIdRequest(vm_id=vm_id), None)


@asynccontextmanager
async def node_daemon_parts(
    directory: Path,
    now_s: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    qemu_img: str = "qemu-img",
    settings: MockSettings | None = None,
) -> AsyncIterator[NodeDaemonParts]:
    """Put the parts together.

    Args:
        settings: of the mock; one whose state is in a file keeps what it knows of migrations beside that.
    """
    hypervisor = MockHypervisor(settings, now_s=now_s, sleep=sleep)
    await hypervisor.open()
    with tempfile.TemporaryDirectory() as data_dir:
        generations = await open_generations(Path(data_dir))
        observer = VmObserver(hypervisor, StateChanges(1), generations.newest, now_s)
        paths = StoragePaths(directory)
        report = HostReport(
            hypervisor,
            observer,
            HostMeter(hypervisor, directory),
            hostname="h1",
            labels={},
            node_id="",
            storage_root=directory,
        )
        actors = VmActors(max_concurrent=16, max_queued=16)
        commands = Commands(actors, generations)
        state_path = None if settings is None else settings.state_path
        records_dir = None if state_path is None else state_path.parent / "migrations"
        migrations = MigrationSettings(records_dir, directory / "console", now_s)
        memory = open_memory(Path(data_dir))
        fencing = SelfFencing(memory, hypervisor.processes, None, boot_id="boot")
        servicer = NodeDaemonServicer(  # type: ignore[abstract]
            hypervisor, observer, commands, DiskImages(paths, qemu_img), paths, report, migrations, fencing
        )
        await servicer.migrations.start()
        try:
            yield NodeDaemonParts(hypervisor, servicer, report, paths, generations, commands, fencing)
        finally:
            await servicer.close()
            await actors.close(0)
            await hypervisor.close()
            await generations.close()
            memory.close()
