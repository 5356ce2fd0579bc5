"""How quick something is, on machines that do other things at the same time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

_CALL_COUNT = 20
"""Few enough to get through between two moments at which the machine turns to something else."""
_DEADLINE_S = 30.0


async def best_s(call: Callable[[], Awaitable[object]], enough_s: float) -> float:
    """Return what one call takes at best; measures again and again until that is below `enough_s`, or for long."""
    best, until_s = float("inf"), time.monotonic() + _DEADLINE_S
    while best >= enough_s and time.monotonic() < until_s:
        began_s = time.perf_counter()
        for _ in range(_CALL_COUNT):
            await call()
        best = min(best, (time.perf_counter() - began_s) / _CALL_COUNT)
    return best
