"""The rules of a VM about where it may run, checked against those of other VMs and against the cluster."""

from __future__ import annotations

from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.placement import StandingVm
from controlplane.domain.placement_rules import (
    MAX_TIED_VMS,
    ClusterFacts,
    RuledVm,
    contradictions_of,
    findings_of,
    named_vm_ids,
    tied_vm_ids,
    vm_selectors,
)
from controlplane.domain.vm import Vm
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from limiquantix.errors import FieldViolation, InvalidArgument

NO_RULES = PlacementPolicy()
_MAX_TOLD = 16
"""Findings that an event tells; `ExplainPlacement` has all."""


async def require_sound(tx: Transaction, vm: Vm, path: str = "spec.placement") -> None:
    """Check that a VM's rules can be kept together with those of the VMs that must share its host.

    Args:
        path: how the caller names the VM's policy in its request.

    Raises:
        InvalidArgument: they contradict each other.
    """
    waiting = tied_vm_ids(vm.spec.placement) - {vm.id}
    others: dict[str, RuledVm] = {}
    while waiting:
        if len(others) + len(waiting) > MAX_TIED_VMS:
            message = f"ties this VM to more than {MAX_TIED_VMS} others on one host; take some of the rules out"
            raise InvalidArgument.from_violations([FieldViolation(path, message)])
        found = [_ruled(each) for each in await tx.standing_vms(waiting)]
        others.update({each.id: each for each in found})
        waiting = frozenset().union(*(tied_vm_ids(each.policy) for each in found)) - others.keys() - {vm.id} - waiting
    faults = contradictions_of(RuledVm(vm.id, vm.name, vm.project_id, vm.labels, vm.spec.placement), others, path)
    if faults:
        raise InvalidArgument.from_violations(faults)


async def findings(tx: Transaction, vm: Vm) -> list[str]:
    """Say which rules of a VM have no effect, as the cluster is now; reads nothing for a VM without rules."""
    policy = vm.spec.placement
    if policy == NO_RULES:
        return []
    nodes = await tx.node_names()
    values: dict[str, set[str]] = {}
    for node in nodes:
        for key, value in node.labels.items():
            values.setdefault(key, set()).add(value)
    counts = {}
    for selector in vm_selectors(policy, vm.labels):
        found = await tx.vm_versions_selected(vm.project_id, [dict(selector)], ())
        counts[selector] = sum(each.vm_id != vm.id for each in found)
    named = named_vm_ids(policy)
    facts = ClusterFacts(
        node_names=frozenset(name for node in nodes for name in (node.id, node.hostname)),
        node_labels={key: frozenset(found_values) for key, found_values in values.items()},
        vms_by_selector=counts,
        vm_ids=frozenset(each.id for each in await tx.standing_vms(named)) if named else frozenset(),
    )
    return findings_of(policy, vm.labels, facts)


async def tell_findings(tx: Transaction, vm: Vm, actor: str) -> None:
    """Add an event of the rules that have no effect, if there are any."""
    found = await findings(tx, vm)
    if found:
        more = f"; and {len(found) - _MAX_TOLD} more" if len(found) > _MAX_TOLD else ""
        said = f"rules of VM {vm.name} have no effect now: {'; '.join(found[:_MAX_TOLD])}{more}"
        await tx.log_vm_event(vm, Event(EventType.VM_RULES_WITHOUT_EFFECT, said, Severity.WARNING, actor))


def _ruled(vm: StandingVm) -> RuledVm:
    return RuledVm(vm.id, vm.name, vm.project_id, vm.labels, vm.spec.placement)
