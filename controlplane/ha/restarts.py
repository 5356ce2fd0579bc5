"""Which VMs of nodes that are proven dead are started elsewhere now, and which wait for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.ha.dependencies import awaited_by
from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Effect,
    HaConfig,
    NodeHealth,
    NodeState,
    Observed,
    Restart,
    VmSeen,
    VmState,
    Wanted,
)


@dataclass(slots=True)
class Restarts:
    """What comes of one step.

    Attributes:
        states: of VMs on nodes that are fenced.
        unsettled: nodes that VMs are leaving, or soon will; they are not given back before.
    """

    states: dict[str, VmState] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Scene:
    """What restarts are decided from.

    Attributes:
        may_act: False: nothing is asked for and no attempt counted; what is wrong is told all the same.
    """

    config: HaConfig
    observed: Observed
    nodes: Mapping[str, NodeState]
    now_s: float
    may_act: bool


def decide_restarts(scene: Scene, before: Mapping[str, VmState]) -> Restarts:
    """Decide for all VMs whose node is proven dead: higher priority first, so many at once as is configured."""
    out, due = Restarts(), list[VmSeen]()
    vms = {vm.id: vm for vm in scene.observed.vms}
    busy_count = scene.observed.restarting_count
    for vm in scene.observed.vms:
        node = scene.nodes.get(vm.node_id)
        if node is None or node.health is not NodeHealth.FENCED:
            continue
        if vm.wanted is not Wanted.STARTED or not vm.is_policy_restart:
            continue
        if not vm.proves_dead:
            out.effects.append(Alerting(AlertOf.VM_NOT_RESTARTED, vm.id, _NOT_PROVEN))
            continue
        state = _followed(scene, vm, _of_fence(before.get(vm.id), node.fence_id), awaited_by(vm, vms))
        out.states[vm.id] = state
        busy_count += vm.is_busy
        if vm.is_busy or state.waits_for or _is_delayed(scene, vm, state):
            out.unsettled.add(vm.node_id)
        elif scene.now_s >= state.next_s:
            due.append(vm)
    _ask(scene, out, sorted(due, key=lambda vm: (-vm.priority, vm.id)), scene.config.max_restarting_count - busy_count)
    out.effects += [
        Alerting(AlertOf.VM_FITS_NOWHERE, vm_id, f"no node takes it: {state.refusal}")
        for vm_id, state in sorted(out.states.items())
        if state.refusal
    ]
    return out


_NOT_PROVEN = (
    "its node is fenced, but it is not on record that its host ends this VM when it has no lease, so it may still run; "
    "it is started elsewhere once the host's power is cut, or a person confirmed that the host is dead"
)


def _of_fence(state: VmState | None, fence_id: str) -> VmState:
    return state if state is not None and state.fence_id == fence_id else VmState(fence_id=fence_id)


def _followed(scene: Scene, vm: VmSeen, state: VmState, awaited: str) -> VmState:
    """Take into the state what became of the last attempt, and what is waited for."""
    now_s, config = scene.now_s, scene.config
    if vm.is_busy:
        return replace(state, was_busy=True, refusal="", waits_for="")
    if state.was_busy:
        state = replace(state, was_busy=False, asked_s=None, next_s=now_s + _back_off_s(config, state.attempt_count))
    elif state.asked_s is not None and now_s - state.asked_s >= config.first_retry_s:
        next_s = state.asked_s + _back_off_s(config, state.attempt_count)
        state = replace(state, asked_s=None, next_s=next_s)
    since_s = now_s if state.waits_since_s is None else state.waits_since_s
    if awaited and now_s - since_s < config.max_wait_s:
        return replace(state, waits_for=awaited, waits_since_s=since_s, ready_s=None)
    ready_s = now_s if state.ready_s is None else state.ready_s
    return replace(state, waits_for="", waits_since_s=since_s if awaited else None, ready_s=ready_s)


def _back_off_s(config: HaConfig, attempt_count: int) -> float:
    doublings = min(max(attempt_count - 1, 0), 32)
    return min(config.first_retry_s * 2.0**doublings, config.max_retry_s)


def _is_delayed(scene: Scene, vm: VmSeen, state: VmState) -> bool:
    return state.ready_s is not None and scene.now_s - state.ready_s < vm.restart_delay_s


def _ask(scene: Scene, out: Restarts, due: Sequence[VmSeen], room_count: int) -> None:
    """Ask for as many of the restarts that are due as there is room for."""
    healthy = {node_id for node_id, node in scene.nodes.items() if node.health is NodeHealth.HEALTHY}
    excluded = frozenset(scene.nodes.keys() - healthy)
    knows_all = all(node.health is not NodeHealth.UNKNOWN for node in scene.nodes.values())
    for vm in due:
        if room_count <= 0:
            out.unsettled.add(vm.node_id)
            continue
        if not healthy:
            choice_id, refusal = "", "no other node is up"
        else:
            choice = scene.observed.choose(vm.id, excluded | {vm.node_id})
            choice_id, refusal = choice.node_id, choice.reason or "no reason was given"
        state = out.states[vm.id]
        if not choice_id:
            retry_s = scene.now_s + scene.config.first_retry_s
            out.states[vm.id] = replace(state, next_s=retry_s, refusal=refusal if knows_all else "")
            continue
        out.unsettled.add(vm.node_id)
        state = replace(state, refusal="")
        if scene.may_act:
            room_count -= 1
            if state.asked_s is None:
                state = replace(state, attempt_count=state.attempt_count + 1, asked_s=scene.now_s)
            out.effects.append(Restart(vm.id, state.fence_id, vm.node_id, choice_id, state.attempt_count))
        out.states[vm.id] = state
