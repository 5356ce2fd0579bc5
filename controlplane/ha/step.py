"""The decision about high availability, as one pure function.

Rules of one node are in `fences` and `silence`, those of VMs in `restarts` and `in_place`. All of them may be changed
by `HaConfig` alone, or by showing the step other facts; none has a switch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controlplane.ha.fences import Leave, fence_effects, is_back, noted
from controlplane.ha.in_place import in_place
from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Effect,
    EndFence,
    HaConfig,
    HaState,
    NodeHealth,
    NodeSeen,
    NodeState,
    Observed,
)
from controlplane.ha.restarts import Scene, decide_restarts
from controlplane.ha.silence import Brakes, Ear, brakes


def _counts_from_s(node: NodeSeen, before: NodeState | None, learnt_s: float, now_s: float) -> float:
    """Say since when a node's silence counts: since it is known, and anew once it takes part again.

    A host that comes back from maintenance is put into use by a person, who may be faster than its first heartbeat.
    """
    if not node.takes_part and node.fence is None:
        return now_s
    return before.known_s if before is not None else learnt_s


def step(config: HaConfig, state: HaState, observed: Observed, now_s: float) -> tuple[HaState, Sequence[Effect]]:
    """Decide what is to be done now, and return it with what is to be remembered.

    Pure: the same arguments give the same answer. While there is an obstacle only alerts come out; while high
    availability is disarmed only those, what gives nodes back, and what a person asked for. A fence counts from the
    first step that sees it without an obstacle: whoever observes shows only such as are published, or an obstacle.

    Args:
        now_s: monotonic, by the same clock as all other times here; never smaller than in the step before.
    """
    before, learnt_s = state.nodes, now_s if state.has_looked else state.since_s
    known_s = {node.id: _counts_from_s(node, before.get(node.id), learnt_s, now_s) for node in observed.nodes}
    ear = Ear(config, state.since_s, state.began_s, now_s, known_s)
    can_decide = not observed.obstacle
    nodes = {
        node.id: noted(ear, node, before.get(node.id), begins_waits=can_decide)
        for node in sorted(observed.nodes, key=lambda node: node.id)
    }
    found = brakes(ear, observed.nodes, nodes)
    effects = _about_fences(ear, observed, found, nodes)
    scene = Scene(config, observed, nodes, now_s, may_act=can_decide and observed.is_armed)
    restarts = decide_restarts(scene, state.vms)
    effects += restarts.effects
    effects += [
        EndFence(node.id, node.fence.id)
        for node in observed.nodes
        if node.fence is not None and node.fence.is_proven and node.knows_fence and is_back(node, nodes[node.id], ear)
        if node.id not in restarts.unsettled or not observed.is_armed
    ]
    if observed.is_armed:
        effects += in_place(observed, nodes)
    effects += _about_all(observed, found)
    effects += _about_lost_nodes(ear, observed.nodes, nodes)
    if not can_decide:
        effects = [effect for effect in effects if isinstance(effect, Alerting)]
    after = replace(state, nodes=nodes, vms=restarts.states, is_braking=found.is_braking, has_looked=True)
    return after, effects


def _about_fences(ear: Ear, observed: Observed, found: Brakes, nodes: dict[str, NodeState]) -> list[Effect]:
    """Decide about every node, those first that are silent longest; what is thought of them is noted in `nodes`."""
    effects, room_count = list[Effect](), found.room_count
    matter = [node for node in observed.nodes if node.fence or nodes[node.id].health is NodeHealth.SUSPECT]
    for node in sorted(matter, key=lambda node: (-ear.silence_s(node), node.id)):
        before, is_suspect = nodes[node.id], nodes[node.id].health is NodeHealth.SUSPECT
        uses_room = is_suspect and not node.has_ended_vms
        leave = Leave(
            refusal=_refusal(observed, found, node, has_room=room_count > 0 or not uses_room),
            is_armed=observed.is_armed,
            is_braking=found.is_braking,
        )
        after, asked = fence_effects(ear, node, before, leave)
        if observed.obstacle and not is_suspect:
            after = before  # nothing is carried out, so nothing was tried
        nodes[node.id] = after
        effects += asked
        room_count -= uses_room and not leave.refusal
    return effects


def _refusal(observed: Observed, found: Brakes, node: NodeSeen, *, has_room: bool) -> str:
    """Say why a silent node is not fenced; "" if it is."""
    if observed.obstacle:
        return observed.obstacle
    if not observed.is_armed:
        return "high availability is disarmed"
    if found.is_braking and not node.has_ended_vms:
        return found.why or "other nodes are late too"
    if not has_room:
        return f"no more than {found.limit_count} are fenced at once"
    return ""


def _about_all(observed: Observed, found: Brakes) -> list[Effect]:
    effects = list[Effect]()
    if observed.obstacle:
        effects.append(Alerting(AlertOf.NOTHING_DECIDED, "", observed.obstacle))
    if not observed.is_armed:
        said = "nothing is fenced and no VM is started elsewhere; `limiquantix ha arm` ends that"
        effects.append(Alerting(AlertOf.DISARMED, "", said))
    if found.why:
        effects.append(Alerting(AlertOf.BRAKE, "", found.why))
    return effects


def _about_lost_nodes(ear: Ear, seen: Sequence[NodeSeen], nodes: dict[str, NodeState]) -> list[Effect]:
    lost = (NodeHealth.SUSPECT, NodeHealth.FENCING, NodeHealth.FENCED)
    return [
        Alerting(AlertOf.NODE_LOST, node.id, nodes[node.id].reason)
        for node in seen
        if nodes[node.id].health in lost and not ear.is_heard(node)
    ]
