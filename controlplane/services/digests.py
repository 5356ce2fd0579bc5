"""Whether hosts have what is recorded of them, by the digests in their heartbeats, without a reading for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from controlplane.reconcile.reports import expected_hash
from controlplane.services.ha_clock import clock_s
from controlplane.state.interface import Store

RECHECKS_PER_S = 20.0
"""Of nodes whose hosts say what was found last: of all nodes together, so that with many of them it counts for longer.
A digest that changed is looked at at once."""


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
    _budget: float = RECHECKS_PER_S
    _filled_s: float = 0.0

    def differs(self, node_id: str, said: str) -> bool:
        """Whether a host says another digest than was found last; a host that says none differs in nothing."""
        expected = self._expected.get(node_id)
        return bool(said) and expected is not None and said != expected

    def is_due(self, node_id: str, said: str) -> bool:
        """Whether the digest should be worked out again for this heartbeat. Counts it as done."""
        if self.trust_s <= 0:
            return True
        expected = self._expected.get(node_id)
        if expected is not None and said != expected:
            return True
        now_s = self.clock()
        if now_s - self._checked_s.get(node_id, -self.trust_s) < self.trust_s:
            return False
        self._budget = min(RECHECKS_PER_S, self._budget + (now_s - self._filled_s) * RECHECKS_PER_S)
        self._filled_s = now_s
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

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
