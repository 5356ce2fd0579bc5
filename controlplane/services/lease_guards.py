"""What hosts say of their guards, kept on record: when it changes, and before a lease is granted upon it.

The end of a lease proves nothing of a host that cannot fence itself. So as long as the record claims more than the host
says, it gets no lease; one that the record says less of may have it, since then its end proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controlplane.domain.fencing import NodeGuard
from controlplane.services.hearing import Heard
from controlplane.state.interface import Store

MAX_OBSTACLE_LENGTH = 512
READ_INTERVAL_S = 10.0
"""Other processes write them too."""
BATCH_COUNT = 100
"""Guards recorded in one transaction: each takes a few statements, and others wait to write meanwhile."""


def guard_of(heard: Heard, kill_s: float) -> NodeGuard:
    """Return what a heartbeat says of a host's guard. Pure.

    Args:
        kill_s: time within which a host must have killed its protected VMs after the end of its lease.
    """
    can, obstacle = heard.can_self_fence, heard.self_fencing_obstacle
    if can and not heard.self_fences_within_ms:
        can, obstacle = False, "the host does not say how fast it kills its VMs"
    elif can and heard.self_fences_within_ms > kill_s * 1000:
        can = False
        obstacle = f"it takes {heard.self_fences_within_ms} ms to kill its VMs; ha.kill_s allows {kill_s * 1000:.0f} ms"
    return NodeGuard(
        node_id=heard.node_id,
        ha_version=heard.known_ha_version,
        can_self_fence=can,
        obstacle="" if can else obstacle[:MAX_OBSTACLE_LENGTH],
        boot_id=heard.boot_id,
        noted_at=heard.at,
    )


def _is_news(recorded: NodeGuard | None, said: NodeGuard) -> bool:
    return recorded is None or (
        said.ha_version > recorded.ha_version
        or said.can_self_fence != recorded.can_self_fence
        or said.obstacle != recorded.obstacle
        or said.boot_id != recorded.boot_id
    )


@dataclass(slots=True)
class LeaseGuards:
    """Guards as they are recorded, and those that are to be. Owned by the event loop's thread."""

    store: Store
    kill_s: float
    clock: Callable[[], float]
    _recorded: dict[str, NodeGuard] = field(default_factory=dict)
    _to_record: dict[str, NodeGuard] = field(default_factory=dict)
    _risen: set[str] = field(default_factory=set)
    _read_s: float | None = None

    def backs(self, heard: Heard) -> bool:
        """Take in what a host says; whether the record claims no more than that, so that it may have a lease.

        What was never read claims anything.
        """
        recorded = self._recorded.get(heard.node_id)
        said = guard_of(heard, self.kill_s)
        if _is_news(recorded, said):
            self._to_record[heard.node_id] = said
        else:
            self._to_record.pop(heard.node_id, None)
        if self._read_s is None:
            return said.can_self_fence
        return recorded is None or said.can_self_fence or not recorded.can_self_fence

    async def sync(self) -> None:
        """Record what is news, and read now and then what others recorded.

        Raises:
            ApiError: the database does not answer; nothing is lost.
        """
        news = list(self._to_record.values())
        for first in range(0, len(news), BATCH_COUNT):
            await self._record(news[first : first + BATCH_COUNT])
        now_s = self.clock()
        if self._read_s is None or now_s - self._read_s >= READ_INTERVAL_S:
            guards = await self.store.read(lambda tx: tx.node_guards())
            self._recorded = {guard.node_id: guard for guard in guards}
            self._read_s = now_s

    async def _record(self, news: Sequence[NodeGuard]) -> None:
        await self.store.run(lambda tx: tx.note_guards(news))
        for guard in news:
            known = self._recorded.get(guard.node_id)
            if guard.can_self_fence and not (known is not None and known.can_self_fence):
                self._risen.add(guard.node_id)
            version = max(guard.ha_version, known.ha_version if known else 0)
            self._recorded[guard.node_id] = NodeGuard(
                guard.node_id, version, guard.can_self_fence, guard.obstacle, guard.boot_id, guard.noted_at
            )
            if self._to_record.get(guard.node_id) is guard:
                del self._to_record[guard.node_id]

    def has_risen(self, node_id: str) -> bool:
        """Whether it was recorded, since this was asked last, that a host fences itself that did not before.

        Its VMs that are there already can be protected now, which its next full state brings about.
        """
        if node_id not in self._risen:
            return False
        self._risen.discard(node_id)
        return True

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self._risen.discard(node_id)
        self._recorded.pop(node_id, None)
        self._to_record.pop(node_id, None)
