"""Short words for what the core sees, and a small loop that carries out what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Choice,
    Effect,
    HaConfig,
    HaState,
    NodeHealth,
    NodeSeen,
    Observed,
    OpenFence,
    VmSeen,
)
from controlplane.ha.step import step

CONFIG = HaConfig()
OPEN = OpenFence("f1")
PROVEN = OpenFence("f1", is_proven=True)

EffectT = TypeVar("EffectT", bound=Effect)


def of_kind(effects: Sequence[Effect], kind: type[EffectT]) -> list[EffectT]:
    return [effect for effect in effects if isinstance(effect, kind)]


def alerts(effects: Sequence[Effect]) -> set[AlertOf]:
    return {effect.kind for effect in of_kind(effects, Alerting)}


def silent(node_id: str = "n1", **facts: Any) -> NodeSeen:
    """A node that was heard last at 0."""
    return replace(NodeSeen(node_id, heard_s=0.0), **facts)


def fenced_vm(vm_id: str = "v1", node_id: str = "n1", **facts: Any) -> VmSeen:
    """A VM of a node that is proven dead."""
    return replace(VmSeen(vm_id, node_id, proves_dead=True), **facts)


def first_healthy(vm_id: str, excluded: frozenset[str]) -> Choice:
    """Choose the first of n1 to n9 that may be chosen."""
    return Choice(next(node for number in range(1, 10) if (node := f"n{number}") not in excluded))


@dataclass
class Core:
    """Steps through time; keeps other nodes heard unless told otherwise."""

    config: HaConfig = CONFIG
    state: HaState = field(default_factory=lambda: HaState(began_s=0.0))
    now_s: float = 0.0
    others: Sequence[str] = ("n2", "n3")

    def at(self, now_s: float, *nodes: NodeSeen, **facts: Any) -> Sequence[Effect]:
        """Step at a time with these nodes as given, and others heard just now."""
        self.now_s = now_s
        given = {node.id for node in nodes}
        heard = [NodeSeen(other, heard_s=now_s) for other in self.others if other not in given]
        observed = Observed([*nodes, *heard], choose=first_healthy)
        self.state, effects = step(self.config, self.state, replace(observed, **facts), now_s)
        return effects

    def health(self, node_id: str = "n1") -> NodeHealth:
        return self.state.nodes[node_id].health

    def reason(self, node_id: str = "n1") -> str:
        return self.state.nodes[node_id].reason
