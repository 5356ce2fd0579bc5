"""The product's decision, checked each time; and broken where a mutant says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from controlplane.ha.model import Effect, HaConfig, HaState, NodeSeen, Observed, OpenAFence
from controlplane.ha.step import step
from tests.simulation.cluster.database import require
from tests.simulation.cluster.plane_parts import Chooser

if TYPE_CHECKING:
    from tests.simulation.cluster.plane import Plane

MAX_FENCING_SHARE = 0.34


class Deciding:
    """One a process; called as the product's step."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._rules = plane.site.rules

    def __call__(
        self, config: HaConfig, state: HaState, facts: Observed, now_s: float
    ) -> tuple[HaState, Sequence[Effect]]:
        """Decide, with a simple scheduler."""
        facts = self._broken(replace(facts, choose=Chooser(self._plane.site.database.rows, self._plane.seen_vms)))
        state, effects = step(config, state, facts, now_s)
        if not self._rules.begins_anew:
            nodes = {
                node_id: replace(node, fence_seen_s=min(node.fence_seen_s, self._opened_s(node.fence_id)))
                for node_id, node in state.nodes.items()
            }
            state = replace(state, nodes=nodes)
        opened = {effect.node_id for effect in effects if isinstance(effect, OpenAFence)}
        if any(node.id in opened and not node.has_ended_vms for node in facts.nodes):
            self._check_brakes(facts, now_s, opened)
        return state, effects

    def _broken(self, facts: Observed) -> Observed:
        rules = self._rules
        if not rules.checks_proof:
            nodes = [
                replace(node, fence=replace(node.fence, is_proven=True)) if node.fence is not None else node
                for node in facts.nodes
            ]
            facts = replace(facts, nodes=nodes, vms=[replace(vm, proves_dead=True) for vm in facts.vms])
        if not rules.asks_guard:
            facts = replace(facts, nodes=[replace(node, lease_proves=True) for node in facts.nodes])
        if not rules.ends_when_token_known:
            facts = replace(facts, nodes=[replace(node, knows_fence=True) for node in facts.nodes])
        if not rules.asks_rebooted:
            nodes = [
                replace(node, knows_fence=True) if node.fence is not None and not node.fence.is_proven else node
                for node in facts.nodes
            ]
            facts = replace(facts, nodes=nodes)
        return facts

    def _check_brakes(self, facts: Observed, now_s: float, opened: set[str]) -> None:
        """Check that so many may be fenced, beside those that said that they go: these are no sign of a fault."""
        site, expected = self._plane.site, [node for node in facts.nodes if node.shutdown is None]
        fenced_count = sum(node.fence is not None and not node.has_ended_vms for node in expected)
        fenced_count += sum(node.id in opened and not node.has_ended_vms for node in facts.nodes)
        limit_count = max(1, math.floor(MAX_FENCING_SHARE * len(facts.nodes)))
        require(fenced_count <= limit_count, f"{fenced_count} nodes are fenced at once, of at most {limit_count}")
        silent = [node for node in expected if now_s - _heard_s(node) >= site.times.suspect_after_s]
        require(
            2 * len(silent) < len(expected) or len(silent) < 2,
            f"{self._plane.process.name} fences while {len(silent)} of {len(expected)} nodes are silent to it",
        )

    def _opened_s(self, fence_id: str) -> float:
        fence = self._plane.site.database.rows.fences.get(fence_id)
        if fence is None:
            return 1e12
        return self._plane.process.clock.now() - (self._plane.site.kernel.now_s - fence.opened_at.timestamp())


def _heard_s(node: NodeSeen) -> float:
    return node.heard_s if node.heard_s is not None else 0.0
