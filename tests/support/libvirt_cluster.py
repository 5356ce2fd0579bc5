"""A control plane and node daemons, all real processes, over libvirt hosts whose guests count; and what guests did."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceStub
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.operation_service_pb2 import ListOperationsRequest, WaitOperationRequest
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VirtualMachine, VmSpec, VmStatus
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from tests.support import serial_guests
from tests.support.libvirt_hosts import MigrationHost
from tests.support.libvirt_nodes import LibvirtNode
from tests.support.ports import own_port
from tests.support.private_libvirt_host import eventually
from tests.support.processes import start_control_plane

DEADLINE_S: Final = 150.0
MEMORY_MIB: Final = 16
WATCH_INTERVAL_S: Final = 0.05
_SETTINGS: Final[dict[str, Any]] = {
    "operations": {"lease_s": 3},
    "scheduler": {"cpu_overcommit_ratio": 16.0, "reserved_cores": 0, "reserved_memory_mib": 0},
    "nodes": {"heartbeat_interval_s": 1},
}
_GUESTS: Final = {
    "writing": serial_guests.WRITING_COUNTER,
    "heavy": serial_guests.HEAVY_COUNTER,
    "busy": serial_guests.BUSY_COUNTER,
}
"""Boot sectors by the name of the image in each host's storage."""
_LINE: Final = re.compile(rb"([0-9A-F]{4})\n")


