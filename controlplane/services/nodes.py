"""Nodes: registration and reading. What nodes say afterwards is in `heartbeats` and `host_reports`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from controlplane.domain import errors, machine_errors, node_life
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import CapacityPolicy, Heartbeat, Node, Phase, capacity_of_node
from controlplane.domain.query import Cursor, NodeFilter
from controlplane.services.hearing import Hearing
from controlplane.services.page_tokens import decode_cursor, page_limit
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import GpuInfo, HostDevice, NodeSpec

_log = structlog.get_logger(__name__)

DEFAULT_AGENT_PORT = 9090

_DISPLAY_CLASS = "03"
"""Base class of display controllers. Source: PCI Code and ID Assignment Specification."""


@dataclass(frozen=True, slots=True)
class NodePage:
    """One page of nodes with the ids of the VMs placed on each."""

    nodes: Sequence[Node]
    vm_ids: dict[str, list[str]]
    next_cursor: Cursor | None
    total_count: int


@dataclass(frozen=True, slots=True)
class NodeService:
    """The use cases of nodes."""

    store: Store
    capacity_policy: CapacityPolicy
    now: Callable[[], datetime]
    hearing: Hearing | None = None
    """What this process heard itself: newer than what is recorded, which follows later."""

    async def register(self, request: api.RegisterNodeRequest, node_id: str = "") -> Node:
        """Take a host in, or take it back: a known host name is the same node, with the same id. Idempotent.

        A node that comes back keeps the phase, labels and scheduling an operator gave it; facts about the host are
        replaced by those it reports.

        Args:
            node_id: whose certificate the host showed; "" where hosts show none.

        Raises:
            PermissionDenied: the name is that of another node.
        """
        node = await self.store.run(lambda tx: self._register(tx, request, node_id))
        _log.info("node_registered", node_id=node.id, hostname=node.hostname, endpoint=node.agent_endpoint)
        return node

    async def _register(self, tx: Transaction, request: api.RegisterNodeRequest, node_id: str) -> Node:
        now = self.now()
        endpoint = request.agent_endpoint or _default_endpoint(request.management_ip)
        known = await tx.get_node_by_hostname(request.hostname)
        if known is not None and node_id not in ("", known.id):
            raise machine_errors.not_of_this_node("RegisterNode", f"hostname {request.hostname}", node_id)
        if known is None:
            spec = self._new_spec(request, now)
            machine = await tx.get_machine(node_id) if node_id else None
            node = Node(
                id=node_id or str(uuid.uuid4()),
                hostname=request.hostname,
                management_ip=request.management_ip,
                agent_endpoint=endpoint,
                spec=spec,
                phase=Phase.READY,
                capacity=capacity_of_node(spec, self.capacity_policy),
                created_at=now,
                updated_at=now,
                labels={**request.labels, **(machine.labels if machine is not None else {})},
                system=request.system,
                last_heartbeat_at=now,
            )
            await tx.insert_node(node, Event(EventType.NODE_REGISTERED, f"node {node.hostname} registered"))
            return node
        spec = _with_facts(known.spec, request)
        # It lives: without this, the next look for silent nodes would go by its last heartbeat before it went away.
        await tx.record_heartbeats([Heartbeat(known.id, now, known.usage)])
        is_fenced = any(fence.node_id == known.id for fence in await tx.current_fences())
        back = Phase.NOT_READY if is_fenced else Phase.READY  # a fenced one becomes READY when its fence is over
        return await tx.update_node(
            replace(
                known,
                management_ip=request.management_ip,
                agent_endpoint=endpoint,
                spec=spec,
                phase=known.phase if known.phase in node_life.CORDONED_PHASES else back,
                capacity=capacity_of_node(spec, self.capacity_policy),
                labels={**request.labels, **known.labels},
                system=request.system,
                error_message="",
                updated_at=now,
            ),
            Event(EventType.NODE_REGISTERED, f"node {known.hostname} registered again"),
        )

    @staticmethod
    def _new_spec(request: api.RegisterNodeRequest, now: datetime) -> NodeSpec:
        spec = _with_facts(NodeSpec(), request)
        spec.role.CopyFrom(request.role)
        if not request.HasField("role"):
            spec.role.compute = True
        spec.scheduling.schedulable = True
        spec.scheduling.taints.extend(node_life.stamped(request.taints, (), now))
        return spec

    async def get(self, node_id: str) -> tuple[Node, list[str]]:
        """Read one node and the ids of the VMs placed on it.

        Raises:
            NotFound: there is none of that id.
        """

        async def read(tx: Transaction) -> tuple[Node, list[str]]:
            node = await tx.get_node(node_id)
            if node is None:
                raise errors.node_not_found(node_id)
            return node, (await tx.vm_ids_by_node([node_id])).get(node_id, [])

        node, vm_ids = await self.store.read(read)
        return self._as_heard(node), vm_ids

    async def list(self, request: api.ListNodesRequest) -> NodePage:
        """Read one page of nodes, oldest first.

        Raises:
            InvalidArgument: the page token belongs to another query.
        """
        wanted = NodeFilter(
            labels=dict(request.labels),
            phases=frozenset(request.phases),
            compute_only=request.compute_only,
            storage_only=request.storage_only,
            control_plane_only=request.control_plane_only,
        )
        after = decode_cursor(request.page_token, request)

        async def read(tx: Transaction) -> NodePage:
            page = await tx.list_nodes(wanted, after, page_limit(request.page_size))
            vm_ids = await tx.vm_ids_by_node([node.id for node in page.items])
            return NodePage(page.items, vm_ids, page.next_cursor, page.total_count)

        page = await self.store.read(read)
        return replace(page, nodes=[self._as_heard(node) for node in page.nodes])

    def _as_heard(self, node: Node) -> Node:
        return node if self.hearing is None else self.hearing.newest(node)


def _default_endpoint(management_ip: str) -> str:
    host = f"[{management_ip}]" if ":" in management_ip else management_ip
    return f"{host}:{DEFAULT_AGENT_PORT}"


def _with_facts(spec: NodeSpec, request: api.RegisterNodeRequest) -> NodeSpec:
    """Copy a node's spec with what the host reports of itself."""
    new = NodeSpec()
    new.CopyFrom(spec)
    new.cpu.CopyFrom(request.cpu_info)
    new.memory.CopyFrom(request.memory_info)
    for name, devices in (
        ("storage", request.storage_devices),
        ("network", request.network_devices),
        ("devices", request.devices),
        ("gpus", _gpus(request)),
        ("storage_domains", request.storage_domains),
        ("bridges", request.bridges),
        ("host_networks", request.host_networks),
    ):
        new.ClearField(name)  # type: ignore[arg-type]
        getattr(new, name).extend(devices)
    new.machine.CopyFrom(request.machine)
    if not request.HasField("machine"):
        new.ClearField("machine")
    new.supports_live_migration = request.supports_live_migration
    new.migration_address = request.migration_address
    new.agent.version = request.system.agent_version
    return new


def _gpus(request: api.RegisterNodeRequest) -> list[GpuInfo]:
    """Pick the graphics cards out of a host's devices."""
    return [
        GpuInfo(
            pci_address=device.address,
            vendor=device.vendor,
            model=device.product,
            vgpu_capable=bool(device.profiles),
            vgpu_profiles=device.profiles,
            usage=GpuInfo.PASSTHROUGH if device.used_by_vm_id else GpuInfo.AVAILABLE,
            assigned_vm_ids=[device.used_by_vm_id] if device.used_by_vm_id else [],
        )
        for device in request.devices
        if device.kind == HostDevice.PCI and device.class_code.startswith(_DISPLAY_CLASS)
    ]
