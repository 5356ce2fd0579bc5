"""Which nodes may take a VM, and why the others may not.

A filter is a function from a candidate and a request to None (it may) or a `Rejection`. Adding one is this function
with its words above it, one line in `FILTERS` and one test. `FILTERS` is in the order
in which reasons are told: first what the request itself asked for, then what keeps the node from taking any VM, then
what this node does not have, and capacity last, because free memory on a node that is down helps nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.scheduler.filters_host import (
    cpu_model,
    devices,
    huge_pages,
    machine,
    max_vcpus,
    networks,
    numa,
    storage_domains,
    storage_pools,
)
from controlplane.scheduler.filters_node import (
    compute_role,
    excluded_nodes,
    node_rules,
    phase,
    pinned_node,
    required_labels,
    required_nodes,
    schedulable,
    taints,
)
from controlplane.scheduler.filters_room import cpu, memory
from controlplane.scheduler.filters_vms import affinity, anti_affinity, apart, spread, together
from controlplane.scheduler.rejection import Check, Filter, Reads, Rejection, Words
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

__all__ = [
    "FILTERS",
    "Check",
    "Filter",
    "Rejection",
    "Words",
    "affinity",
    "anti_affinity",
    "apart",
    "checks_for",
    "compute_role",
    "cpu",
    "cpu_model",
    "devices",
    "excluded_nodes",
    "fitting",
    "huge_pages",
    "machine",
    "max_vcpus",
    "memory",
    "networks",
    "node_rules",
    "numa",
    "phase",
    "pinned_node",
    "rejections_of",
    "required_labels",
    "required_nodes",
    "schedulable",
    "spread",
    "static_checks_for",
    "storage_domains",
    "storage_pools",
    "taints",
    "taken_checks_for",
    "together",
]

FILTERS: tuple[Filter, ...] = (
    Filter(pinned_node, lambda request: bool(request.pinned_node_id), Reads.NAMES),
    Filter(required_nodes, lambda request: bool(request.required_nodes), Reads.NAMES),
    Filter(excluded_nodes, lambda request: bool(request.excluded_nodes), Reads.NAMES),
    Filter(phase),
    Filter(compute_role),
    Filter(schedulable),
    Filter(taints),
    Filter(required_labels, lambda request: bool(request.required_labels)),
    Filter(node_rules, lambda request: request.has_policy and len(request.policy.node_rules) > 0),
    Filter(affinity, lambda request: request.wants_company, Reads.OTHER_VMS),
    Filter(anti_affinity, lambda request: bool(request.anti_affinity_nodes), Reads.OTHER_VMS),
    Filter(together, lambda request: request.sight is not None and bool(request.sight.near), Reads.OTHER_VMS),
    Filter(apart, lambda request: request.sight is not None and bool(request.sight.far), Reads.OTHER_VMS),
    Filter(spread, lambda request: request.sight is not None and bool(request.sight.even), Reads.OTHER_VMS),
    Filter(storage_pools, lambda request: bool(request.storage_pool_ids)),
    Filter(storage_domains, lambda request: bool(request.needs.storage_domain_ids)),
    Filter(networks, lambda request: bool(request.needs.bridges or request.needs.host_networks)),
    Filter(cpu_model, lambda request: request.needs.is_about_cpu),
    Filter(machine, lambda request: request.needs.is_about_machine),
    Filter(max_vcpus, reads=Reads.ROOM),
    Filter(devices, lambda request: bool(request.needs.devices), Reads.TAKEN),
    Filter(huge_pages, lambda request: bool(request.needs.page_count), Reads.TAKEN),
    Filter(numa, lambda request: bool(request.needs.numa), Reads.TAKEN),
    Filter(cpu, reads=Reads.ROOM),
    Filter(memory, reads=Reads.ROOM),
)
"""All filters, most telling reason first."""


def checks_for(request: PlacementRequest) -> tuple[Check, ...]:
    """The filters that concern a request, in their order."""
    return tuple(entry.check for entry in FILTERS if entry.concerns(request))


def static_checks_for(request: PlacementRequest) -> tuple[Check, ...]:
    """Those of them whose answer depends on the node and `PlacementRequest.static_key` alone."""
    return tuple(entry.check for entry in FILTERS if entry.reads is Reads.NODE and entry.concerns(request))


def taken_checks_for(request: PlacementRequest) -> tuple[Check, ...]:
    """Those of them that look at what placed VMs hold beside vCPUs and memory."""
    return tuple(entry.check for entry in FILTERS if entry.reads is Reads.TAKEN and entry.concerns(request))


def fitting(
    candidates: Sequence[Candidate], request: PlacementRequest, checks: tuple[Check, ...]
) -> Sequence[Candidate]:
    """The candidates that every filter lets through, in their order."""
    remaining = candidates
    for check in checks:
        remaining = [candidate for candidate in remaining if check(candidate, request) is None]
    return remaining


def rejections_of(candidate: Candidate, request: PlacementRequest, checks: tuple[Check, ...]) -> tuple[Rejection, ...]:
    """Every reason why a node may not take the VM, most telling first; empty when it may."""
    found = (check(candidate, request) for check in checks)
    return tuple(rejection for rejection in found if rejection is not None)