class Plane:
    """The control plane's process, which another can take the place of."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._directory = directory
        self._settings = settings
        self._address = f"127.0.0.1:{own_port()}"
        self._process = ExitStack()
        self._kill = self._process.close
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        """Run it, and connect."""
        running = await asyncio.to_thread(
            self._process.enter_context,
            start_control_plane(self._directory, settings=self._settings, hosts_listen=self._address),
        )
        self._kill, self.entry = running.kill, running.entry
        # A channel of its own: one that saw the last process die waits before it tries again.
        self._channel = self.entry.channel(options=[("grpc.use_local_subchannel_pool", 1)])
        self.vms = VMServiceStub(self._channel)
        self.nodes = NodeServiceStub(self._channel)
        self.operations = OperationServiceStub(self._channel)
        self.joining = JoinServiceStub(self._channel)

    async def kill(self) -> None:
        """Kill it as `kill -9` does."""
        await asyncio.to_thread(self._kill)
        await self.stop()

    async def stop(self) -> None:
        """End it."""
        if self._channel is not None:
            await self._channel.close()
        await asyncio.to_thread(self._process.close)


@dataclass
class LibvirtCluster:
    """A control plane and its hosts, by name."""

    plane: Plane
    nodes: dict[str, LibvirtNode]
    node_ids: dict[str, str] = field(default_factory=dict)

    async def until_registered(self) -> None:
        """Wait until every host may take part in migrations."""

        async def look() -> dict[str, str] | None:
            found = await self.plane.nodes.ListNodes(node_api.ListNodesRequest(), timeout=DEADLINE_S)
            able = {node.hostname: node.id for node in found.nodes if node.spec.supports_live_migration}
            return able if able.keys() == self.nodes.keys() else None

        self.node_ids = await eventually(look, "the registration of all hosts", DEADLINE_S)
        await asyncio.gather(*(node.until_certified() for node in self.nodes.values()))

    async def create(self, name: str, on: str, guest: str = "writing", *, start: bool = True) -> VirtualMachine:
        """Make a VM whose one qcow2 disk has the cache mode that nobody chose."""
        disk = DiskDevice(source_file=f"{guest}.raw", source_format=DiskDevice.SOURCE_FORMAT_RAW)
        spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=MEMORY_MIB), disks=[disk])
        request = api.CreateVMRequest(name=name, spec=spec, node_id=self.node_ids[on], start_on_create=start)
        return await self.plane.vms.CreateVM(request, timeout=DEADLINE_S)

    async def migrate(self, vm: VirtualMachine, to: str, **fields: Any) -> api.MigrateVMResponse:
        """Migrate, and wait for the end."""
        request = api.MigrateVMRequest(vm_id=vm.id, target_node_id=self.node_ids[to], live=True, **fields)
        return await self.plane.vms.MigrateVM(request, timeout=DEADLINE_S)

    async def begin(self, vm: VirtualMachine, to: str, bandwidth_mbps: int) -> Operation:
        """Migrate at that speed, and wait until some of it is at the target."""
        request = api.MigrateVMRequest(
            vm_id=vm.id,
            target_node_id=self.node_ids[to],
            live=True,
            bandwidth_mbps=bandwidth_mbps,
            max_downtime_ms=1,
        )
        at_once = (("limiquantix-wait", "false"),)
        await self.plane.vms.MigrateVM(request, timeout=DEADLINE_S, metadata=at_once)

        async def look() -> Operation | None:
            operation = await self.operation(vm)
            return operation if "the transfer" in operation.waiting_for else None

        return await eventually(look, "the transfer", DEADLINE_S)

    async def operation(self, vm: VirtualMachine) -> Operation:
        """Read the newest migration of a VM."""
        wanted = ListOperationsRequest(resource_id=vm.id, kinds=["vm.migrate"])
        found = await self.plane.operations.ListOperations(wanted, timeout=DEADLINE_S)
        return found.operations[0]

    async def ended(self, operation: Operation) -> Operation:
        """Wait for the end of an operation."""
        return await self.plane.operations.WaitOperation(WaitOperationRequest(id=operation.id), timeout=DEADLINE_S)

    async def get(self, vm: VirtualMachine) -> VirtualMachine:
        """Read the record."""
        return await self.plane.vms.GetVM(api.GetVMRequest(id=vm.id), timeout=DEADLINE_S)

    async def until(self, vm: VirtualMachine, state: VmStatus.PowerState.ValueType) -> VirtualMachine:
        """Wait until the record shows a state."""

        async def look() -> VirtualMachine | None:
            found = await self.get(vm)
            return found if found.status.state == state else None

        return await eventually(look, VmStatus.PowerState.Name(state), DEADLINE_S)

    async def claimed_mib(self) -> dict[str, int]:
        """Say how much memory is claimed on each host."""
        found = await self.plane.nodes.ListNodes(node_api.ListNodesRequest(), timeout=DEADLINE_S)
        return {node.hostname: node.status.resources.memory.allocated_bytes >> 20 for node in found.nodes}

    async def clear(self) -> None:
        """Delete all VMs, whatever they do."""
        found = await self.plane.vms.ListVMs(api.ListVMsRequest(page_size=1000), timeout=DEADLINE_S)
        for vm in found.vms:
            await self.plane.vms.DeleteVM(api.DeleteVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)


@asynccontextmanager
async def libvirt_cluster(
    hosts: Mapping[str, MigrationHost], images: Mapping[str, Path], directory: Path, **settings: Any
) -> AsyncIterator[LibvirtCluster]:
    """Run a control plane, and a daemon on each host.

    Args:
        images: the storage of each; hosts with the same directory share it.
        settings: of the control plane.
    """
    for root in set(images.values()):
        root.mkdir(parents=True, exist_ok=True)
        for name, code in _GUESTS.items():
            serial_guests.write_disk(root / f"{name}.raw", code)
    async with AsyncExitStack() as stack:
        plane = Plane(directory / "plane", _SETTINGS | settings)
        stack.push_async_callback(plane.stop)
        await plane.start()
        nodes = {
            name: LibvirtNode(
                host, directory / name, images[name], hostname=name, control_plane=plane.entry.hosts_address
            )
            for name, host in hosts.items()
        }
        for name, node in nodes.items():
            await plane.entry.admit(node.data_dir, name)
        for node in nodes.values():
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        cluster = LibvirtCluster(plane, nodes)
        await cluster.until_registered()
        yield cluster


class Witness:
    """Looks all the time, with eyes of its own, at what runs where, and keeps all that guests wrote.

    `most_running` is the largest number of hosts on which a VM's processors ran at one instant; `look_count` how often
    it looked.
    """

    def __init__(self, nodes: Sequence[LibvirtNode], vm_ids: Sequence[str]) -> None:
        self._nodes = nodes
        self._vm_ids = vm_ids
        self._logs: dict[str, list[tuple[int, BinaryIO]]] = {vm_id: [] for vm_id in vm_ids}
        self._texts: dict[str, list[bytes]] = {vm_id: [] for vm_id in vm_ids}
        self._ends = threading.Event()
        self.most_running = 0
        self.look_count = 0

    def lines(self, vm_id: str) -> list[int]:
        """Return the numbers that a guest counted, host after host."""
        text = b"".join(self._texts[vm_id])
        assert len(_LINE.findall(text)) * 5 == len(text) - len(text.rpartition(b"\n")[2]), text[-200:]
        return [int(number, 16) for number in _LINE.findall(text)]

    def check_count(self, vm_id: str) -> int:
        """Check that no line is lost, none comes twice and the order is kept; returns how many there are."""
        numbers = self.lines(vm_id)
        assert numbers == list(range(len(numbers)))
        return len(numbers)

    async def counts_on(self, *vm_ids: str, more: int = 3) -> None:
        """Wait until guests wrote some more lines."""
        wanted = {vm_id: len(self.lines(vm_id)) + more for vm_id in vm_ids}

        async def look() -> bool | None:
            return True if all(len(self.lines(vm_id)) >= count for vm_id, count in wanted.items()) else None

        await eventually(look, "more lines of the guests", DEADLINE_S)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look in the background."""
        thread = threading.Thread(target=self._run, name="witness")
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()
            for _, log in itertools.chain.from_iterable(self._logs.values()):
                log.close()

    def _run(self) -> None:
        eyes = [_Eye(node.host.uri) for node in self._nodes]
        while not self._ends.is_set():
            for vm_id in self._vm_ids:
                self._read_logs(vm_id)
            self._look(eyes)
            self._ends.wait(WATCH_INTERVAL_S)
        for vm_id in self._vm_ids:
            self._read_logs(vm_id)
        for eye in eyes:
            eye.close()

    def _look(self, eyes: Sequence[_Eye]) -> None:
        """Look at all hosts, and at those again where a VM ran: whatever runs both times ran in between too."""
        seen = [eye.running() for eye in eyes]
        for vm_id in self._vm_ids:
            places = [eye for eye, running in zip(eyes, seen, strict=True) if vm_id in running]
            if len(places) > 1:
                places = [eye for eye in places if eye is places[-1] or vm_id in eye.running()]
            self.most_running = max(self.most_running, len(places))
        self.look_count += 1

    def _read_logs(self, vm_id: str) -> None:
        """Read on; a log that its host removes is kept open, so that its end is not missed."""
        logs = self._logs[vm_id]
        for node in self._nodes:
            path = node.directory / "data" / "console" / f"{vm_id}.log"
            with suppress(FileNotFoundError):
                if path.stat().st_ino not in {number for number, _ in logs}:
                    opened = path.open("rb")
                    logs.append((os.fstat(opened.fileno()).st_ino, opened))
                    self._texts[vm_id].append(b"")
        for place, (_, log) in enumerate(logs):
            self._texts[vm_id][place] += log.read()


class _Eye:
    """A connection of its own to a host's libvirt, which may be down for a while."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None

    def running(self) -> set[str]:
        """Return the VMs whose processors run."""
        import libvirt  # noqa: PLC0415 - optional

        try:
            if self._connection is None or not self._connection.isAlive():
                self._connection = libvirt.openReadOnly(self._uri)
            domains = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING)
            return {domain.UUIDString() for domain in domains}
        except libvirt.libvirtError:
            return set()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
