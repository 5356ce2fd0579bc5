"""Which nodes make which places: the values that labels have, kept up to date as nodes come and change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from controlplane.scheduler.sight import ONE_NODE, place_of

_NO_LABELS: Mapping[str, str] = {}


class Places:
    """Labels of nodes, and for each topology key that was asked about, the nodes of each place."""

    def __init__(self, nodes: Iterable[tuple[str, Mapping[str, str]]] = ()) -> None:
        self._labels: dict[str, Mapping[str, str]] = dict(nodes)
        self._members: dict[str, dict[str, set[str]]] = {}

    def put(self, node_id: str, labels: Mapping[str, str]) -> None:
        """Learn of a node, or that its labels are others now."""
        before = self._labels.get(node_id)
        if before is not None:
            if before is labels or before == labels:
                return
            self.drop(node_id)
        self._labels[node_id] = labels
        for key, members in self._members.items():
            if (place := place_of(node_id, labels, key)) is not None:
                members.setdefault(place, set()).add(node_id)

    def drop(self, node_id: str) -> None:
        """Forget a node; one that is not known is no matter."""
        labels = self._labels.pop(node_id, None)
        if labels is None:
            return
        for key, members in self._members.items():
            place = place_of(node_id, labels, key)
            if place is not None:
                members[place].discard(node_id)
                if not members[place]:
                    del members[place]

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """Labels of all nodes by id."""
        return self._labels

    def place_of(self, node_id: str, topology_key: str) -> str | None:
        """Name the place that a node is in; None if it is unknown or has no such label."""
        if topology_key == ONE_NODE:
            return node_id
        return self._labels.get(node_id, _NO_LABELS).get(topology_key)

    def members(self, topology_key: str) -> Mapping[str, Set[str]]:
        """Ids of the nodes of every place that this key makes."""
        found = self._members.get(topology_key)
        if found is None:
            found = {}
            for node_id, labels in self._labels.items():
                place = place_of(node_id, labels, topology_key)
                if place is not None:
                    found.setdefault(place, set()).add(node_id)
            self._members[topology_key] = found
        return found
