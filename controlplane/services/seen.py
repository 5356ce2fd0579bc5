"""Nodes and VMs as a transaction sees them, reading of what is known already only what may have changed.

All that placement reads of a node, but for what is claimed there, changes together with the node's version. So a
process reads it once, and then, for each decision, only versions and claims: of 500 nodes that is most of the cost. Of
a VM all changes together with its version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.domain.node import Capacity, Node, NodeClaims
from controlplane.domain.placement import StandingVm, VmVersion
from controlplane.domain.placement_rules import named_vm_ids, vm_selectors
from controlplane.domain.vm import Vm
from controlplane.scheduler.snapshot import Candidate, candidate_of
from controlplane.state.interface import Transaction


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as a transaction read it, and what placement makes of it."""

    node: Node
    candidate: Candidate

    def is_as_in(self, claims: NodeClaims) -> bool:
        """Whether nothing has changed of the node but, perhaps, what is claimed there."""
        return self.node.version == claims.version

    def with_claims(self, claims: NodeClaims) -> SeenNode:
        """Return it with what is claimed there now."""
        allocated = self.candidate.allocated
        if allocated.vcpus == claims.vcpus and allocated.memory_bytes == claims.memory_bytes:
            return self
        return replace(self, candidate=self.candidate.with_allocated(Capacity(claims.vcpus, claims.memory_bytes)))

    @property
    def current(self) -> Node:
        """The node with what is claimed there now."""
        allocated = self.candidate.allocated
        return self.node if self.node.allocated == allocated else replace(self.node, allocated=allocated)


SeenNodes = Mapping[str, SeenNode]
"""By id; never changed once it is made, since transactions read it in other threads."""


async def look(tx: Transaction, known: SeenNodes) -> SeenNodes:
    """See all nodes as they are now, reading of those that are known only what is claimed there."""
    return await _with_claims(tx, known, await tx.node_claims())


@dataclass(frozen=True, slots=True)
class NodesAtOnce:
    """All nodes as one look found them, for whoever looks again and again while next to nothing changes."""

    nodes: SeenNodes = field(default_factory=dict)
    _claims: Sequence[NodeClaims] = ()

    async def look(self, tx: Transaction) -> NodesAtOnce:
        """See them as they are now; the very same object if nothing has changed."""
        claims = await tx.node_claims()
        if claims == self._claims:
            return self
        return NodesAtOnce(await _with_claims(tx, self.nodes, claims), claims)


@dataclass(slots=True)
class NodesKept:
    """What all those of a process share that look at all nodes again and again: whoever looked last.

    Owned by the event loop's thread. Only what a transaction read that was then committed is kept.
    """

    at_once: NodesAtOnce = field(default_factory=NodesAtOnce)


async def _with_claims(tx: Transaction, known: SeenNodes, found: Sequence[NodeClaims]) -> SeenNodes:
    seen: dict[str, SeenNode] = {}
    unknown: list[str] = []
    for claims in found:
        node = known.get(claims.node_id)
        if node is not None and node.is_as_in(claims):
            seen[claims.node_id] = node.with_claims(claims)
        else:
            unknown.append(claims.node_id)
    if unknown:
        seen.update({node.id: SeenNode(node, candidate_of(node)) for node in await tx.nodes(unknown)})
    return seen


class SeenVms:
    """The VMs that one transaction reads.

    Args:
        known: VMs by id, as earlier transactions read them; never changed.
    """

    def __init__(self, tx: Transaction, known: Mapping[str, StandingVm]) -> None:
        self._tx = tx
        self._known = known
        self.new: dict[str, StandingVm] = {}
        """Those that were not known, or not as they are now."""

    async def of(self, versions: Collection[VmVersion]) -> list[StandingVm]:
        """Give the VMs of these versions."""
        found: list[StandingVm] = []
        unknown: list[str] = []
        for each in versions:
            vm = self.new.get(each.vm_id) or self._known.get(each.vm_id)
            if vm is not None and vm.version == each.version:
                found.append(vm)
            else:
                unknown.append(each.vm_id)
        if unknown:
            read = await self._tx.standing_vms(unknown)
            self.new.update((vm.id, vm) for vm in read)
            found += read
        return found

    async def on_node(self, node_id: str) -> list[StandingVm]:
        """Those on a node, and those on their way there."""
        return await self.of(await self._tx.vm_versions(node_id=node_id))

    async def of_project(self, project_id: str = "") -> list[StandingVm]:
        """All that are placed, of a project or of all."""
        return await self.of(await self._tx.vm_versions(project_id=project_id))

    async def reaching_far(self, project_id: str = "") -> list[StandingVm]:
        """Those whose rules keep others out of more than their host, of a project or of all.

        One that is on its way is given as another one, without a size, where it goes.
        """
        versions = await self._tx.vm_versions_reaching_far(project_id)
        by_id = {vm.id: vm for vm in await self.of({each.vm_id: each for each in versions}.values())}
        found = list(by_id.values())
        for each in versions:
            vm = by_id.get(each.vm_id)
            if vm is not None and vm.node_id != each.node_id:
                found.append(replace(vm, id=f"{vm.id} on its way", node_id=each.node_id, vcpus=0, memory_bytes=0))
        return found

    async def meant_by(self, vm: Vm) -> list[StandingVm]:
        """Those that a VM's rules are about, but for itself; reads nothing for a VM without such rules."""
        policy = vm.spec.placement
        selectors, ids = vm_selectors(policy, vm.labels), named_vm_ids(policy)
        if not selectors and not ids:
            return []
        versions = await self._tx.vm_versions_selected(vm.project_id, [dict(each) for each in selectors], ids)
        return [each for each in await self.of(versions) if each.id != vm.id]
