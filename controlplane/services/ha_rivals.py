"""Control planes that decide beside this one although nothing coordinates them: found out by being deposed.

Without a coordination service a process is elected by itself, whoever else there is on the same database. The epochs
keep what both write apart, but each would take the lead from the other for ever. So one that was deposed leaves it to
the other for as long as that one lives, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from controlplane.domain.fencing import Leadership
from controlplane.domain.operation import Replica
from controlplane.operations.worker import Liveness
from controlplane.services.ha_clock import clock_s
from controlplane.state.interface import Store, Transaction

_log = structlog.get_logger(__name__)

DEAD_AFTER_S = 15.0
"""Of a rival that shows no sign of life in the database for so long, this process takes the lead."""


@dataclass(slots=True)
class Rivals:
    """The process that decides instead of this one, if it was deposed.

    Attributes:
        own_id: of this process, in the table of processes and as a leader.
    """

    store: Store
    own_id: str
    clock: Callable[[], float] = clock_s
    _rival: Leadership | None = None
    _liveness: Liveness = field(default_factory=lambda: Liveness(DEAD_AFTER_S))

    def deposed_by(self, leader: Leadership) -> None:
        """Take note of who began a newer epoch."""
        if leader.leader_id in ("", self.own_id):
            return
        self._rival = leader
        _log.error("several_control_planes_without_coordination", leader_id=leader.leader_id, remedy=_words(leader))

    async def obstacle(self) -> str:
        """Say why this process leaves the lead to another one; "" if it does not.

        Raises:
            ApiError: the database does not answer.
        """
        if self._rival is None:
            return ""
        leadership, replicas = await self.store.read(_read)
        living = {each.id for each in replicas} - self._liveness.dead_of(replicas, self.clock())
        is_rival = leadership.leader_id != self.own_id and leadership.leader_id in living
        self._rival = leadership if is_rival else None
        return _words(leadership) if is_rival else ""


async def _read(tx: Transaction) -> tuple[Leadership, Sequence[Replica]]:
    return await tx.leadership(), await tx.all_replicas()


def _words(leader: Leadership) -> str:
    return (
        f"the control plane on {leader.hostname or 'another machine'} ({leader.leader_id}) decides on the same "
        "database, and nothing coordinates it with this one (coordination.backend is local); give all control planes "
        "the same etcd, or stop all but one"
    )
