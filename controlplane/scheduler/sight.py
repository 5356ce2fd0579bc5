"""What rules about other VMs come to, for one request: which places are open, closed, or better than others.

A place is what a topology key makes of nodes: with "rack", the nodes that have the same value of that label; with "",
one node. Working a rule out once for a request, and not once a node, is what keeps such rules cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ONE_NODE = ""
"""The topology key of rules whose place is a single node."""
SOFT_VM_RULES = "VM rules"
SOFT_SPREAD = "spread rules"
MAX_SPREAD_MULTIPLE = 5
"""How often the weight of a soft spread rule counts at most, lest an uneven cluster drown all other points."""


def place_of(node_id: str, labels: Mapping[str, str], topology_key: str) -> str | None:
    """Name the place that a node is in; None if it has no such label."""
    return node_id if topology_key == ONE_NODE else labels.get(topology_key)


@dataclass(frozen=True, slots=True)
class Near:
    """The VM must be in one of these places; None is any place, of which a node without the label is none."""

    topology_key: str
    places: frozenset[str] | None
    who: str


@dataclass(frozen=True, slots=True)
class Far:
    """The VM must be in none of these places; a node without the label is in none."""

    topology_key: str
    places: frozenset[str]
    who: str


@dataclass(frozen=True, slots=True)
class Even:
    """The VM must not make a place exceed the emptiest one by more than `max_skew`.

    `counts` has no places without VMs; `floor` is the count of the emptiest of all known places. `own` is 1 if the VM
    itself is one of those counted.
    """

    topology_key: str
    counts: Mapping[str, int]
    floor: int
    own: int
    max_skew: int
    who: str

    def excess(self, place: str) -> int:
        """By how many VMs too many the place would exceed the emptiest, 0 or less if it may take the VM."""
        return self.counts.get(place, 0) + self.own - self.floor - self.max_skew

    @property
    def full_places(self) -> frozenset[str]:
        """Places that may not take the VM; those without VMs always may."""
        return frozenset(place for place in self.counts if self.excess(place) > 0)


@dataclass(frozen=True, slots=True)
class Liking:
    """Points for the nodes of places, by a soft rule."""

    name: str
    topology_key: str
    points: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that other VMs mean for one request."""

    near: tuple[Near, ...] = ()
    far: tuple[Far, ...] = ()
    even: tuple[Even, ...] = ()
    likings: tuple[Liking, ...] = ()


NOTHING_IN_SIGHT = Sight()


def points_of(likings: tuple[Liking, ...], name: str, node_id: str, labels: Mapping[str, str]) -> float:
    """Add up the points of a node for the likings of this name."""
    total = 0.0
    for liking in likings:
        if liking.name == name:
            place = place_of(node_id, labels, liking.topology_key)
            total += 0.0 if place is None else liking.points.get(place, 0.0)
    return total
