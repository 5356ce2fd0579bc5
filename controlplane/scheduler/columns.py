"""Numbers of nodes side by side, for answers about all nodes at once, and what changed since somebody looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlplane.scheduler.snapshot import Candidate

BLOCK: Final = 128
"""Slots whose best score is kept: near the square root of 10,000, so that neither blocks nor slots of one are many."""
NO_LIMIT: Final = 2**31
_MAX_LOG: Final = 8192
"""Changes that are remembered. Whoever looked earlier begins anew, which then costs about as much as catching up."""

CAPACITY: Final = slice(0, 2)
"""Rows of the table: vCPUs, then bytes of memory, in each of these."""
USED: Final = slice(2, 4)
DIVISORS: Final = slice(4, 6)
"""The capacity, or 1 where there is none."""
MOST_VCPUS: Final = 6
"""vCPUs that a machine there can have."""
_ROW_COUNT: Final = 7
_USED_VCPUS, _USED_MEMORY = 2, 3

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class ChangeLog:
    """Numbers of slots in the order in which they changed. Readers keep their own position."""

    def __init__(self) -> None:
        self._entries: list[int] = []
        self._first = 0

    @property
    def end(self) -> int:
        """Position after the last change."""
        return self._first + len(self._entries)

    def note(self, slot: int) -> None:
        """Note a change."""
        self._entries.append(slot)
        if len(self._entries) > _MAX_LOG:
            dropped = len(self._entries) // 2
            del self._entries[:dropped]
            self._first += dropped

    def since(self, position: int) -> Sequence[int] | None:
        """Slots that changed since the position, some perhaps twice; None if that is not remembered any more."""
        if position < self._first:
            return None
        return self._entries[position - self._first :]


class Columns:
    """What is counted of each slot, as one table with a row for each number, so that one look takes all of them.

    All are floats: whole numbers below 2**53 are exact, which is 8 PiB of memory. An empty slot has no capacity, and
    nothing that is in use ever points to it.
    """

    def __init__(self, slot_count: int) -> None:
        self.table: Floats = np.zeros((_ROW_COUNT, max(BLOCK, -(-slot_count // BLOCK) * BLOCK)), np.float64)
        self.table[DIVISORS] = 1.0
        self.has_zeros = False
        """Whether some node ever had a capacity of 0, which counts as full and divides nothing."""
        self.least_limit = NO_LIMIT
        """No node ever had machines of fewer vCPUs at most than this."""

    @property
    def size(self) -> int:
        """Slots that there is room for, a multiple of `BLOCK`."""
        return int(self.table.shape[1])

    def put(self, slot: int, candidate: Candidate) -> None:
        """Write down a node."""
        vcpus, memory_bytes = candidate.capacity.vcpus, candidate.capacity.memory_bytes
        machine = candidate.inventory.machine
        limit = (machine.max_vcpus if machine else 0) or NO_LIMIT
        used = candidate.allocated
        divisors = max(vcpus, 1), max(memory_bytes, 1)
        self.table[:, slot] = vcpus, memory_bytes, used.vcpus, used.memory_bytes, *divisors, limit
        self.least_limit = min(self.least_limit, limit)
        self.has_zeros |= vcpus <= 0 or memory_bytes <= 0

    def put_claims(self, slot: int, candidate: Candidate) -> None:
        """Write down what is claimed on a node."""
        self.table[_USED_VCPUS, slot] = candidate.allocated.vcpus
        self.table[_USED_MEMORY, slot] = candidate.allocated.memory_bytes

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.table[:, slot] = 0.0
        self.table[DIVISORS, slot] = 1.0

    def grown(self) -> Columns:
        """Return a copy with twice the room."""
        larger = Columns(2 * self.size)
        larger.table[:, : self.size] = self.table
        larger.has_zeros, larger.least_limit = self.has_zeros, self.least_limit
        return larger
