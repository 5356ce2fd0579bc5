"""A highly available cluster of real parts, each in a network whose cables can be cut.

Three hosts with libvirt, a node daemon and a guard each, on shared storage; control planes on one PostgreSQL and one
etcd, which live in the network that all cables end in. This process calls them through doors (see `netns_door`), so
what it asks is no part of what is tested. All of it is closed, as the product is: hosts have joined before they boot.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from controlplane.ha_settings import HighAvailabilitySettings
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import Node, NodeStatus
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.operation_service_pb2 import ListOperationsRequest
from limiquantix.compute.v1.vm_pb2 import (
    CpuConfig,
    DiskDevice,
    HaPolicy,
    MemoryConfig,
    VirtualMachine,
    VmSpec,
    VmStatus,
)
from tests.support import serial_guests
from tests.support.entry import prepare, security_settings
from tests.support.etcd import EtcdCluster, require_etcd
from tests.support.ha_parts import (
    CALL_S,
    DEADLINE_S,
    PLANES_ADDRESS,
    HaHost,
    Plane,
    Ports,
    until,
)
from tests.support.ha_witness import HaWitness
from tests.support.libvirt_hosts import MigrationHost, migration_hosts
from tests.support.namespaces import kill_all_in, run_tool
from tests.support.netns_door import Doors, doors_to
from tests.support.postgresql import PostgresqlServer, new_server
from tests.support.power_fronts import FIRST_PORT as POWER_PORT
from tests.support.power_fronts import PowerFront

MEMORY_MIB: Final = 16
_IMAGE: Final = "disk-counter.raw"
_NAMES: Final = ("host-a", "host-b", "host-c")

QUICK: Final = HighAvailabilitySettings(heartbeat_interval_s=1, freshness_s=1.5, objection_s=1.0, pause_s=0.5)
"""Quick times, as safe as the usual ones."""


@dataclass
class HaCluster:
    """All of it, by name."""

    hosts: dict[str, HaHost]
    planes: list[Plane]
    etcd: EtcdCluster
    database: PostgresqlServer
    storage: Path
    witness: HaWitness
    controllers: dict[str, PowerFront]
    """Power controllers, by host; none if they were not asked for."""
    node_ids: dict[str, str] = field(default_factory=dict)

    @property
    def plane(self) -> Plane:
        """One that lives."""
        return next(plane for plane in self.planes if plane.is_alive)

    def hostname(self, node_id: str) -> str:
        """Name the host of a node."""
        return next(name for name, known in self.node_ids.items() if known == node_id)

    async def status(self) -> ha_api.HaStatus:
        """Ask how high availability stands."""
        return await self.plane.ha.GetHaStatus(ha_api.GetHaStatusRequest(), timeout=CALL_S)

    async def leader(self) -> Plane:
        """Wait for somebody who decides."""

        async def look() -> Plane | None:
            status = await self.status()
            if not status.leader_id or status.obstacle:
                return None
            return next((each for each in self.planes if each.is_alive and each.took_lead(status.leader_id)), None)

        return await until(look, "a leader")

    async def node(self, name: str) -> Node:
        """Read the record of a host."""
        return await self.plane.nodes.GetNode(node_api.GetNodeRequest(id=self.node_ids[name]), timeout=CALL_S)

    async def until_well(self, *names: str) -> None:
        """Wait until hosts, all if none is named, are registered, ready, healthy and fence themselves."""
        wanted, seen = set(names or self.hosts), ""

        async def look() -> bool | None:
            nonlocal seen
            found = await self.plane.nodes.ListNodes(node_api.ListNodesRequest(page_size=100), timeout=CALL_S)
            self.node_ids = {node.hostname: node.id for node in found.nodes}
            ready = {node.hostname for node in found.nodes if node.status.phase == NodeStatus.READY}
            status = await self.status()
            well = {
                node.hostname
                for node in status.nodes
                if node.is_self_fencing is self.hosts[node.hostname].fences_itself
                and node.health == ha_api.NODE_HEALTH_HEALTHY
                and not node.HasField("fence")
            }
            seen = f"ready: {sorted(ready)}, well: {sorted(well)}, status: {status}"
            return True if wanted <= ready & well else None

        try:
            await until(look, f"{sorted(wanted)} being well")
        except AssertionError as error:
            error.add_note(seen)
            raise

    async def create(self, name: str, on: str) -> VirtualMachine:
        """Start a VM there that counts on its disk, is restarted elsewhere, and is watched."""
        disk = DiskDevice(source_file=_IMAGE, source_format=DiskDevice.SOURCE_FORMAT_RAW, format=DiskDevice.RAW)
        spec = VmSpec(
            cpu=CpuConfig(cores=1),
            memory=MemoryConfig(size_mib=MEMORY_MIB),
            disks=[disk],
            ha_policy=HaPolicy(auto_restart=True, condition=HaPolicy.ALWAYS),
        )
        request = api.CreateVMRequest(name=name, spec=spec, node_id=self.node_ids[on], start_on_create=True)
        vm = await self.plane.vms.CreateVM(request, timeout=DEADLINE_S)
        (image,) = (self.storage / vm.id).glob("*.raw")
        self.witness.watch(vm.id, image)
        await self.witness.counts_on(vm.id, on)
        return vm

    async def get(self, vm: VirtualMachine) -> VirtualMachine:
        """Read the record of a VM."""
        return await self.plane.vms.GetVM(api.GetVMRequest(id=vm.id), timeout=CALL_S)

    async def until_protected(self, vms: Sequence[VirtualMachine]) -> None:
        """Wait until it is on record of each VM that its host ends it with its lease."""

        async def look() -> bool | None:
            found = [await self.get(vm) for vm in vms]
            return True if all(vm.status.is_protected for vm in found) else None

        await until(look, "VMs being protected")

    async def host_of(self, vm: VirtualMachine) -> HaHost:
        """Say where a VM is recorded to be."""
        return self.hosts[self.hostname((await self.get(vm)).status.node_id)]

    async def fences(self, name: str = "") -> list[ha_api.Fence]:
        """Read fences, newest first, of one host or all."""
        node_id = self.node_ids[name] if name else ""
        answer = await self.plane.ha.ListFences(ha_api.ListFencesRequest(node_id=node_id), timeout=CALL_S)
        return list(answer.fences)

    async def failovers(self, vm: VirtualMachine) -> list[Operation]:
        """Read the operations that started a VM elsewhere, newest first."""
        request = ListOperationsRequest(resource_id=vm.id, kinds=["vm.failover"])
        return list((await self.plane.operations.ListOperations(request, timeout=CALL_S)).operations)

    async def until_running_off(self, vm: VirtualMachine, name: str) -> tuple[HaHost, float]:
        """Wait until a VM runs elsewhere by its record and by what its guest says; returns where, and since when."""
        began_s = time.monotonic()

        async def look() -> HaHost | None:
            found = await self.get(vm)
            there = self.hostname(found.status.node_id) if found.status.node_id else name
            return self.hosts[there] if there != name and found.status.state == VmStatus.RUNNING else None

        there = await until(look, f"{vm.name} running elsewhere than on {name}")
        recorded_s = time.monotonic()
        await self.witness.counts_on(vm.id, there.name)
        booted_s = self.witness.boot_s(vm.id, there.name, began_s - 1)
        return there, max(recorded_s, booted_s or recorded_s)


@asynccontextmanager
async def ha_cluster(
    directory: Path,
    settings: HighAvailabilitySettings = QUICK,
    *,
    member_count: int = 1,
    plane_count: int = 2,
    power: type[PowerFront] | None = None,
    operation_lease_s: float = 2,
    program: str = "controlplane",
    environment: Mapping[str, str] | None = None,
    left_alone: Collection[str] = (),
) -> AsyncIterator[HaCluster]:
    """Run everything; skips the test where that cannot be.

    Args:
        member_count: how many servers of etcd.
        plane_count: how many control planes.
        power: the controller that each host has, if it has one.
        operation_lease_s: after which an operation is carried on by another control plane.
        program, environment: as `Plane` has them.
        left_alone: names of hosts that do not end their VMs themselves.
    """
    require_etcd()
    storage = directory / "images"
    storage.mkdir(parents=True)
    serial_guests.write_disk(storage / _IMAGE, serial_guests.DISK_COUNTER)
    async with AsyncExitStack() as stack:
        database = new_server()
        stack.callback(database.remove)
        database.create()
        database.start()
        database.create_database()
        hosts = await stack.enter_async_context(migration_hosts(directory / "hosts", 3))
        fabric = hosts[0].fabric_namespace
        run_tool("ip", "-n", fabric, "link", "set", "lo", "up")
        run_tool("ip", "-n", fabric, "address", "add", f"{PLANES_ADDRESS}/24", "dev", "fab0")
        etcd = EtcdCluster(directory, member_count, namespace=fabric)
        stack.callback(etcd.stop)
        etcd.start()
        doors = stack.enter_context(doors_to(fabric))
        controllers = _controllers(stack, directory, hosts, power) if power else {}
        more = {
            "operations": {"lease_s": operation_lease_s},
            "ha": settings.model_dump(mode="json", exclude_unset=True),
            **(_power_settings(directory, controllers) if power else {}),
        }
        planes = _planes(directory, fabric, plane_count, etcd, database, doors, more)
        for plane in planes:
            plane.program, plane.environment = program, dict(environment or {})
            stack.push_async_callback(plane.stop)
        for plane in planes:
            await plane.start()
        addresses = ",".join(plane.ports.hosts for plane in planes)
        named = {
            name: HaHost(name, host, directory / name[-1], storage, addresses)
            for name, host in zip(_NAMES, hosts, strict=True)
        }
        for name in left_alone:
            named[name].fences_itself = False
        witness = HaWitness({name: host.watched for name, host in named.items()})
        cluster = HaCluster(named, planes, etcd, database, storage, witness, controllers)
        for host in named.values():
            stack.push_async_callback(_end, host)
            await planes[0].entry.admit(host.data_dir, host.name)
        await asyncio.gather(*(host.boot() for host in named.values()))
        await cluster.until_well()
        with witness.watching():
            yield cluster


def _controllers(
    stack: AsyncExitStack, directory: Path, hosts: Sequence[MigrationHost], power: type[PowerFront]
) -> dict[str, PowerFront]:
    """Run one for each host, in the control planes' network."""
    found: dict[str, PowerFront] = {}
    for number, (name, host) in enumerate(zip(_NAMES, hosts, strict=True)):
        found[name] = power(name, PLANES_ADDRESS, POWER_PORT + number, directory / f"controller-{name}")
        stack.callback(found[name].kill)
        found[name].start(host.namespace, host.fabric_namespace)
    return found


