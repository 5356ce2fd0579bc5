"""Cutting the power of fenced hosts: one task a fence, with a limit, beside the loop that decides."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

import structlog

from controlplane.domain.fencing import FenceState
from controlplane.ha.model import CutPower, PowerResult
from controlplane.power.interface import PowerControllers, PowerFailed
from controlplane.services.ha_effects import Term
from controlplane.services.ha_observe import PowerAttempt
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)

NOT_TRIED = PowerAttempt()


@dataclass(slots=True)
class PowerCuts:
    """What is being cut and how it went, by fence. Owned by the event loop's thread."""

    store: Store
    controllers: PowerControllers
    limit_s: float
    _attempts: dict[str, PowerAttempt] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def of(self, fence_id: str) -> PowerAttempt:
        """Return how it went for a fence."""
        return self._attempts.get(fence_id, NOT_TRIED)

    def begin(self, term: Term, effect: CutPower, hostname: str) -> None:
        """Have the power cut; does nothing while that is under way, or once it is off."""
        if self.of(effect.fence_id).result in (PowerResult.UNDER_WAY, PowerResult.OFF):
            return
        self._attempts[effect.fence_id] = PowerAttempt(PowerResult.UNDER_WAY)
        task = asyncio.get_running_loop().create_task(self._cut(term, effect, hostname), name=f"power-{hostname}")
        self._tasks[effect.fence_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(effect.fence_id, None))

    async def _cut(self, term: Term, effect: CutPower, hostname: str) -> None:
        controller = self.controllers.of(hostname)
        if controller is None:
            attempt = PowerAttempt(PowerResult.FAILED, f"no power controller of {hostname} is configured any more")
        else:
            try:
                await self.store.run(lambda tx: _require_open(tx, term, effect.fence_id))
                async with asyncio.timeout(self.limit_s):
                    evidence = await controller.cut(self.limit_s)
                attempt = PowerAttempt(PowerResult.OFF, evidence.words)
            except PowerFailed as error:
                attempt = PowerAttempt(PowerResult.FAILED, str(error))
            except TimeoutError:
                said = f"{controller.kind} controller of {hostname} did not answer within {self.limit_s:g} s"
                attempt = PowerAttempt(PowerResult.FAILED, said)
            except (ApiError, _NoLongerOpen) as error:
                attempt = PowerAttempt(PowerResult.FAILED, f"the power was not cut: {error}")
        self._attempts[effect.fence_id] = attempt
        log = _log.bind(node_id=effect.node_id, fence_id=effect.fence_id, said=attempt.evidence)
        if attempt.result is PowerResult.OFF:
            log.warning("power_cut")
        else:
            log.warning("power_not_cut")

    def keep(self, fence_ids: Collection[str]) -> None:
        """Forget all other fences, and let go of what is under way for them."""
        for fence_id in self._attempts.keys() - set(fence_ids):
            del self._attempts[fence_id]
            if (task := self._tasks.get(fence_id)) is not None:
                task.cancel()

    async def stop(self) -> None:
        """Let go of all that is under way."""
        tasks = list(self._tasks.values())
        self.keep(())
        await asyncio.gather(*tasks, return_exceptions=True)


class _NoLongerOpen(Exception):
    """A fence ended or was withdrawn before its power was cut."""


async def _require_open(tx: Transaction, term: Term, fence_id: str) -> None:
    """Check that this process still decides, and that the host is still to be fenced.

    Raises:
        Aborted: another process decides.
    """
    await tx.require_epoch(term.epoch)
    fence = await tx.get_fence(fence_id)
    if fence is None or fence.state != FenceState.OPEN:
        raise _NoLongerOpen("its fence is over")
