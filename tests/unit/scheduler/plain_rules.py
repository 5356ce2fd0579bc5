"""What rules about nodes and other VMs mean, read one by one and node by node: slow, and easy to check by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.sight import place_of
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, SpreadRule, VmAffinityRule


@dataclass(frozen=True)
class PlainRules:
    """The rules of one request among these nodes and VMs."""

    nodes: Mapping[str, Candidate]
    vms: Sequence[PlacedVm]
    request: PlacementRequest

    def allow(self, node: Candidate) -> bool:
        """Whether every rule that must hold allows the node."""
        policy = self.request.policy
        return (
            node.id not in policy.excluded_nodes
            and self._keeps_named(node)
            and all(rule.weight or _label_rule_holds(rule, node) for rule in policy.node_rules)
            and all(rule.weight or self._vm_rule_holds(rule, node) for rule in policy.vm_rules)
            and all(rule.weight or self._spread_holds(rule, node) for rule in policy.spread_rules)
            and not any(self._is_kept_off(node, vm) for vm in self.vms)
        )

    def _keeps_named(self, node: Candidate) -> bool:
        policy = self.request.policy
        if any(vm.node_id == node.id and vm.id in policy.anti_affinity_vms for vm in self.vms):
            return False
        beside = {vm.node_id for vm in self.vms if vm.id in policy.affinity_vms}
        return not policy.affinity_vms or beside == {node.id}

    def _place(self, node_id: str, key: str) -> str | None:
        return place_of(node_id, self.nodes[node_id].labels, key)

    def _alike(self, labels: Mapping[str, str]) -> list[PlacedVm]:
        same_project = [vm for vm in self.vms if vm.request.project_id == self.request.project_id]
        return [vm for vm in same_project if labels and has(vm.request, labels)]

    def _vm_rule_holds(self, rule: VmAffinityRule, node: Candidate) -> bool:
        key = rule.topology_key
        place = self._place(node.id, key)
        named = {self._place(vm.node_id, key) for vm in self.vms if vm.id in rule.vm_ids}
        alike = self._alike(rule.labels)
        at = {self._place(vm.node_id, key) for vm in alike}
        if rule.kind == VmAffinityRule.APART:
            return place is None or place not in named | at
        is_first = not alike and has(self.request, rule.labels)
        return (
            place is not None and (not rule.vm_ids or named == {place}) and (not rule.labels or is_first or place in at)
        )

    def _spread_holds(self, rule: SpreadRule, node: Candidate) -> bool:
        key, labels = rule.topology_key, dict(rule.labels) or dict(self.request.labels)
        if not labels:
            return True
        counts = {place: 0 for each in self.nodes if (place := self._place(each, key)) is not None}
        for vm in self._alike(labels):
            place = self._place(vm.node_id, key)
            if place is not None:
                counts[place] += 1
        own = self._place(node.id, key)
        if own is None:
            return False
        return counts[own] + has(self.request, labels) - min(counts.values()) <= (rule.max_skew or 1)

    def _is_kept_off(self, node: Candidate, vm: PlacedVm) -> bool:
        """Whether a VM's own rules keep the request's away from that VM."""
        policy, me = vm.request.policy, self.request
        if vm.node_id == node.id and me.vm_id in policy.anti_affinity_vms:
            return True
        for rule in policy.vm_rules:
            if rule.weight or rule.kind != VmAffinityRule.APART:
                continue
            place = self._place(node.id, rule.topology_key)
            is_near = place is not None and place == self._place(vm.node_id, rule.topology_key)
            is_alike = rule.labels and vm.request.project_id == me.project_id and has(me, rule.labels)
            if is_near and (is_alike or me.vm_id in rule.vm_ids):
                return True
        return False


def has(request: PlacementRequest, labels: Mapping[str, str]) -> bool:
    """Whether the VM has all these labels."""
    return all(request.labels.get(key) == value for key, value in labels.items())


def _label_rule_holds(rule: NodeLabelRule, node: Candidate) -> bool:
    is_in = rule.key in node.labels and node.labels[rule.key] in rule.values
    return is_in == (rule.operator == NodeLabelRule.IN)
