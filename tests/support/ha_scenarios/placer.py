"""Chooses nodes for the VMs of scenarios: by rules, then the node with the fewest VMs, then by name.

It stands in for the scheduler, whose scores (memory, CPU) scenarios know nothing of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.ha_scenarios.scenario import NodeRule, VmRule


@dataclass(slots=True)
class Rules:
    """What rules come to: companies of VMs that belong together, and who stays away from whom.

    A company shares its members' rules: where one belongs all belong, and what one avoids all avoid.
    """

    company: dict[str, frozenset[str]] = field(default_factory=dict)
    avoids: dict[str, frozenset[str]] = field(default_factory=dict)
    nodes: dict[str, NodeRule] = field(default_factory=dict)

    @classmethod
    def of(cls, node_rules: Sequence[NodeRule], vm_rules: Sequence[VmRule], node_count: int) -> Rules:
        """Work them out; rules that cannot be kept by any number of healthy nodes are left out, and so are
        those that contradict each other."""
        rules = cls()
        times = Counter(vm_id for rule in node_rules for vm_id in rule.vm_ids)
        node_rules = [rule for rule in node_rules if all(times[vm_id] == 1 for vm_id in rule.vm_ids)]
        apart = [
            rule
            for rule in vm_rules
            if not rule.is_together and len(rule.vm_ids) <= node_count and _has_nodes(rule, node_rules)
        ]
        together = [
            rule
            for rule in vm_rules
            if rule.is_together and sum(bool(rule.vm_ids & node_rule.vm_ids) for node_rule in node_rules) <= 1
        ]
        clashing = [(one, two) for one in together for two in apart if len(one.vm_ids & two.vm_ids) > 1]
        for rule in together:
            if any(rule is one for one, _ in clashing):
                continue
            merged = rule.vm_ids.union(*(rules.company.get(vm_id, frozenset()) for vm_id in rule.vm_ids))
            rules.company |= dict.fromkeys(merged, merged)
        for rule in apart:
            if not any(rule is two for _, two in clashing):
                rules._keep_apart(rule)
        for node_rule in node_rules:
            for vm_id in node_rule.vm_ids:
                for member in rules.company.get(vm_id, {vm_id}):
                    rules.nodes[member] = node_rule
        return rules

    def _keep_apart(self, rule: VmRule) -> None:
        for one in rule.vm_ids:
            members = self.company.get(one, frozenset([one]))
            others = frozenset[str]().union(
                *(self.company.get(two, frozenset([two])) for two in rule.vm_ids if two != one)
            )
            for member in members:
                self.avoids[member] = self.avoids.get(member, frozenset()) | (others - members)


def _has_nodes(rule: VmRule, node_rules: Sequence[NodeRule]) -> bool:
    """Whether those VMs of a rule that may only be on some nodes have enough of them to be apart."""
    strict = [node_rule for node_rule in node_rules if node_rule.is_strict and node_rule.vm_ids & rule.vm_ids]
    nodes = frozenset[str]().union(*(node_rule.priorities for node_rule in strict))
    return sum(len(node_rule.vm_ids & rule.vm_ids) for node_rule in strict) <= len(nodes)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a VM counts: its node, and the one it moves to; `counts` whether it uses either."""

    nodes: frozenset[str]
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Placer:
    """Answers for one moment: which nodes are up, and where VMs are."""

    rules: Rules
    up: Collection[str]
    standing: Mapping[str, Standing]

    def preferred(self, vm_id: str) -> set[str]:
        """Return the nodes that are up where a VM belongs most."""
        rule = self.rules.nodes.get(vm_id)
        if rule is None:
            return set(self.up)
        named = {node: rule.priorities[node] for node in self.up if node in rule.priorities}
        if not named:
            return set() if rule.is_strict else set(self.up)
        best = max(named.values())
        return {node for node, priority in named.items() if priority == best}

    def is_allowed(self, vm_id: str, node_id: str) -> bool:
        """Whether a VM may be on a node by its rule about nodes, and away from those it avoids."""
        rule = self.rules.nodes.get(vm_id)
        if node_id not in self.up or (rule is not None and rule.is_strict and node_id not in rule.priorities):
            return False
        return node_id not in self._where(self.rules.avoids.get(vm_id, frozenset()))

    def fitting(self, vm_id: str, without: Collection[str] = ()) -> set[str]:
        """Return the preferred nodes that keep a VM from those it avoids, and with most of its company."""
        fit = self.preferred(vm_id) - set(without) - set(self._where(self.rules.avoids.get(vm_id, frozenset())))
        company = self.companions(vm_id)
        most = max((company[node] for node in fit), default=0)
        return {node for node in fit if company[node] == most}

    def best(self, vm_id: str, without: Collection[str] = ()) -> str:
        """Return the fitting node with the fewest VMs, by name among equals; "" for none."""
        fit = self.fitting(vm_id, without)
        usage = self._where(self.standing)
        return min(fit, key=lambda node: (usage[node], node), default="")

    def companions(self, vm_id: str) -> Counter[str]:
        """Count, by node, the VMs that a VM belongs together with."""
        return self._where(self.rules.company.get(vm_id, frozenset()) - {vm_id})

    def _where(self, vm_ids: Collection[str]) -> Counter[str]:
        """Count, by node, those of some VMs that use one: a VM that is off is nobody's company, and in nobody's way."""
        places = Counter[str]()
        for vm_id in vm_ids:
            standing = self.standing.get(vm_id)
            places.update(standing.nodes if standing is not None and standing.counts else ())
        return places
