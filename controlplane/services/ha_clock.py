"""The clock that everything in high availability counts by: one, since moments on two clocks cannot be compared."""

from __future__ import annotations

import time


def clock_s() -> float:
    """Seconds since the boot of this machine, which go on while it sleeps.

    What was read before a sleep must look old after it, so `time.monotonic`, which stands still then, is not enough.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
