"""What is there after the storm: in the database, at the hypervisors, in the image directories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lxml import etree

from controlplane.daemons.node_spec import REPORT_OF_STATE
from controlplane.domain.event import EventFilter, LoggedEvent
from controlplane.domain.node import Node as NodeRecord
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter
from controlplane.domain.query import Cursor
from controlplane.domain.vm import Vm
from controlplane.reconcile.reports import expected_hash
from controlplane.state.interface import Store, Transaction
from hypervisor import types as hv
from hypervisor.mock import store as mock_store
from hypervisor.mock.store import MockVm
from limiquantix.inventory import state_hash
from tests.support.failure_harness_checks import RECORDED_STATES, Everything
from tests.support.failure_harness_units import Node
from tests.support.private_libvirt_host import virsh

ReadDomains = Callable[[Node], Awaitable[Mapping[str, MockVm]]]

_MAX_EVENTS = 100_000
_NOT_OF_A_VM = "templates"


async def mock_domains(node: Node) -> Mapping[str, MockVm]:
    """Read the mock's state file."""
    return await asyncio.to_thread(mock_store.load, node.data_dir / "mock-vms.json")


def libvirt_domains(uri: str) -> ReadDomains:
    """Ask libvirt itself."""

    async def read(node: Node) -> Mapping[str, MockVm]:
        domains = {}
        for vm_id in (await virsh(uri, "list", "--all", "--uuid")).split():
            state = await virsh(uri, "domstate", vm_id)
            document = await virsh(uri, "dumpxml", "--inactive", vm_id)
            domains[vm_id] = _domain(vm_id, document, _LIBVIRT_STATES.get(state, hv.PowerState.UNKNOWN))
        return domains

    return read


_LIBVIRT_STATES = {
    "running": hv.PowerState.RUNNING,
    "paused": hv.PowerState.PAUSED,
    "shut off": hv.PowerState.STOPPED,
    "crashed": hv.PowerState.CRASHED,
}


def _domain(vm_id: str, document: str, state: hv.PowerState) -> MockVm:
    root = etree.fromstring(document.encode())
    paths = [Path(source.get("file", "")) for source in root.findall("devices/disk[@device='disk']/source")]
    disks = tuple(hv.DiskConfig(path.stem, path) for path in paths)
    vcpus, memory_kib = int(root.findtext("vcpu") or 0), int(root.findtext("memory") or 0)
    config = hv.VmConfig(vm_id, root.findtext("name") or "", hv.CpuTopology(vcpus), memory_kib // 1024, disks=disks)
    return MockVm(config, state)


async def survey(store: Store, nodes: list[Node], read_domains: ReadDomains) -> tuple[Everything, list[str]]:
    """Look at everything; also returns what is wrong with which VM is where."""
    domains: dict[str, MockVm] = {}
    images: dict[str, list[str]] = {}
    found: list[str] = []
    records, rows, departed, events, hashes = await store.read(_recorded)
    by_hostname = {record.hostname: record for record in records}
    differs = False
    for node in nodes:
        here = dict(await read_domains(node))
        found += [f"VM {vm_id} is on two hosts" for vm_id in here.keys() & domains.keys()]
        node_id = by_hostname[node.hostname].id
        found += [
            f"VM {vm_id} is on another host" for vm_id in here.keys() & rows.keys() if rows[vm_id].node_id != node_id
        ]
        states = {vm_id: REPORT_OF_STATE[RECORDED_STATES[domain.state]] for vm_id, domain in here.items()}
        differs |= state_hash(states) != hashes[node_id]
        domains |= here
        images |= await asyncio.to_thread(_images, node.images_dir)
    operations = await _operations(store)
    return Everything(records, rows, domains, images, departed, operations, events, differs), found


def _images(directory: Path) -> dict[str, list[str]]:
    return {
        path.name: sorted(image.name for image in path.iterdir())
        for path in directory.iterdir()
        if path.is_dir() and path.name != _NOT_OF_A_VM  # a file: the storage's own id
    }


async def _recorded(
    tx: Transaction,
) -> tuple[list[NodeRecord], dict[str, Vm], dict[str, DepartedVm], list[LoggedEvent], dict[str, str]]:
    nodes = list(await tx.all_nodes())
    rows = {vm.id: vm for node in nodes for vm in await tx.vms_on_node(node.id)}
    departed = {vm_id: each for node in nodes for vm_id, each in (await tx.departed(node.id, ())).items()}
    hashes = {node.id: await expected_hash(tx, node.id) for node in nodes}
    return nodes, rows, departed, list(await tx.newest_events(EventFilter(), _MAX_EVENTS)), hashes


async def _operations(store: Store) -> list[Operation]:
    found: list[Operation] = []
    after: Cursor | None = None
    while True:
        page = await store.read(lambda tx, after=after: tx.list_operations(OperationFilter(), after, 500))  # type: ignore[misc]
        found += page.items
        after = page.next_cursor
        if after is None:
            return found
