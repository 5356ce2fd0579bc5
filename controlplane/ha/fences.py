"""What is done about the fence of one node: opening, withdrawing, cutting the power, proving.

Every rule is about one node at one moment; what many nodes together forbid comes in as `Leave`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    CutPower,
    Effect,
    HaConfig,
    NodeHealth,
    NodeSeen,
    NodeState,
    OpenAFence,
    OpenFence,
    PowerResult,
    ProofMethod,
    ProveFence,
    Shutdown,
    WithdrawFence,
)
from controlplane.ha.silence import Ear


@dataclass(frozen=True, slots=True)
class Leave:
    """What may be done about a node now.

    Attributes:
        refusal: why it is not fenced if it is silent; "" if it may be.
        is_armed: False: only what a person asked for is done.
        is_braking: neither power is cut nor a silence taken for a proof, unless a person asked for the fence.
    """

    refusal: str = ""
    is_armed: bool = True
    is_braking: bool = False


def noted(ear: Ear, node: NodeSeen, before: NodeState | None, *, begins_waits: bool) -> NodeState:
    """Note what is thought of a node, and since when.

    Args:
        begins_waits: whether a fence that is seen for the first time is known to be published, so that the wait for the
            lease may begin.
    """
    health, known_s = ear.health(node), ear.known_s.get(node.id, ear.began_s)
    state = before or NodeState(health, ear.now_s, known_s=known_s)
    if known_s != state.known_s:
        state = replace(state, known_s=known_s)
    if health != state.health:
        state = replace(state, health=health, since_s=ear.now_s)
    if node.fence is None:
        reason = _reason(ear, node, health)
        if not state.fence_id and state.power_tried_s is None and state.reason == reason:
            return state  # as nearly all nodes in each round, so none of them is made anew
        return replace(state, fence_id="", fence_seen_s=0.0, power_tried_s=None, reason=reason)
    if node.fence.id != state.fence_id and begins_waits:
        state = replace(state, since_s=ear.now_s, fence_id=node.fence.id, fence_seen_s=ear.now_s, power_tried_s=None)
    if node.power is PowerResult.UNDER_WAY or (node.power is PowerResult.FAILED and state.power_tried_s is None):
        state = replace(state, power_tried_s=ear.now_s)
    return replace(state, reason=_reason(ear, node, health))


def _reason(ear: Ear, node: NodeSeen, health: NodeHealth) -> str:
    silent = f"no heartbeat for {ear.config.suspect_after_s:g} s"
    if health in (NodeHealth.FENCING, NodeHealth.FENCED):
        by = "a person asked for it" if node.fence is not None and node.fence.is_by_operator else silent
        return f"it is heard again; {by} before" if ear.is_heard(node) else by
    if health is NodeHealth.SUSPECT:
        return f"{silent}; it had said that it goes ({node.shutdown.value})" if node.shutdown else silent
    if health is NodeHealth.SHUTTING_DOWN and node.shutdown is not None:
        what = "reboots" if node.shutdown is Shutdown.REBOOT else "is shut down"
        return f"it said that it {what}" + ("; its VMs wait for it" if ear.is_silent(node) else "")
    return ""


def is_back(node: NodeSeen, state: NodeState, ear: Ear) -> bool:
    """Whether a node with a proven fence is heard again, so that it may be given back."""
    return ear.is_heard(node) and node.heard_s is not None and node.heard_s > state.since_s


def fence_effects(ear: Ear, node: NodeSeen, state: NodeState, leave: Leave) -> tuple[NodeState, Sequence[Effect]]:
    """Say what is done about a node, and note it."""
    fence = node.fence
    if state.health is NodeHealth.SUSPECT:
        return _suspect(node, state, leave)
    if fence is None or fence.is_proven or state.fence_id != fence.id:
        return state, ()
    if said := _objection(ear, node, fence, state, leave):
        return state, (WithdrawFence(node.id, fence.id, said),)
    if found := _proof(ear, node, state, leave):
        return state, (ProveFence(node.id, fence.id, *found),)
    waited_s = ear.now_s - state.fence_seen_s
    if waited_s < ear.config.objection_s:
        return state, ()
    effects: list[Effect] = []
    if _may_cut(node, leave) and _is_time_to_cut(ear, node, state):
        effects.append(CutPower(node.id, fence.id))
        state = replace(state, power_tried_s=ear.now_s if node.power is PowerResult.FAILED else state.power_tried_s)
    if why := _unprovable(node, leave):
        effects.append(Alerting(AlertOf.FENCE_UNPROVEN, node.id, why))
    return state, effects


def _suspect(node: NodeSeen, state: NodeState, leave: Leave) -> tuple[NodeState, Sequence[Effect]]:
    if leave.refusal:
        return replace(state, reason=f"{state.reason}; it is not fenced: {leave.refusal}"), ()
    return state, (OpenAFence(node.id, state.reason),)


def _objection(ear: Ear, node: NodeSeen, fence: OpenFence, state: NodeState, leave: Leave) -> str:
    """Say why a fence is withdrawn; "" if it is not."""
    if fence.is_by_operator:
        return ""
    if fence.heard_by:
        return f"it was heard by {fence.heard_by}"
    if node.is_rebooted:
        return ""  # that it is heard is the proof, then
    if ear.is_heard(node) or (node.heard_s is not None and node.heard_s > state.fence_seen_s):
        return "it is heard again"
    return "" if leave.is_armed else "high availability was disarmed"


def _proof(ear: Ear, node: NodeSeen, state: NodeState, leave: Leave) -> tuple[ProofMethod, str] | None:
    """Find what proves that nothing of ours runs on a node any more.

    What was seen is taken also while the brake is on; only that nothing was seen, for however long, is not.
    """
    config, fence = ear.config, node.fence
    waited_s = ear.now_s - state.fence_seen_s
    is_asked_for = fence is not None and fence.is_by_operator
    # A command of before the fence may start a VM also in the new boot, until the host knows of the fence.
    if node.is_rebooted and node.knows_fence and fence is not None and not fence.heard_by:
        return ProofMethod.HOST_REBOOTED, "it is heard in another boot, and runs none of our VMs"
    if node.power is PowerResult.OFF:
        return ProofMethod.POWER_OFF, node.power_evidence or "its power controller says that it is off"
    if node.has_ended_vms and not ear.is_heard(node) and waited_s >= config.objection_s:
        return ProofMethod.HOST_REPORTED, "it said that it ended all VMs, before it went on purpose"
    is_held = (leave.is_braking or not leave.is_armed) and not is_asked_for
    if node.lease_proves and not is_held and waited_s >= max(config.proof_wait_s, config.objection_s):
        said = f"no process granted it a lease for {config.proof_wait_s:g} s; the last one ended before"
        return ProofMethod.LEASE_EXPIRED, said
    return None


def _may_cut(node: NodeSeen, leave: Leave) -> bool:
    if not node.has_power_agent:
        return False
    if node.fence is not None and node.fence.is_by_operator:
        return True
    return node.takes_part and leave.is_armed and not leave.is_braking


def _is_time_to_cut(ear: Ear, node: NodeSeen, state: NodeState) -> bool:
    if node.power is PowerResult.NOT_TRIED:
        return True
    tried_s = state.power_tried_s
    return node.power is PowerResult.FAILED and tried_s is not None and _has_passed(ear, tried_s, ear.config)


def _has_passed(ear: Ear, since_s: float, config: HaConfig) -> bool:
    return ear.now_s - since_s >= config.power_retry_s


def _unprovable(node: NodeSeen, leave: Leave) -> str:
    """Say what a person can do about a fence that nothing will prove; "" if something may yet."""
    if node.lease_proves or node.has_ended_vms:
        return ""
    if not node.has_power_agent:
        power = "no power controller of it is configured"
    elif node.power is PowerResult.FAILED:
        power = f"its power could not be cut, which is tried again ({node.power_evidence or 'no reason was given'})"
    elif not node.takes_part and not _may_cut(node, leave):
        power = "its power is not cut while it is in maintenance"
    else:
        return ""
    return (
        f"it is silent, {power}, and it is not on record that it ends its VMs without a lease: nothing proves that "
        "they ended, so none is started elsewhere; see to it that the host is off, then "
        f"`limiquantix ha confirm-dead {node.id}`"
    )
