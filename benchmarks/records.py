"""A database with many VMs, made without a host: the rows are what the services would have written."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.state.factory import create_store, migrate
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo, NodeRole, NodeSpec, SchedulingConfig
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, NetworkInterface, VmSpec

_BATCH = 250
_GIB = 2**30


async def insert_records(database: Path, vm_count: int, node_count: int = 1) -> list[str]:
    """Migrate a new database and insert VMs with a disk and a network card each; returns their ids.

    They are placed evenly on nodes that never report, so no daemon corrects them.
    """
    url = f"sqlite:///{database}"
    await asyncio.to_thread(database.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(migrate, url)
    store = create_store(url)
    await store.open()
    try:
        nodes = [
            replace(node, phase=Phase.NOT_READY, hostname=f"absent-{number}")
            for number, node in enumerate(ready_nodes(node_count, vcpus=2 * vm_count))
        ]
        await store.run(partial(_insert_nodes, nodes))
        vms = [_vm(number, nodes[number % node_count]) for number in range(vm_count)]
        for first in range(0, vm_count, _BATCH):
            await store.run(partial(_insert_vms, vms[first : first + _BATCH]))
    finally:
        await store.close()
    return [vm.id for vm in vms]


async def insert_nodes(database: Path, count: int) -> list[str]:
    """Migrate a new database and insert nodes without VMs, READY though nobody heard them yet; returns their ids."""
    url = f"sqlite:///{database}"
    await asyncio.to_thread(database.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(migrate, url)
    store = create_store(url)
    await store.open()
    try:
        nodes = ready_nodes(count, vcpus=128)
        for first in range(0, count, _BATCH):
            await store.run(partial(_insert_nodes, nodes[first : first + _BATCH]))
    finally:
        await store.close()
    return [node.id for node in nodes]


async def _insert_nodes(nodes: list[Node], tx: Transaction) -> None:
    for node in nodes:
        await tx.insert_node(node)


async def _insert_vms(vms: list[Vm], tx: Transaction) -> None:
    for vm in vms:
        await tx.insert_vm(vm)


def ready_nodes(count: int, *, vcpus: int) -> list[Node]:
    """Make nodes that take VMs, with what a real one says of itself; there is a GiB of memory for each vCPU."""
    now = datetime.now(UTC)
    spec = NodeSpec(
        cpu=CpuInfo(model="EPYC", sockets=2, cores_per_socket=32, threads_per_core=2, total_threads=128),
        memory=MemoryInfo(total_bytes=512 * _GIB),
        role=NodeRole(compute=True),
        scheduling=SchedulingConfig(schedulable=True),
    )
    return [
        Node(
            id=str(uuid.uuid4()),
            hostname=f"host-{number}",
            management_ip="192.0.2.1",
            agent_endpoint="192.0.2.1:9090",
            spec=spec,
            phase=Phase.READY,
            capacity=Capacity(vcpus, vcpus * _GIB),
            created_at=now + timedelta(milliseconds=number),
            updated_at=now,
            labels={"zone": str(number % 3), "rack": str(number // 20)},
        )
        for number in range(count)
    ]


def _vm(number: int, node: Node) -> Vm:
    at = node.created_at + timedelta(milliseconds=number)
    spec = VmSpec(
        cpu=CpuConfig(cores=2),
        memory=MemoryConfig(size_mib=2048),
        disks=[DiskDevice(id=str(uuid.uuid4()), size_gib=20, bus=DiskDevice.VIRTIO_BLK)],
        nics=[NetworkInterface(id=str(uuid.uuid4()), mac_address=f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}")],
    )
    return Vm(
        id=str(uuid.uuid4()),
        name=f"vm-{number}",
        project_id=DEFAULT_PROJECT_ID,
        spec=spec,
        node_id=node.id,
        power_state=PowerState.STOPPED,
        created_at=at,
        updated_at=at,
        state_changed_at=at,
        last_seen_at=at,
        labels={"environment": "benchmark", "tier": str(number % 3)},
        description="one of many",
    )
