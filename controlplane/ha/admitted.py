"""How many more VMs of a size leave the room that is kept for VMs of nodes that fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.domain.admission import KeptRoom
from controlplane.ha.admission import Ints, Room, refusal
from controlplane.scheduler.scores import column_of_points

MAX_TRIED: Final = 64
"""Nodes that are tried for one VM, as many as when it is placed in earnest."""
_FIRST_RUN: Final = 16
"""VMs that are put before it is first looked whether room is left; twice as many each time it is."""


@dataclass(frozen=True, slots=True)
class NewVm:
    """What is counted. `size` is in vCPUs and bytes."""

    size: tuple[int, int]
    is_protected: bool
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """How many on each node, by id, and why not one more; "" where no room that is kept stands in the way."""

    counts: Mapping[str, int]
    refusal: str


def admitted(before: Room, vm: NewVm, limits: Mapping[str, int], kept: KeptRoom) -> Admitted:
    """Put one after the other, each where the strategy has it, and count until the next would take room. Pure.

    A node that is refused once is refused for good. The count is that of some order, so no upper bound.

    Args:
        limits: how many each node can take at most, by id.
    """
    filling = _Filling(before, vm, kept, _order(before, vm, limits))
    run_count = _FIRST_RUN
    while len(run := filling.run(run_count)):
        fitting_count = filling.longest(run)
        filling.keep(run[:fitting_count])
        run_count *= 2
        if fitting_count < len(run):
            run_count = _FIRST_RUN
            if not filling.close_refused():
                break
    counts = dict(zip(before.node_ids, filling.counts.tolist(), strict=True))
    return Admitted({node_id: count for node_id, count in counts.items() if count}, filling.refusal)


def _order(room: Room, vm: NewVm, limits: Mapping[str, int]) -> Ints:
    """Places of the nodes that VMs go to one after the other, whatever is kept.

    Points of a node depend only on what is claimed there, so all are known at once. The best node is taken each time:
    where a node's points grow as it is filled, it is filled before any that was no better when it was begun with.
    """
    size = np.array(vm.size, np.float64)
    free = np.floor((room.capacity - room.claimed) / np.maximum(size, 1.0)).min(axis=1)
    most = np.array([limits.get(node_id, 0) for node_id in room.node_ids], np.float64)
    counts = np.clip(np.minimum(free, most), 0, None).astype(np.int64)
    nodes = np.repeat(np.arange(len(counts)), counts)
    if not len(nodes):
        return nodes
    starts = np.cumsum(counts) - counts
    number = np.arange(len(nodes)) - starts[nodes]
    loads = (room.claimed[nodes] + (number + 1)[:, None] * size) / np.maximum(room.capacity[nodes], 1.0)
    points = np.asarray(column_of_points(room.strategy, loads[:, 0], loads[:, 1]), np.float64)
    worst = np.concatenate([np.minimum.accumulate(each) for each in np.split(points, starts[1:])])
    return nodes[np.lexsort((number, nodes, -worst))]


class _Filling:
    """VMs that were put so far."""

    def __init__(self, before: Room, vm: NewVm, kept: KeptRoom, order: Ints) -> None:
        self._before = before
        self._room = before
        self._vm = vm
        self._kept = kept
        self._order = order
        self.counts: Ints = np.zeros(len(before.node_ids), np.int64)
        self.refusal = ""

    def run(self, count: int) -> Ints:
        """Return the nodes of the next so many VMs, or of as many as fit."""
        return self._order[:count]

    def longest(self, run: Ints) -> int:
        """How many of a run leave the room that is kept."""
        if not self._why_not(run):
            return len(run)
        good, bad = 0, len(run)
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._why_not(run[:middle]):
                bad = middle
            else:
                good = middle
        return good

    def keep(self, run: Ints) -> None:
        """Put a run for good."""
        self._room = self._with(run)
        np.add.at(self.counts, run, 1)
        self._order = self._order[len(run) :]

    def close_refused(self) -> bool:
        """Take out the nodes that would be next and are refused; whether one is left that is not."""
        for _ in range(MAX_TRIED):
            if not len(self._order):
                return False
            why = self._why_not(self._order[:1])
            if not why:
                return True
            self.refusal = self.refusal or why
            self._order = self._order[self._order != self._order[0]]
        return False

    def _why_not(self, run: Ints) -> str:
        return refusal(self._before, self._with(run), self._kept)

    def _with(self, run: Ints) -> Room:
        vm = self._vm
        return self._room.with_vms(run.tolist(), vm.size, is_protected=vm.is_protected, priority=vm.priority)
