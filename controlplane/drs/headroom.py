"""Whether the VMs of nodes that fail would find room on the others: by their claims, whatever the rules.

VMs of nodes that are down already need that room first. Nodes that take no part in balancing may fail too, but their
room is not counted: nothing is placed there.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import combinations
from typing import Final

import numpy as np

from controlplane.drs.board import CLAIMED, Board, Floats, Ints

MAX_FAILED_SETS: Final = 256
"""Of several nodes that fail at once all sets are tried up to this many; beyond, those of the fullest nodes."""
LOST: Final = -1
"""What is survived where not even the VMs of nodes that are down have room."""
_FEW_NODES: Final = 64
"""Up to so many are looked at one by one; of more, those with equal largest VMs together."""
_CHUNK_CELLS: Final = 1_000_000


def failures_survived(board: Board, most: int) -> int:
    """Count how many nodes, whichever they are, may fail at once: 0 to `most`, or `LOST`."""
    for count in range(most + 1):
        if not survives(board, count):
            return count - 1
    return most


def survives(board: Board, failed_count: int) -> bool:
    """Whether the VMs of any `failed_count` nodes have room on the rest, largest first on the roomiest node.

    A negative count asks for nothing.
    """
    node_count = len(board.nodes)
    if failed_count < 0:
        return True
    if failed_count == 0:
        return len(board.stranded) == 0 or _has_room_elsewhere(board, ())
    if failed_count >= node_count:
        return len(board.vms) == 0 and len(board.stranded) == 0 and not board.outside
    if failed_count == 1:
        return all(_has_room_elsewhere(board, (node,)) for node in _doubtful(board))
    return all(_has_room_elsewhere(board, failed) for failed in _failed_sets(board, failed_count))


def _doubtful(board: Board) -> Iterator[int]:
    """Nodes of which the quick look does not show that as many of their largest VM would find room elsewhere.

    Those of `board.outside` follow upon the others, in their numbers too.
    """
    node_count, outside, stranded = len(board.nodes), board.outside, board.stranded
    counts = np.concatenate([board.vm_count, [len(claims) for claims in outside]]).astype(np.intp) + len(stranded)
    largest = np.vstack([board.largest, *(claims.max(axis=0) for claims in outside)])
    if len(stranded):
        largest = np.maximum(largest, stranded.max(axis=0))
    largest = np.maximum(largest, 1.0)
    if len(counts) <= _FEW_NODES:
        sizes, which = largest, np.arange(len(counts))
    else:
        sizes, which = np.unique(largest, axis=0, return_inverse=True)
    totals, own = _slots(np.maximum(board.free, 0.0), sizes, which.reshape(-1)[:node_count])
    places = totals[which.reshape(-1)]
    places[:node_count] -= own
    yield from (int(node) for node in np.flatnonzero(places < counts))


def _slots(free: Floats, sizes: Floats, which: Ints) -> tuple[Floats, Floats]:
    """Count how many VMs of each size all nodes have room for, and of size `which[i]` node i."""
    totals, own = np.zeros(len(sizes)), np.zeros(len(free))
    chunk = max(_CHUNK_CELLS // max(len(free), 1), 1)
    for begin in range(0, len(sizes), chunk):
        part = sizes[begin : begin + chunk, None, :]
        slots = np.minimum(free[None, :, 0] // part[..., 0], free[None, :, 1] // part[..., 1])
        totals[begin : begin + chunk] = slots.sum(axis=1)
        mine = np.flatnonzero((which >= begin) & (which < begin + chunk))
        own[mine] = slots[which[mine] - begin, mine]
    return totals, own


def _failed_sets(board: Board, failed_count: int) -> Iterator[tuple[int, ...]]:
    claimed = np.concatenate([board.used[:, 3], [claims[:, 1].sum() for claims in board.outside]])
    fullest = np.argsort(-claimed, kind="stable")
    kept = len(claimed)
    while kept > failed_count and _set_count(kept, failed_count) > MAX_FAILED_SETS:
        kept -= 1
    return combinations((int(node) for node in fullest[:kept]), failed_count)


def _set_count(count: int, chosen: int) -> int:
    total = 1
    for index in range(chosen):
        total = total * (count - index) // (index + 1)
    return total


def _has_room_elsewhere(board: Board, failed: tuple[int, ...]) -> bool:
    free, node_count = board.free, len(board.nodes)
    gone = set(failed)
    here = board.size[np.isin(board.place, [node for node in failed if node < node_count]), CLAIMED]
    claims = np.vstack(
        [here, board.stranded, *(board.outside[node - node_count] for node in failed if node >= node_count)]
    )
    order = np.lexsort((-claims[:, 0], -claims[:, 1]))
    # Roomiest first: what does not fit there by memory fits nowhere.
    heap = [(-float(free[node, 1]), -float(free[node, 0]), node) for node in range(len(free)) if node not in gone]
    heapq.heapify(heap)
    for vcpus, memory in claims[order].tolist():
        passed = []
        found = False
        while heap:
            free_memory, free_vcpus, node = heapq.heappop(heap)
            if -free_memory < memory:
                passed.append((free_memory, free_vcpus, node))
                break
            if -free_vcpus >= vcpus:
                heapq.heappush(heap, (free_memory + memory, free_vcpus + vcpus, node))
                found = True
                break
            passed.append((free_memory, free_vcpus, node))
        for entry in passed:
            heapq.heappush(heap, entry)
        if not found:
            return False
    return True