def _power_settings(directory: Path, controllers: Mapping[str, PowerFront]) -> Mapping[str, Any]:
    path = directory / "fencing.yaml"
    path.write_text(yaml.safe_dump({"controllers": [each.entry for each in controllers.values()]}))
    return {"power": {"devices_path": str(path)}}


def _planes(
    directory: Path,
    fabric: str,
    count: int,
    etcd: EtcdCluster,
    database: PostgresqlServer,
    doors: Doors,
    more: Mapping[str, Any],
) -> list[Plane]:
    """Make control planes, not started, and an administrator in their database; all have the same key of secrets."""
    all_ports = [Ports(number) for number in range(count)]
    token = prepare(database.url())
    planes = []
    for ports in all_ports:
        own = directory / f"plane-{ports.number}"
        closed = security_settings(own, directory / "secret.key", hosts_listen=ports.hosts)
        closed["security"] |= {
            "name": own.name,
            "names": ["127.0.0.1", PLANES_ADDRESS],
            "addresses": [each.people for each in all_ports],
            "hosts_addresses": [each.hosts for each in all_ports],
        }
        settings = {
            "scheduler": {"cpu_overcommit_ratio": 16.0, "reserved_cores": 0, "reserved_memory_mib": 0},
            "coordination": {"backend": "etcd", "endpoints": etcd.endpoints, "session_ttl_s": 2},
            **closed,
            **more,
        }
        doors_of = doors.open(ports.people), doors.open(ports.http)
        planes.append(Plane(own, fabric, ports, settings, database.url(), token, *doors_of))
    return planes


async def _end(host: HaHost) -> None:
    with suppress(subprocess.CalledProcessError):
        await asyncio.to_thread(kill_all_in, host.host.namespace)
    await host.let_go()
