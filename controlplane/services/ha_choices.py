"""Where VMs of dead nodes would go: the scheduler's word, from one snapshot, for decisions that must not wait.

What is chosen is taken into account by what is chosen after it. The operation that carries a choice out decides again,
by what the database has then: this only tells whether asking for it is worth while.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.domain.migration import share_storage
from controlplane.domain.placement import StandingVm
from controlplane.domain.vm import Vm
from controlplane.ha.model import Choice, Choose
from controlplane.scheduler.decide import decide
from controlplane.scheduler.neighbours import PlacedVm, placed_vm_of
from controlplane.scheduler.plan import NO_NODES, Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.snapshot import PlacementRequest
from controlplane.scheduler.view import ClusterView
from controlplane.services.placement import request_of
from controlplane.services.seen import SeenNodes, SeenVms
from controlplane.state.interface import Transaction


@dataclass(frozen=True, slots=True)
class Scene:
    """Nodes, all VMs that are placed, and what is asked for, by VM."""

    nodes: SeenNodes
    standing: Sequence[StandingVm]
    requests: Mapping[str, PlacementRequest]
    home_of: Mapping[str, str]
    """Node of each VM that is asked for."""


async def read_scene(tx: Transaction, nodes: SeenNodes, vms: Sequence[Vm], known: Mapping[str, StandingVm]) -> Scene:
    """Read what choosing for these VMs needs: versions of all, those VMs that are not known, and whom rules mean."""
    standing = await SeenVms(tx, known).of_project()
    requests = {vm.id: await request_of(tx, vm) for vm in vms}
    return Scene(nodes, standing, requests, {vm.id: vm.node_id for vm in vms})


def chooser(scene: Scene | None, config: SchedulerConfig, down: Collection[str]) -> Choose:
    """Make what the core asks. Without a scene nothing is to be chosen.

    Args:
        down: nodes that are never chosen, whatever else is excluded.
    """
    if scene is None:
        return lambda vm_id, excluded: Choice(reason="nothing was to be restarted when the nodes were looked at")
    return Chooser.of(scene, config, down).choose


@dataclass(slots=True)
class Chooser:
    """Chooses one after the other. Room that is kept for VMs of failed nodes is theirs, so it is not looked at.

    Attributes:
        view: without nodes that are down, and with what was chosen so far.
    """

    scene: Scene
    config: SchedulerConfig
    view: ClusterView
    _moved: dict[str, PlacedVm] = field(default_factory=dict)
    """VMs that were chosen for, as they stood before."""
    _apart: dict[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def of(scene: Scene, config: SchedulerConfig, down: Collection[str]) -> Chooser:
        """Set up the view, which takes some 10 us for each node and VM."""
        view = ClusterView(
            [each.candidate for each in scene.nodes.values()],
            [placed_vm_of(vm) for vm in scene.standing if vm.node_id in scene.nodes],
        )
        for node_id in scene.nodes.keys() & set(down):
            view.remove_node(node_id)
        return Chooser(scene, config, view)

    def choose(self, vm_id: str, excluded: frozenset[str]) -> Choice:
        """Choose a node for a VM; it stands there from then on."""
        request = self.scene.requests.get(vm_id)
        if request is None:
            return Choice(reason="it was not to be restarted when the nodes were looked at")
        if self.view.vm(vm_id) is not None:
            stood = self.view.unplace(vm_id)
            self._moved.setdefault(vm_id, stood)
        home = self.scene.home_of[vm_id]
        apart = self._apart_from(home)
        hidden = (excluded | apart | {home}) - request.anti_affinity_nodes
        # As if it must keep away from VMs there, which costs less than to take out the nodes for a moment.
        outcome = decide(
            self.view, replace(request, anti_affinity_nodes=request.anti_affinity_nodes | hidden), self.config
        )
        if not isinstance(outcome, Placement):
            return Choice(reason=self._reason(request, hidden, apart))
        self.view.place(PlacedVm(outcome.node_id, request))
        return Choice(outcome.node_id)

    def take_back(self) -> None:
        """Put every VM back to where it stood before anything was chosen."""
        for vm_id, stood in self._moved.items():
            if self.view.vm(vm_id) is not None:
                self.view.unplace(vm_id)
            self.view.restore(stood)
        self._moved.clear()

    def _reason(self, request: PlacementRequest, hidden: Collection[str], apart: Collection[str]) -> str:
        """Say why no node takes a VM, those left out that are never asked."""
        out = [each for node_id in hidden if (each := self.view.candidate(node_id)) is not None]
        for each in out:
            self.view.remove_node(each.id)
        try:
            outcome = decide(self.view, request, self.config)
            # Reasons are worked out when they are asked for, so while the nodes are hidden.
            reason = outcome.summary if isinstance(outcome, Unplaced) else "no node fits"
            reason = "there is no other node to ask" if reason == NO_NODES else reason
        finally:
            for each in out:
                self.view.upsert_node(each)
        far = sum(each.id in apart for each in out)
        if not far:
            return reason
        return f"{reason}; {far} {'node does' if far == 1 else 'nodes do'} not reach its disks"

    def _apart_from(self, home: str) -> frozenset[str]:
        """Nodes that do not have all the storage of a VM's node."""
        if home not in self._apart:
            source = self.scene.nodes.get(home)
            self._apart[home] = frozenset(
                node_id
                for node_id, each in self.scene.nodes.items()
                if source is not None and node_id != home and not share_storage(source.node, each.node)
            )
        return self._apart[home]
