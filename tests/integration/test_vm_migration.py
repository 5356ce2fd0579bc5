"""Migrations with real processes: a control plane, and node daemons whose hosts are simulated."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.operation_service_pb2 import (
    CancelOperationRequest,
    ListOperationsRequest,
    WaitOperationRequest,
)
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VirtualMachine, VmSpec, VmStatus
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.errors import Code, Reason
from tests.support.closed_plane import ClosedPlane, closed_plane
from tests.support.databases import fresh_sqlite
from tests.support.entry import Entry
from tests.support.failure_harness_host import SIMULATED_QEMU_IMG
from tests.support.node_daemon_process import NodeDaemonProcess, node_daemon
from tests.support.running_control_plane import DEADLINE_S, error_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW_MIB_PER_S = 64
LARGE_MIB = 512
"""Some seconds at that speed: a test that needs a migration under way has time."""


class Host:
    """A node daemon that can be killed and started again with all that it has."""

    def __init__(self, directory: Path, name: str, images: Path, programs: Path, control_plane: Entry) -> None:
        self._directory = directory
        self._name = name
        self._images = images
        self._programs = programs
        self._control_plane = control_plane
        self._stack = AsyncExitStack()
        self._daemon: NodeDaemonProcess | None = None

    async def start(self) -> None:
        mock = {"boot_secs": 0, "migration_mib_per_sec": SLOW_MIB_PER_S}
        await self._control_plane.admit(self._directory / "data", self._name)
        self._daemon = await self._stack.enter_async_context(
            node_daemon(
                self._directory,
                self._control_plane.hosts_address,
                hypervisor={"storage_path": str(self._images), "mock": mock},
                program_dir=self._programs,
                node={"hostname": self._name, "data_dir": str(self._directory / "data")},
            )
        )

    async def kill(self) -> None:
        assert self._daemon is not None
        await self._daemon.kill()

    async def end(self) -> None:
        await self._stack.aclose()


@dataclass
class Cluster:
    """A control plane and its hosts, by name."""

    plane: ClosedPlane
    hosts: dict[str, Host]
    images: dict[str, Path]
    nodes: dict[str, str]

    def __post_init__(self) -> None:
        self.vm_service = VMServiceStub(self.plane.channel)
        self.node_service = NodeServiceStub(self.plane.channel)
        self.operations = OperationServiceStub(self.plane.channel)

    async def create(self, name: str, on: str, memory_mib: int = 64, *, start: bool = True) -> VirtualMachine:
        spec = VmSpec(
            cpu=CpuConfig(cores=1),
            memory=MemoryConfig(size_mib=memory_mib),
            disks=[DiskDevice(size_gib=1, format=DiskDevice.QCOW2, cache=DiskDevice.NONE)],
        )
        request = api.CreateVMRequest(name=name, spec=spec, node_id=self.nodes[on], start_on_create=start)
        return await self.vm_service.CreateVM(request, timeout=DEADLINE_S)

    async def migrate(self, vm: VirtualMachine, to: str, **fields: bool) -> api.MigrateVMResponse:
        request = api.MigrateVMRequest(vm_id=vm.id, target_node_id=self.nodes[to], live=True, **fields)
        return await self.vm_service.MigrateVM(request, timeout=DEADLINE_S)

    async def begin(self, vm: VirtualMachine, to: str) -> Operation:
        request = api.MigrateVMRequest(vm_id=vm.id, target_node_id=self.nodes[to], live=True)
        call = self.vm_service.MigrateVM(request, timeout=DEADLINE_S, metadata=(("limiquantix-wait", "false"),))
        await call
        return await self.operation(vm)

    async def operation(self, vm: VirtualMachine) -> Operation:
        wanted = ListOperationsRequest(resource_id=vm.id, kinds=["vm.migrate"])
        found = await self.operations.ListOperations(wanted, timeout=DEADLINE_S)
        return found.operations[0]

    async def until_sent(self, vm: VirtualMachine) -> None:
        """Wait until some of it is at the target."""
        async with asyncio.timeout(DEADLINE_S):
            for pause_s in itertools.repeat(0.1):
                if "the transfer" in (await self.operation(vm)).waiting_for:
                    return
                await asyncio.sleep(pause_s)

    async def get(self, vm: VirtualMachine) -> VirtualMachine:
        return await self.vm_service.GetVM(api.GetVMRequest(id=vm.id), timeout=DEADLINE_S)

    async def until(self, vm: VirtualMachine, state: VmStatus.PowerState.ValueType) -> VirtualMachine:
        async with asyncio.timeout(DEADLINE_S):
            for pause_s in itertools.repeat(0.1):
                if (found := await self.get(vm)).status.state == state:
                    break
                await asyncio.sleep(pause_s)
            return found

    async def claimed(self, name: str) -> int:
        node = await self.node_service.GetNode(node_api.GetNodeRequest(id=self.nodes[name]), timeout=DEADLINE_S)
        return node.status.resources.memory.allocated_bytes >> 20

    def has_images(self, vm: VirtualMachine, name: str) -> bool:
        directory = self.images[name] / vm.id
        return directory.is_dir() and any(directory.glob("*.qcow2"))

    async def delete(self, vm: VirtualMachine) -> None:
        await self.vm_service.DeleteVM(api.DeleteVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Hosts "a" and "b" share their storage, "c" has its own."""
    directory = tmp_path_factory.mktemp("cluster")
    programs = directory / "programs"
    programs.mkdir()
    (programs / "qemu-img").write_text(SIMULATED_QEMU_IMG)
    (programs / "qemu-img").chmod(0o755)
    images = {"a": directory / "shared", "b": directory / "shared", "c": directory / "own"}
    async with AsyncExitStack() as stack:
        url = fresh_sqlite(directory)
        plane = await stack.enter_async_context(closed_plane(directory, url, ha={"enabled": False}))
        hosts = {}
        for name, path in images.items():
            own = directory / name
            own.mkdir()
            hosts[name] = Host(own, name, path, programs, plane.entry)
            stack.push_async_callback(hosts[name].end)
            await hosts[name].start()
        nodes: dict[str, str] = {}
        node_service = NodeServiceStub(plane.channel)
        async with asyncio.timeout(DEADLINE_S):
            while len(nodes) < len(images):
                found = await node_service.ListNodes(node_api.ListNodesRequest(), timeout=DEADLINE_S)
                nodes = {node.hostname: node.id for node in found.nodes if node.spec.supports_live_migration}
                await asyncio.sleep(0.1)
        yield Cluster(plane, hosts, images, nodes)


