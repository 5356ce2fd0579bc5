"""A database with many VMs, made without a host: the rows are what the services would have written."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.state.factory import create_store, migrate
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import NodeSpec
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, NetworkInterface, VmSpec

_BATCH = 250
_GIB = 2**30


async def insert_records(database: Path, vm_count: int) -> list[str]:
    """Migrate a new database and insert VMs with a disk and a network card each; returns their ids.

    They are placed on a node that never reports, so no daemon corrects them.
    """
    url = f"sqlite:///{database}"
    await asyncio.to_thread(database.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(migrate, url)
    store = create_store(url)
    await store.open()
    try:
        node = _absent_node(vm_count)
        await store.run(lambda tx: tx.insert_node(node))
        vms = [_vm(number, node) for number in range(vm_count)]
        for first in range(0, vm_count, _BATCH):
            await _insert(store.run, vms[first : first + _BATCH])
    finally:
        await store.close()
    return [vm.id for vm in vms]


async def _insert(run, vms: list[Vm]) -> None:  # type: ignore[no-untyped-def]
    async def work(tx: Transaction) -> None:
        for vm in vms:
            await tx.insert_vm(vm)

    await run(work)


def _absent_node(vm_count: int) -> Node:
    now = datetime.now(UTC)
    return Node(
        id=str(uuid.uuid4()),
        hostname="absent",
        management_ip="192.0.2.1",
        agent_endpoint="192.0.2.1:9090",
        spec=NodeSpec(),
        phase=Phase.NOT_READY,
        capacity=Capacity(2 * vm_count, 2 * vm_count * _GIB),
        created_at=now,
        updated_at=now,
    )


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
