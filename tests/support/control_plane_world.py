"""The control plane's services on a real database, with hosts in memory and a clock that stands still."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controlplane.domain.node import Capacity, CapacityPolicy, Node
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.host_reports import HostReportService, SyncTracker
from controlplane.services.nodes import NodeService
from controlplane.services.vm_operations import VmOperations
from controlplane.services.vms import VmService
from controlplane.state.interface import Store
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
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


@dataclass
class World:
    """All services of one control-plane process, wired as its composition root does."""

    store: Store
    clock: FakeClock = field(default_factory=FakeClock)
    daemons: FakeDaemons = field(default_factory=FakeDaemons)
    policy: CapacityPolicy = field(default_factory=CapacityPolicy)
    operations: VmOperations = field(init=False)
    vms: VmService = field(init=False)
    nodes: NodeService = field(init=False)
    reports: HostReportService = field(init=False)
    heartbeats: HeartbeatService = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything that is not in the database, as a process that was killed does."""
        syncs = SyncTracker()
        self.operations = VmOperations()
        self.vms = VmService(self.store, self.daemons, self.operations, syncs, SchedulerConfig(), self.clock)
        self.nodes = NodeService(self.store, self.policy, syncs, self.clock)
        self.reports = HostReportService(self.store, self.operations, syncs, self.clock)
        self.heartbeats = HeartbeatService(
            self.store, syncs, self.clock, HeartbeatConfig(interval_s=HEARTBEAT_INTERVAL_S)
        )

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
