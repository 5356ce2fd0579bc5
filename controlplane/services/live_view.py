"""The scheduler's view of the cluster, one for a process, kept up to date by what transactions read.

Transactions run in several threads, and each decides by what it has read itself. So the view is brought to exactly that
before a decision, which costs only what is different, and nobody else uses it meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from controlplane.domain.placement import StandingVm
from controlplane.scheduler.decide import decide
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.snapshot import PlacementRequest
from controlplane.scheduler.view import ClusterView, placed_vm_of
from controlplane.services.seen import SeenNode, SeenNodes


class LiveView:
    """Decides by a view that lives on; VMs are in it only for the decisions that they matter to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view = ClusterView()
        self._nodes: dict[str, SeenNode | None] = {}
        """As they are in the view; None for those whose claims a decision has touched."""

    def decide(
        self, seen: SeenNodes, vms: Sequence[StandingVm], request: PlacementRequest, config: SchedulerConfig
    ) -> Placement | Unplaced:
        """Choose a node.

        Args:
            seen: all nodes as the transaction read them.
            vms: those that rules of the request mean.
        """
        added = [placed_vm_of(vm) for vm in vms if vm.node_id in seen]
        with self._lock:
            self._follow(seen)
            for vm in added:
                self._view.add_vm(vm)
            try:
                return decide(self._view, request, config)
            finally:
                for vm in added:
                    self._view.unplace(vm.request.vm_id)
                    self._nodes[vm.node_id] = None  # its claim went with it

    def _follow(self, seen: SeenNodes) -> None:
        for node_id in self._nodes.keys() - seen.keys():
            self._view.forget_node(node_id)
            del self._nodes[node_id]
        for node_id, node in seen.items():
            if self._nodes.get(node_id) is not node:
                self._view.upsert_node(node.candidate)
                self._nodes[node_id] = node
