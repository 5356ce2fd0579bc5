"""Filters that look at where other VMs are."""

from __future__ import annotations

from controlplane.scheduler.rejection import Rejection, Words, listed
from controlplane.scheduler.sight import NOTHING_IN_SIGHT, ONE_NODE, place_of
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

AFFINITY = Words("affinity VMs", "does not run its affinity VMs", "do not run its affinity VMs")


def affinity(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not run all the VMs this one must run beside."""
    nodes = request.affinity_nodes
    if len(nodes) == 1 and candidate.id in nodes:
        return None
    if not nodes:
        where = "on no node"
    elif len(nodes) == 1:
        where = f"on node {listed(nodes)}"
    else:
        where = f"apart, on nodes {listed(nodes)}"
    return Rejection(AFFINITY, f"the VMs it must run beside are {where}", f"they are {where}")


ANTI_AFFINITY = Words("anti-affinity VMs", "runs a VM it must not run beside", "run VMs it must not run beside")


def anti_affinity(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that run a VM this one must not run beside."""
    if candidate.id not in request.anti_affinity_nodes:
        return None
    return Rejection(ANTI_AFFINITY, "runs a VM that this one must not run beside")


TOGETHER = Words("together rules", "is away from VMs it must be near", "are away from VMs it must be near")


def together(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that are not in the place of the VMs that this one must be near by its rules."""
    for near in (request.sight or NOTHING_IN_SIGHT).near:
        place = place_of(candidate.id, candidate.labels, near.topology_key)
        if place is None:
            message = f"has no label {near.topology_key}, by which the VM must be near {near.who}"
            return Rejection(TOGETHER, message, f"need the {near.topology_key} of {near.who}")
        if near.places is not None and place not in near.places:
            where = _where(near.topology_key, near.places)
            return Rejection(TOGETHER, f"must be near {near.who}, {where}", f"{near.who} {where}")
    return None


def _where(topology_key: str, places: frozenset[str]) -> str:
    if not places:
        return "none of which has a place that all share"
    kind = "node" if topology_key == ONE_NODE else topology_key
    return f"which are in {kind} {listed(places)}"


APART = Words("apart rules", "is near VMs it must be apart from", "are near VMs it must be apart from", "in {}")


def apart(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes in the place of a VM that this one must be apart from, by its own rules or by that VM's."""
    for far in (request.sight or NOTHING_IN_SIGHT).far:
        place = place_of(candidate.id, candidate.labels, far.topology_key)
        if place is not None and place in far.places:
            kind = "this node" if far.topology_key == ONE_NODE else f"{far.topology_key} {place}"
            found = None if far.topology_key == ONE_NODE else f"{far.topology_key} {place}"
            return Rejection(APART, f"must be apart from {far.who}, of which {kind} has some", found=found)
    return None


SPREAD = Words("spread rules", "would be too full of its sort", "would be too full of its sort", "with {}")


def spread(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes whose place would exceed the emptiest place by too many VMs of a sort."""
    for even in (request.sight or NOTHING_IN_SIGHT).even:
        place = place_of(candidate.id, candidate.labels, even.topology_key)
        if place is None:
            message = f"has no label {even.topology_key}, over which {even.who} are spread"
            return Rejection(SPREAD, message, f"at most {even.max_skew} more than the emptiest, {even.floor}")
        if even.excess(place) > 0:
            kind = "the node" if even.topology_key == ONE_NODE else f"{even.topology_key} {place}"
            count = even.counts.get(place, 0)
            message = (
                f"{kind} has {count} of {even.who}, the emptiest {even.floor}; "
                f"with this VM it may have {even.max_skew} more"
            )
            return Rejection(
                SPREAD, message, f"at most {even.max_skew} more than the emptiest, {even.floor}", str(count)
            )
    return None
