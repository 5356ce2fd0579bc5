"""The control plane's services on a real database, with hosts in memory and a clock that stands still."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from controlplane.daemons.node_spec import REPORT_OF_STATE, STATE_OF_STATUS
from controlplane.domain.migration import MigrationRules
from controlplane.domain.node import Capacity, CapacityPolicy, Node
from controlplane.domain.query import Page
from controlplane.domain.vm import Vm
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import OperationDesk
from controlplane.operations.moves import Moves
from controlplane.operations.news import OperationNews
from controlplane.operations.node_drain import DrainConfig, DrainNode
from controlplane.operations.runner import RetryPolicy, Runner
from controlplane.operations.steps import Workflow
from controlplane.operations.vm_migration import ChooseTarget, MigrateVm, take_named
from controlplane.operations.vm_snapshots import RevertToSnapshot
from controlplane.operations.vm_update import UpdateVm
from controlplane.operations.worker import OperationWorker, WorkerConfig
from controlplane.reconcile.evictor import Evictor
from controlplane.reconcile.keeper import Keeper
from controlplane.reconcile.reports import HostReportService, SyncOutcome
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.clones import CloneService
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.migrations import MigrationService
from controlplane.services.moves import VmMoves
from controlplane.services.node_life import NodeLifeService
from controlplane.services.nodes import NodeService
from controlplane.services.placement import NodeMemory
from controlplane.services.room_rules import KeptRoomRules
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vm_devices import VmDeviceService
from controlplane.services.vm_guests import GuestService
from controlplane.services.vm_snapshots import SnapshotService
from controlplane.services.vms import VmService
from controlplane.state.interface import Store
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VirtualMachine, VmSpec
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import GIB, START_OF_TIME, make_node
from tests.support.fake_daemons import FakeDaemon, FakeDaemons

HEARTBEAT_INTERVAL_S = 30


@dataclass
class FakeClock:
    """A clock that moves when it is told to."""

    at: datetime = START_OF_TIME + timedelta(days=1)

    def __call__(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.at += timedelta(seconds=seconds)


AT_ONCE = RetryPolicy(do_pauses_s=(0.0, 0.0, 0.0), undo_pauses_s=(0.0,) * 5, store_pauses_s=(0.0, 0.01, 0.05, 0.1))
"""For tests in which a host that does not answer never will."""


HASTY = MigrationRules(patience_s=0.2, confirmation_s=0.1, poll_s=0.01)
"""For tests in which hosts fall silent."""


class VmCalls:
    """The service of VMs, with answers as the records behind them, which is what most tests look at."""

    def __init__(self, service: VmService, store: Store) -> None:
        self.service = service
        self._store = store

    async def get(self, vm_id: str) -> Vm:
        return await self.service.get(vm_id)

    async def list(self, request: vm_api.ListVMsRequest) -> Page[Vm]:
        return await self.service.list(request)

    async def console(self, request: vm_api.GetConsoleRequest) -> node_v1.ConsoleInfoResponse:
        return await self.service.console(request)

    async def console_log(self, request: vm_api.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        return await self.service.console_log(request)

    async def create(self, request: vm_api.CreateVMRequest) -> Vm:
        return await self._record(await self.service.create(request))

    async def delete(self, request: vm_api.DeleteVMRequest) -> None:
        await self.service.delete(request)

    async def update(self, request: vm_api.UpdateVMRequest) -> Vm:
        return await self._record(await self.service.update(request))

    async def start(self, vm_id: str) -> Vm:
        return await self._record(await self.service.start(vm_id))

    async def stop(self, request: vm_api.StopVMRequest) -> Vm:
        return await self._record(await self.service.stop(request))

    async def reboot(self, request: vm_api.RebootVMRequest) -> Vm:
        return await self._record(await self.service.reboot(request))

    async def pause(self, vm_id: str) -> Vm:
        return await self._record(await self.service.pause(vm_id))

    async def resume(self, vm_id: str) -> Vm:
        return await self._record(await self.service.resume(vm_id))

    async def suspend(self, vm_id: str) -> Vm:
        return await self._record(await self.service.suspend(vm_id))

    async def _record(self, answer: VirtualMachine) -> Vm:
        """Give the stored record, in the state that the answer says, since later operations may have changed it."""
        vm = await self._store.read(lambda tx: tx.get_vm(answer.id))
        assert vm is not None
        return replace(vm, power_state=answer.status.state)


@dataclass
class World:
    """All services of one control-plane process, wired as its composition root does."""

    store: Store
    clock: FakeClock = field(default_factory=FakeClock)
    daemons: FakeDaemons = field(default_factory=FakeDaemons)
    policy: CapacityPolicy = field(default_factory=CapacityPolicy)
    worker_config: WorkerConfig = field(default_factory=WorkerConfig)
    migration_rules: MigrationRules = HASTY
    choose: ChooseTarget = take_named
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    other_workflows: tuple[Workflow, ...] = ()
    """In place of those of the same kind."""
    news: OperationNews = field(init=False)
    worker: OperationWorker = field(init=False)
    desk: OperationDesk = field(init=False)
    keeper: Keeper = field(init=False)
    vms: VmCalls = field(init=False)
    clones: CloneService = field(init=False)
    snapshots: SnapshotService = field(init=False)
    devices: VmDeviceService = field(init=False)
    migrations: MigrationService = field(init=False)
    moves: Moves = field(init=False)
    evictor: Evictor = field(init=False)
    life: NodeLifeService = field(init=False)
    nodes: NodeService = field(init=False)
    reports: HostReportService = field(init=False)
    heartbeats: HeartbeatService = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything that is not in the database, as a process that was killed does."""
        store, clock = self.store, self.clock
        self.news = OperationNews(poll_s=0.05)
        room = KeptRoomRules(self.scheduler, NodeMemory())
        workflows = WORKFLOWS.with_(
            MigrateVm(self.choose, self.migration_rules),
            DrainNode(lambda: self.moves, DrainConfig(look_interval_s=0.01), room),
            UpdateVm(room),
            RevertToSnapshot(room),
            *self.other_workflows,
        )
        runner = Runner(store, self.daemons, workflows, clock, AT_ONCE, self.news.changed)
        self.worker = OperationWorker(store, runner, self.news, clock, self.worker_config)
        self.desk = OperationDesk(store, workflows, self.worker, self.news, clock)
        self.keeper = Keeper(store, self.desk, clock)
        access = VmAccess(store, self.daemons, self.desk)
        vms = VmService(access, self.scheduler, clock)
        self.vms = VmCalls(vms, store)
        self.snapshots = SnapshotService(access)
        self.guests = GuestService(access)
        self.devices = VmDeviceService(access)
        self.migrations = MigrationService(access, self.choose, self.migration_rules)
        self.clones = CloneService(access, self.scheduler, clock, vms.memory)
        self.moves = VmMoves(self.migrations, self.desk)
        self.evictor = Evictor(store, self.moves, clock)
        self.life = NodeLifeService(store, self.desk, self.policy, clock, scheduler=self.scheduler)
        self.nodes = NodeService(store, self.policy, clock)
        self.reports = HostReportService(store, self.desk, clock)
        self.heartbeats = HeartbeatService(store, clock, HeartbeatConfig(interval_s=HEARTBEAT_INTERVAL_S, trust_s=0))

    async def crash(self) -> None:
        """End the process as a kill does, in the middle of whatever it does, and start the next one."""
        await self.worker.abandon()
        self.restart()
        await self.worker.register()

    async def take_over(self) -> None:
        """Let the lease of every dead process end, and the next one take up what they left."""
        lease_s = self.worker_config.lease_s
        await self.worker.look(0.0)
        await self.worker.look(lease_s)

    async def settle(self) -> None:
        """Wait until no operation of this process is under way."""
        async with asyncio.timeout(60):
            await self.worker.idle()

    async def report_everything(self, node_id: str) -> SyncOutcome:
        """Send the whole state of a host, as its daemon does."""
        return await self.reports.full_state(full_state_of(node_id, self.daemons.of(node_id)))

    async def add_node(self, *, vcpus: int = 16, memory_bytes: int = 32 * GIB, **fields: Any) -> Node:
        """Put a node into the database."""
        node = make_node(vcpus=vcpus, memory_bytes=memory_bytes, **fields)
        await self.store.run(lambda tx: tx.insert_node(node))
        return node

    async def node(self, node_id: str) -> Node:
        """Read a node as it is stored."""
        node = await self.store.read(lambda tx: tx.get_node(node_id))
        assert node is not None
        return node

    async def allocated(self, node_id: str) -> Capacity:
        """Read what is claimed on a node."""
        return (await self.node(node_id)).allocated

    async def stored(self, vm_id: str) -> Vm | None:
        """Read a VM as it is stored."""
        return await self.store.read(lambda tx: tx.get_vm(vm_id))

    async def create(self, name: str = "t", *, start: bool = False, **spec: Any) -> Vm:
        """Create a VM through the service; `spec` as `create_request` takes it."""
        return await self.vms.create(create_request(name, start=start, **spec))

    def host_of(self, vm: Vm) -> FakeDaemon:
        """Return the host a VM is placed on."""
        return self.daemons.of(vm.node_id)

    async def all_vms(self) -> list[Vm]:
        """Read every VM."""
        return list((await self.vms.list(vm_api.ListVMsRequest(page_size=1000))).items)


