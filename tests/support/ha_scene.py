"""What tests of the manager of high availability put into the database, bring about and look at."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.domain.event import EventFilter
from controlplane.domain.fencing import Fence, NodeGuard
from controlplane.domain.node import Node
from controlplane.domain.vm import PowerState, Vm
from controlplane.ha.model import (
    NodeSeen,
    Observed,
    OpenAFence,
    ProofMethod,
    ProveFence,
)
from limiquantix.compute.v1.node_pb2 import StorageDomain
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from tests.support.builders import make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane

LATER = datetime(2030, 1, 1, tzinfo=UTC)
"""As if other processes went on recording heartbeats, beyond all that a test does."""


def seen_node(observed: Observed, node_id: str) -> NodeSeen:
    return next(node for node in observed.nodes if node.id == node_id)


async def fenced(plane: HaPlane, node_id: str) -> Fence:
    """Have a node fenced, and the fence seen."""
    await plane.round(OpenAFence(node_id, "it was silent"))
    await plane.round()
    return await plane.the_fence()


async def proven(plane: HaPlane, node_id: str) -> Fence:
    fence = await fenced(plane, node_id)
    await plane.round(ProveFence(node_id, fence.id, ProofMethod.LEASE_EXPIRED, "13.6 s passed"))
    return await plane.the_fence()


async def note_guards(plane: HaPlane, *guards: NodeGuard) -> None:
    await plane.world.store.run(lambda tx: tx.note_guards(guards))


async def add_node(world: World, *, vcpus: int = 16, last_heartbeat_at: datetime = LATER) -> Node:
    node = make_node(vcpus=vcpus, last_heartbeat_at=last_heartbeat_at)
    node.spec.storage_domains.append(StorageDomain(id="shared"))
    await world.store.run(lambda tx: tx.insert_node(node))
    return node


async def add_vm(world: World, node_id: str) -> Vm:
    spec = VmSpec(
        cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=HaPolicy(auto_restart=True, priority=7)
    )
    vm = make_vm(
        spec=spec,
        node_id=node_id,
        power_state=PowerState.RUNNING,
        wanted_state=PowerState.RUNNING,
        is_protected=True,
    )
    await world.store.run(lambda tx: tx.insert_vm(vm))
    return vm


async def event_types(plane: HaPlane) -> set[str]:
    entries = await plane.world.store.read(lambda tx: tx.newest_events(EventFilter(), 100))
    return {entry.event.type for entry in entries}