async def test_running_vm_moves_between_hosts_that_share_storage_and_back(cluster: Cluster) -> None:
    vm = await cluster.create("shared", "a")
    moved = await cluster.migrate(vm, "b")
    assert moved.vm.status.node_id == cluster.nodes["b"]
    assert moved.vm.status.state == VmStatus.RUNNING
    assert moved.stats.bytes_transferred >= 64 * 2**20
    assert moved.stats.duration_ms > 0
    assert moved.forecast.target_node_id == cluster.nodes["b"]
    assert (await cluster.claimed("a"), await cluster.claimed("b")) == (0, 64)
    assert cluster.has_images(vm, "b")
    await cluster.migrate(vm, "a")
    assert (await cluster.claimed("a"), await cluster.claimed("b")) == (64, 0)
    stopped = await cluster.vm_service.StopVM(api.StopVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)
    assert stopped.status.state == VmStatus.STOPPED
    await cluster.delete(vm)
    assert not cluster.has_images(vm, "a")


async def test_disks_go_along_to_a_host_with_other_storage(cluster: Cluster) -> None:
    vm = await cluster.create("copied", "a")
    await cluster.migrate(vm, "c")
    assert cluster.has_images(vm, "c")
    assert not cluster.has_images(vm, "a")
    await cluster.delete(vm)
    assert not cluster.has_images(vm, "c")


async def test_vm_that_is_off_moves(cluster: Cluster) -> None:
    vm = await cluster.create("off", "a", start=False)
    moved = await cluster.migrate(vm, "b")
    assert (moved.vm.status.node_id, moved.vm.status.state) == (cluster.nodes["b"], VmStatus.STOPPED)
    started = await cluster.vm_service.StartVM(api.StartVMRequest(id=vm.id), timeout=DEADLINE_S)
    assert started.status.state == VmStatus.RUNNING
    await cluster.delete(vm)