def full_state_of(node_id: str, host: FakeDaemon) -> node_api.SyncFullStateRequest:
    """Make the report of everything that a host has."""
    reports = [
        node_api.VMStatusReport(
            id=vm_id,
            name=vm.name,
            state=REPORT_OF_STATE[STATE_OF_STATUS[vm.state]],
            state_change_count=vm.change_count,
            vcpu_count=vm.spec.cpu_cores,
            memory_mib=vm.spec.memory_mib,
            is_template=vm.spec.is_template,
            is_managed=True,
            generation=host.generations.get(vm_id, 0),
        )
        for vm_id, vm in host.vms.items()
    ]
    return node_api.SyncFullStateRequest(node_id=node_id, vms=reports, as_of_change_count=host.change_count)


def create_request(
    name: str = "t",
    *,
    start: bool = False,
    cores: int = 1,
    memory_mib: int = 128,
    spec: VmSpec | None = None,
    **fields: Any,
) -> vm_api.CreateVMRequest:
    """Make a sound request for a VM without devices; `fields` are those of the request."""
    size = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))
    return vm_api.CreateVMRequest(name=name, spec=spec or size, start_on_create=start, **fields)


def register_request(hostname: str = "host-a", **fields: Any) -> node_api.RegisterNodeRequest:
    """Make the registration of a host with 8 threads and 16 GiB."""
    defaults: dict[str, Any] = {
        "management_ip": "192.0.2.10",
        "cpu_info": CpuInfo(sockets=1, cores_per_socket=4, threads_per_core=2, total_threads=8),
        "memory_info": MemoryInfo(total_bytes=16 * GIB),
    }
    return node_api.RegisterNodeRequest(hostname=hostname, **{**defaults, **fields})
