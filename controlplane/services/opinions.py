"""What the scheduler thinks, without changing anything: explanations, plans and room that is left.

Decisions are made from one snapshot of the database, as those that count are. They hold for that moment: what fits may
be taken the next.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.domain import ha_errors
from controlplane.domain.node import Capacity
from controlplane.domain.placement import StandingVm
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.operations import vm_rules
from controlplane.scheduler.explain import Explanation, explain
from controlplane.scheduler.plan import Mode, Placement, Plan, SchedulerConfig, Unplaced, plan
from controlplane.scheduler.room import fitting_count, fitting_count_with_failures
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView, placed_vm_of
from controlplane.services.kept_room import (
    ROOM_FILTER,
    WIDE_RANKED_COUNT,
    admitted_of,
    room_admission,
    room_refusals,
)
from controlplane.services.placement import NodeMemory, request_of
from controlplane.services.seen import SeenNodes, SeenVms, look
from controlplane.services.vm_calls import required
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import placement_service_pb2 as api

DEFAULT_FAILED_COUNT = 2
_MODES = {
    api.PlanPlacementsRequest.AS_MANY_AS_FIT: Mode.AS_MANY_AS_FIT,
    api.PlanPlacementsRequest.ALL_OR_NOTHING: Mode.ALL_OR_NOTHING,
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What opinions are made from: a moment's nodes, the VMs that matter, and what is asked for."""

    nodes: SeenNodes
    vms: Sequence[StandingVm]
    requests: Sequence[PlacementRequest]

    def view(self, moved: Vm | None = None) -> ClusterView:
        """Make the scheduler's view of it.

        Args:
            moved: a VM to be placed anew, whose own claim is left out.
        """
        candidates = [each.candidate for each in self.nodes.values()]
        vms = [vm for vm in self.vms if vm.node_id in self.nodes]
        if moved is not None:
            candidates = [_without_claim(each, moved) if each.id == moved.node_id else each for each in candidates]
            vms = [vm for vm in vms if vm.id != moved.id]
        return ClusterView(candidates, [placed_vm_of(vm) for vm in vms])


