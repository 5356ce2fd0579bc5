"""What the manager of high availability has in memory, for people who ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controlplane.ha.model import Alerting, AlertOf, VmSeen, VmState
from controlplane.services.ha import NodeView, Waiting
from controlplane.services.ha_clock import clock_s
from controlplane.services.ha_manager import HaManager, Moment

_ABOUT_VMS = frozenset({AlertOf.VM_FITS_NOWHERE, AlertOf.VM_NOT_RESTARTED})


@dataclass(frozen=True, slots=True)
class ManagerView:
    """`HaView` of this process's manager."""

    manager: HaManager
    now: Callable[[], datetime]
    clock: Callable[[], float] = clock_s

    @property
    def is_leader(self) -> bool:
        """Whether this process decides."""
        return self.manager.is_leader

    @property
    def obstacle(self) -> str:
        """Why nothing can be decided; "" when it can, by whomever."""
        return self.manager.obstacle

    def nodes(self) -> Mapping[str, NodeView]:
        """What is thought of each node."""
        moment = self.manager.moment
        if moment is None:
            return {}
        return {node_id: NodeView(node.health, node.reason) for node_id, node in moment.state.nodes.items()}

    def waiting(self) -> Sequence[Waiting]:
        """VMs of lost nodes that do not run elsewhere yet, the most urgent first."""
        moment = self.manager.moment
        if moment is None:
            return []
        told = {
            effect.resource_id: effect.message
            for effect in moment.effects
            if isinstance(effect, Alerting) and effect.kind in _ABOUT_VMS
        }
        vms = [vm for vm in moment.observed.vms if vm.is_policy_restart]
        return [self._waiting(vm, moment, told.get(vm.id, "")) for vm in sorted(vms, key=lambda vm: -vm.priority)]

    def _waiting(self, vm: VmSeen, moment: Moment, told: str) -> Waiting:
        known = moment.state.vms.get(vm.id, VmState())
        if vm.is_busy:
            return Waiting(vm.id, "it is being started elsewhere", known.attempt_count)
        left_s = known.next_s - self.clock()
        next_at = self.now() + timedelta(seconds=left_s) if left_s > 0 else None
        waits_for = f"it waits for {known.waits_for}" if known.waits_for else ""
        reason = told or waits_for or ("it is its turn soon" if vm.proves_dead else "its node is not proven dead yet")
        return Waiting(vm.id, reason, known.attempt_count, next_at)
