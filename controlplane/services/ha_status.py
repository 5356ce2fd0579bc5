"""How high availability stands: what is recorded, what this process heard, and what is thought by whoever decides.

Any process answers. One that does not decide has nothing but its own ears: it says so with each node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.domain import ha_documents
from controlplane.domain.documents import timestamp
from controlplane.domain.fencing import Fence, FenceState, HaSettings, Leadership, NodeGuard, lease_proves
from controlplane.domain.ha_times import HaTimes
from controlplane.domain.node import Node, Phase
from controlplane.domain.vm import Vm
from controlplane.ha.model import NodeHealth
from controlplane.power.interface import PowerControllers
from controlplane.services.ha import Forecast, Forecaster, HaView, NodeView, Waiting
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Hearing
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import ha_service_pb2 as api

_OUT_OF_USE = frozenset({Phase.MAINTENANCE, Phase.DRAINING, Phase.OFFLINE})


@dataclass(frozen=True, slots=True)
class _Recorded:
    leadership: Leadership
    settings: HaSettings
    nodes: Sequence[Node]
    fences: Mapping[str, Fence]
    guards: Mapping[str, NodeGuard]
    vms: Sequence[Vm]
    waiting_vms: Mapping[str, Vm] = field(default_factory=dict)

    @property
    def hostnames(self) -> Mapping[str, str]:
        """Of all nodes, by id."""
        return {node.id: node.hostname for node in self.nodes}


@dataclass(frozen=True, slots=True)
class HaStatusService:
    """Reads the status.

    Attributes:
        view: None where high availability is switched off, then `inactive` says how.
        admission_policy: room that is kept, in words.
        clock: that of `hearing`, in seconds.
    """

    store: Store
    hearing: Hearing
    times: HaTimes
    controllers: PowerControllers
    view: HaView | None
    forecaster: Forecaster | None = None
    admission_policy: str = ""
    inactive: str = ""
    clock: Callable[[], float] = clock_s

    async def read(self, *, include_forecast: bool) -> api.HaStatus:
        """Put the status together; reads every VM that shall run, which is some 0.1 ms each."""
        waiting = self.view.waiting() if self.view is not None else ()
        recorded = await self.store.read(lambda tx: _read(tx, [each.vm_id for each in waiting]))
        forecasts: dict[str, Sequence[Forecast]] = {}
        if include_forecast and self.forecaster is not None:
            forecasts = {node.id: await self.forecaster.forecast(node.id) for node in recorded.nodes}
        leadership = recorded.leadership
        return api.HaStatus(
            settings=ha_documents.settings(recorded.settings),
            leader_id=leadership.leader_id,
            leader_hostname=leadership.hostname,
            epoch=leadership.epoch,
            obstacle=self._obstacle(leadership),
            nodes=self._nodes(recorded, forecasts),
            times=ha_documents.times(self.times.with_wait_of(recorded.settings.longest_wait_ms)),
            admission_policy=self.admission_policy,
            failures_survived=await self.forecaster.failures_survived() if self.forecaster is not None else 0,
            waiting_vms=[_waiting(each, recorded.waiting_vms.get(each.vm_id)) for each in waiting],
        )

    def _obstacle(self, leadership: Leadership) -> str:
        if self.inactive or self.view is None:
            return self.inactive or "this process takes no part in high availability"
        if self.view.obstacle:
            return self.view.obstacle
        return "" if leadership.leader_id else "nobody was elected yet"

    def _nodes(self, recorded: _Recorded, forecasts: Mapping[str, Sequence[Forecast]]) -> list[api.NodeHaStatus]:
        thought = self.view.nodes() if self.view is not None and self.view.is_leader else {}
        vms = {vm.id: vm for vm in recorded.vms}
        counts = Counter(vm.node_id for vm in recorded.vms)
        found = []
        for node in sorted(recorded.nodes, key=lambda node: node.hostname):
            fence, guard = recorded.fences.get(node.id), recorded.guards.get(node.id)
            known = thought.get(node.id) or self._heard(node, fence)
            controller = self.controllers.of(node.hostname)
            message = api.NodeHaStatus(
                node_id=node.id,
                hostname=node.hostname,
                health=int(known.health),  # type: ignore[arg-type]  # numbers are the contract's
                reason=known.reason,
                is_self_fencing=not _self_fencing_obstacle(guard, recorded.settings),
                self_fencing_obstacle=_self_fencing_obstacle(guard, recorded.settings),
                power_agent=controller.kind if controller is not None else "",
                protected_vm_count=counts[node.id],
                forecast=[_forecast(each, vms, recorded.hostnames) for each in forecasts.get(node.id, ())],
                settings_version=guard.ha_version if guard is not None else 0,
            )
            heard = self.hearing.of(node.id)
            if heard is not None:
                message.last_heard_at.CopyFrom(timestamp(heard.at))
                message.settings_version = max(message.settings_version, heard.known_ha_version)
            if fence is not None:
                message.fence.CopyFrom(ha_documents.fence(fence, node.hostname))
            found.append(message)
        return found

    def _heard(self, node: Node, fence: Fence | None) -> NodeView:
        """Judge a node by the record and by what this process heard; it decides nothing."""
        if fence is not None:
            proven = fence.state == FenceState.PROVEN
            reason = fence.proof.evidence if proven and fence.proof is not None else fence.reason
            return NodeView(NodeHealth.FENCED if proven else NodeHealth.FENCING, reason)
        if node.phase in _OUT_OF_USE:
            return NodeView(NodeHealth.MAINTENANCE, f"it is {Phase.Name(node.phase)}")
        if self.hearing.announced(node.id) is not None:
            return NodeView(NodeHealth.SHUTTING_DOWN, "it said that it is being shut down or rebooted")
        now_s = self.clock()
        heard = self.hearing.of(node.id)
        aside = "as the process that answers heard, which does not decide"
        silent_s = now_s - (self.hearing.began_s if heard is None else heard.at_s)
        if silent_s < self.times.suspect_after_s:
            known = NodeHealth.HEALTHY if heard is not None else NodeHealth.UNKNOWN
            return NodeView(known, aside)
        return NodeView(NodeHealth.SUSPECT, f"silent for {silent_s:.1f} s, {aside}")


async def _read(tx: Transaction, waiting_ids: Sequence[str]) -> _Recorded:
    nodes = await tx.all_nodes()
    waiting = [await tx.get_vm(vm_id) for vm_id in waiting_ids]
    return _Recorded(
        leadership=await tx.leadership(),
        settings=await tx.ha_settings(),
        nodes=nodes,
        fences={fence.node_id: fence for fence in await tx.current_fences()},
        guards={guard.node_id: guard for guard in await tx.node_guards()},
        vms=await tx.vms_to_restart({node.id for node in nodes}),
        waiting_vms={vm.id: vm for vm in waiting if vm is not None},
    )


def _self_fencing_obstacle(guard: NodeGuard | None, settings: HaSettings) -> str:
    """Say why the end of a node's lease would prove nothing; "" if it would, as `lease_proves` has it."""
    if not settings.is_armed:
        return "high availability is disarmed"
    if lease_proves(guard, settings.version):
        return ""
    if guard is None:
        return "it has said nothing of its guard yet"
    if not guard.can_self_fence:
        return guard.obstacle or "it says that it cannot"
    return f"it knows version {guard.ha_version} of the settings, not yet {settings.version}"


def _waiting(each: Waiting, vm: Vm | None) -> api.WaitingVm:
    message = api.WaitingVm(
        vm_id=each.vm_id,
        vm_name=vm.name if vm is not None else "",
        node_id=vm.node_id if vm is not None else "",
        reason=each.reason,
        attempt_count=each.attempt_count,
    )
    if each.next_attempt_at is not None:
        message.next_attempt_at.CopyFrom(timestamp(each.next_attempt_at))
    return message


def _forecast(each: Forecast, vms: Mapping[str, Vm], hostnames: Mapping[str, str]) -> api.ForecastVm:
    vm = vms.get(each.vm_id)
    return api.ForecastVm(
        vm_id=each.vm_id,
        vm_name=vm.name if vm is not None else "",
        target_node_id=each.target_node_id,
        target_hostname=hostnames.get(each.target_node_id, ""),
        obstacle=each.obstacle,
    )