@dataclass(frozen=True, slots=True)
class PlacementOpinions:
    """The use cases of PlacementService; `memory` only saves reading."""

    store: Store
    scheduler: SchedulerConfig
    now: Callable[[], datetime]
    memory: NodeMemory

    async def explain(self, request: api.ExplainPlacementRequest) -> api.ExplainPlacementResponse:
        """Say of every node why a VM may go there or not.

        Raises:
            NotFound: there is no such VM.
            InvalidArgument: the rules contradict those of VMs that it must run beside.
        """

        async def read(tx: Transaction) -> tuple[Scene, Vm, list[str]]:
            vm = await required(tx, request.vm_id) if request.vm_id else self._draft(request.candidate)
            if not request.vm_id:
                await vm_rules.require_sound(tx, vm, "candidate.spec.placement")
            # Room that is kept is for VMs of all projects; one that is placed has its own already.
            projects = {""} if self.scheduler.kept_room.is_any and not vm.node_id else {vm.project_id}
            return await self._scene(tx, [vm], projects), vm, await vm_rules.findings(tx, vm)

        scene, vm, findings = await self.store.read(read)
        found, refusals = await asyncio.to_thread(self._explained, scene, vm)
        chosen, summary = _chosen(found.outcome, refusals, self.scheduler)
        answer = api.ExplainPlacementResponse(
            chosen_node_id=chosen,
            current_node_id=vm.node_id,
            summary=summary,
            would_fit_if=found.would_fit_if,
            rule_findings=findings,
        )
        _add_opinions(answer, found, refusals)
        return answer

    def _explained(self, scene: Scene, vm: Vm) -> tuple[Explanation, dict[str, str]]:
        """Explain a decision, and say of nodes, by id, where a new VM would take room that is kept, what would lack."""
        config = self.scheduler
        if config.kept_room.is_any and not vm.node_id:
            config = replace(config, max_ranked_count=WIDE_RANKED_COUNT)
        found = explain(scene.view(vm), scene.requests[0], config)
        if vm.node_id or not isinstance(found.outcome, Placement):
            return found, {}
        return found, room_refusals(scene.nodes, scene.vms, vm, found.outcome, config)

    async def plan(self, request: api.PlanPlacementsRequest) -> api.PlanPlacementsResponse:
        """Say where many VMs would go."""
        drafts = [self._draft(candidate) for candidate in request.vms]
        projects = {""} if self.scheduler.kept_room.is_any else {draft.project_id for draft in drafts}
        scene = await self.store.read(lambda tx: self._scene(tx, drafts, projects))

        def work() -> Plan:
            config, admission, mode = self.scheduler, None, _MODES[request.mode]
            if config.kept_room.is_any:
                config = replace(config, max_ranked_count=WIDE_RANKED_COUNT)
                admission = room_admission(scene.nodes, scene.vms, drafts, config)
            return plan(scene.view(), scene.requests, config, mode=mode, admission=admission)

        answer = api.PlanPlacementsResponse()
        for draft, outcome in zip(drafts, (await asyncio.to_thread(work)).outcomes, strict=True):
            planned = answer.placements.add(name=draft.name)
            if isinstance(outcome, Placement):
                planned.node_id, planned.hostname = outcome.node_id, outcome.ranked[0].hostname
                answer.placed_count += 1
            else:
                planned.reason = outcome.summary
        return answer

    async def capacity(self, request: api.GetCapacityRequest) -> api.GetCapacityResponse:
        """Say how many more VMs like one fit: now, leaving the room that is kept, and with nodes failed, using it."""
        draft = self._draft(request.vm)
        scene = await self.store.read(lambda tx: self._scene(tx, [draft], {""}))
        failed_count = request.failed_node_count or DEFAULT_FAILED_COUNT
        return await asyncio.to_thread(self._capacity, scene, draft, failed_count)

    def _capacity(self, scene: Scene, draft: Vm, failed_count: int) -> api.GetCapacityResponse:
        view, request = scene.view(), scene.requests[0]
        fitting = fitting_count(view, request, self.scheduler)
        room = admitted_of(scene.nodes, scene.vms, draft, fitting, self.scheduler)
        answer = api.GetCapacityResponse(fitting_count=room.count, limit=room.limit)
        for node in sorted(room.nodes, key=lambda node: (node.hostname, node.node_id)):
            answer.nodes.add(node_id=node.node_id, hostname=node.hostname, fitting_count=node.count, limit=node.limit)
        for count in range(1, min(failed_count, len(scene.nodes) - 1) + 1):
            left = fitting_count_with_failures(view, request, count, self.scheduler)
            answer.failures.add(
                failed_node_count=count,
                fitting_count=left.count,
                homeless_vm_count=left.homeless_count,
                worst_node_ids=left.worst_node_ids,
            )
        return answer

    def _draft(self, candidate: api.PlacementCandidate) -> Vm:
        now = self.now()
        return Vm(
            id=str(uuid.uuid4()),
            name=candidate.name,
            project_id=candidate.project_id or DEFAULT_PROJECT_ID,
            spec=candidate.spec,
            node_id="",
            power_state=PowerState.PROVISIONING,
            created_at=now,
            updated_at=now,
            state_changed_at=now,
            labels=dict(candidate.labels),
        )

    async def _scene(self, tx: Transaction, vms: Sequence[Vm], projects: Collection[str]) -> Scene:
        """Read what is needed to place VMs; of the projects, "" stands for all."""
        reader = SeenVms(tx, self.memory.vms)
        nodes = await look(tx, self.memory.seen)
        standing = {vm.id: vm for project in sorted(projects) for vm in await reader.of_project(project)}
        for vm in vms:
            standing.update((other.id, other) for other in await reader.meant_by(vm))
        return Scene(nodes, list(standing.values()), [await request_of(tx, vm) for vm in vms])


def _chosen(outcome: Placement | Unplaced, refusals: Mapping[str, str], config: SchedulerConfig) -> tuple[str, str]:
    """Say which node a VM would get, "" for none, and how that comes."""
    if isinstance(outcome, Unplaced):
        return "", outcome.summary
    left = tuple(each for each in outcome.ranked if each.node_id not in refusals)
    if not left:
        return "", ha_errors.no_failover_room(config.kept_room.words, refusals[outcome.node_id], ()).message
    return left[0].node_id, _summary(replace(outcome, ranked=left))


def _add_opinions(answer: api.ExplainPlacementResponse, found: Explanation, refusals: Mapping[str, str]) -> None:
    for node in found.nodes:
        opinion = answer.nodes.add(node_id=node.node_id, hostname=node.hostname, score=node.score)
        for rejection in node.rejections:
            opinion.rejections.add(filter=rejection.filter, message=rejection.message)
        if node.node_id in refusals:
            opinion.rejections.add(filter=ROOM_FILTER, message=refusals[node.node_id])
        for part in node.parts:
            opinion.scores.add(name=part.name, points=part.points)


def _summary(outcome: Placement) -> str:
    best = outcome.ranked[0]
    text = f"goes to {best.hostname} with {best.score:.1f} points"
    if not outcome.runners_up:
        return text
    return f"{text}; next is {outcome.runners_up[0].hostname} with {outcome.runners_up[0].score:.1f}"


def _without_claim(candidate: Candidate, vm: Vm) -> Candidate:
    """Take a VM's own claim off the node that it is on: it would not need it twice."""
    allocated = candidate.allocated
    rest = Capacity(allocated.vcpus - vm.vcpu_count, allocated.memory_bytes - vm.memory_bytes)
    return replace(candidate, allocated=rest)