async def test_refusals_say_why(cluster: Cluster) -> None:
    vm = await cluster.create("refused", "a")
    for to, fields, words in (("a", {}, "already"), ("c", {"shared_storage_only": True}, "share")):
        request = api.MigrateVMRequest(vm_id=vm.id, target_node_id=cluster.nodes[to], live=True, **fields)
        error = await error_of(cluster.vm_service.MigrateVM(request, timeout=DEADLINE_S))
        assert error.code in (Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED)
        assert words in error.message
    assert (await cluster.claimed("a"), await cluster.claimed("c")) == (64, 0)
    await cluster.delete(vm)


async def test_scheduler_chooses_where_nobody_does(cluster: Cluster) -> None:
    vm = await cluster.create("anywhere", "a")
    request = api.MigrateVMRequest(vm_id=vm.id, live=True, shared_storage_only=True, validate_only=True)
    forecast = (await cluster.vm_service.MigrateVM(request, timeout=DEADLINE_S)).forecast
    assert forecast.target_node_id == cluster.nodes["b"]
    assert (await cluster.claimed("a"), await cluster.claimed("b")) == (64, 0)
    request.validate_only = False
    moved = await cluster.vm_service.MigrateVM(request, timeout=DEADLINE_S)
    assert moved.vm.status.node_id == cluster.nodes["b"]
    await cluster.delete(vm)


async def test_cancelled_one_runs_at_the_source(cluster: Cluster) -> None:
    vm = await cluster.create("cancelled", "a", LARGE_MIB)
    operation = await cluster.begin(vm, "c")
    await cluster.until_sent(vm)
    assert (await cluster.get(vm)).status.state == VmStatus.MIGRATING
    operations = cluster.operations
    await operations.CancelOperation(CancelOperationRequest(id=operation.id), timeout=DEADLINE_S)
    ended = await operations.WaitOperation(WaitOperationRequest(id=operation.id), timeout=DEADLINE_S)
    assert (ended.state, ended.error.reason) == (Operation.CANCELLED, Reason.OPERATION_CANCELLED)
    found = await cluster.until(vm, VmStatus.RUNNING)
    assert found.status.node_id == cluster.nodes["a"]
    assert (await cluster.claimed("a"), await cluster.claimed("c")) == (LARGE_MIB, 0)
    assert not cluster.has_images(vm, "c")
    await cluster.delete(vm)


@pytest.mark.parametrize("killed", ["a", "c"])
async def test_host_whose_daemon_is_killed_in_the_middle_leaves_one_vm_in_one_place(
    cluster: Cluster, killed: str
) -> None:
    vm = await cluster.create(f"killed-{killed}", "a", LARGE_MIB)
    operation = await cluster.begin(vm, "c")
    await cluster.until_sent(vm)
    await cluster.hosts[killed].kill()
    await cluster.hosts[killed].start()
    operations = cluster.operations
    async with asyncio.timeout(4 * DEADLINE_S):
        ended = await operations.WaitOperation(WaitOperationRequest(id=operation.id))
    assert ended.state in (Operation.SUCCEEDED, Operation.FAILED)
    has_moved = ended.state == Operation.SUCCEEDED
    found = await cluster.until(vm, VmStatus.RUNNING)
    assert found.status.node_id == cluster.nodes["c" if has_moved else "a"]
    async with asyncio.timeout(DEADLINE_S):
        for pause_s in itertools.repeat(0.1):  # until both hosts have said what they have
            if not (await cluster.get(vm)).status.health.checks:
                break
            await asyncio.sleep(pause_s)
    claims = (await cluster.claimed("a"), await cluster.claimed("c"))
    assert claims == ((0, LARGE_MIB) if has_moved else (LARGE_MIB, 0))
    async with asyncio.timeout(DEADLINE_S):
        for pause_s in itertools.repeat(0.1):  # what could not be tidied up is, when its host reports
            if cluster.has_images(vm, "a") != cluster.has_images(vm, "c"):
                break
            await asyncio.sleep(pause_s)
    assert cluster.has_images(vm, "c") == has_moved
    await cluster.delete(vm)
