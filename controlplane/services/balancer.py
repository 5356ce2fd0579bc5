"""The loops of balancing and alerts in one process; any number of processes may run them beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from controlplane.services.alert_watch import AlertWatch
from controlplane.services.alerts import AlertService
from controlplane.services.balancing import BalancingService
from controlplane.services.balancing_moves import BalancingMoves
from controlplane.state.interface import Store
from limiquantix.errors import Aborted, ApiError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BalancerConfig:
    """How often is looked, in seconds."""

    moves_interval_s: float = 2.0
    alerts_interval_s: float = 15.0
    run_check_interval_s: float = 5.0


class Balancer:
    """Runs balancing when it is due, carries out what is decided, and keeps alerts level."""

    def __init__(
        self,
        store: Store,
        service: BalancingService,
        moves: BalancingMoves,
        watch: AlertWatch,
        alerts: AlertService,
        now: Callable[[], datetime],
        config: BalancerConfig | None = None,
    ) -> None:
        self._store = store
        self._service = service
        self._moves = moves
        self._watch = watch
        self._alerts = alerts
        self._now = now
        self._config = config or BalancerConfig()

    async def run(self) -> None:
        """Do so until cancelled; a database that is away is waited for."""
        config = self._config
        async with asyncio.TaskGroup() as group:
            for name, interval_s, work in (
                ("moves", config.moves_interval_s, self._moves.advance),
                ("alerts", config.alerts_interval_s, self.look_for_alerts),
                ("balancing", config.run_check_interval_s, self.run_if_due),
            ):
                group.create_task(_repeat(name, interval_s, work), name=f"balancer-{name}")

    async def run_if_due(self) -> bool:
        """Make a run if the last one, of whichever process, is old enough; tells whether it did.

        Raises:
            ApiError: the database does not answer, or another process came first.
        """
        last = await self._store.read(lambda tx: tx.last_balancing_run())
        due_at = self._service.next_run_at(last)
        if due_at is None or due_at > self._now():
            return False
        await self._service.run_once()
        return True

    async def look_for_alerts(self) -> None:
        """Sync the alerts, and forget old ones."""
        await self._watch.look()
        await self._alerts.forget()


async def _repeat(name: str, interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            await work()
        except Aborted as error:
            _log.debug("another_process_did_it", what=name, reason=error.reason)
        except ApiError as error:
            _log.warning("balancer_could_not", what=name, reason=error.reason, message=error.message)
