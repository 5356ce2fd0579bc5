"""Whether hosts have what is recorded of them, by the digests in their heartbeats, without a reading for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from controlplane.reconcile.reports import expected_hash
from controlplane.services.ha_clock import clock_s
from controlplane.state.interface import Store, Transaction

BATCH_COUNT = 20
"""Nodes whose digests are worked out by one `recheck`: with thousands of them what was found counts for longer. As many
that were never looked at are looked at at once; one that changed always is."""


@dataclass(slots=True)
class Digests:
    """What each node's digest should be. Owned by the event loop's thread.

    Attributes:
        trust_s: how long a digest counts at least as it was worked out while its host says the same; 0 for each beat.
    """

    store: Store
    trust_s: float
    clock: Callable[[], float] = clock_s
    _expected: dict[str, str] = field(default_factory=dict)
    _checked_s: dict[str, float] = field(default_factory=dict)
    _again: dict[str, None] = field(default_factory=dict)
    """Nodes whose time has come, in that order."""
    _at_once_left: int = BATCH_COUNT

    def differs(self, node_id: str, said: str) -> bool:
        """Whether a host says another digest than was found last; a host that says none differs in nothing."""
        expected = self._expected.get(node_id)
        return bool(said) and expected is not None and said != expected

    def is_due(self, node_id: str, said: str) -> bool:
        """Whether the digest should be worked out for the answer to this heartbeat. Counts it as done.

        One that the host says, too, is left to `recheck` when its time has come; so are those that were never found,
        while many wait for that.
        """
        if self.trust_s <= 0:
            return True
        expected = self._expected.get(node_id)
        if expected is not None and said != expected:
            return True
        now_s = self.clock()
        if node_id in self._again or now_s - self._checked_s.get(node_id, -self.trust_s) < self.trust_s:
            return False
        if expected is None and self._at_once_left > 0:
            self._at_once_left -= 1
            return True
        self._again[node_id] = None
        return False

    async def recheck(self) -> None:
        """Work out the digests of the nodes that wait longest for it, in one transaction.

        Raises:
            ApiError: the database does not answer; what was found before counts on.
        """
        wanted = list(itertools.islice(self._again, BATCH_COUNT))
        if not wanted:
            self._at_once_left = BATCH_COUNT
            return
        began_s = self.clock()
        found = await self.store.read(lambda tx: _hashes(tx, wanted))
        self._expected |= found
        self._checked_s |= dict.fromkeys(found, began_s)
        for node_id in wanted:
            self._again.pop(node_id, None)

    async def check(self, node_id: str) -> None:
        """Work out a node's digest.

        Raises:
            ApiError: the database does not answer; what was found before counts on.
        """
        began_s = self.clock()
        self._expected[node_id] = await self.store.read(lambda tx: expected_hash(tx, node_id))
        self._checked_s[node_id] = began_s

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self._expected.pop(node_id, None)
        self._checked_s.pop(node_id, None)
        self._again.pop(node_id, None)


async def _hashes(tx: Transaction, node_ids: Collection[str]) -> dict[str, str]:
    return {node_id: await expected_hash(tx, node_id) for node_id in node_ids}
