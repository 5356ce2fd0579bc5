"""How long what nobody waits for is left alone after it failed: longer each time in a row. Pure."""

from __future__ import annotations

FIRST_BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 300.0


def back_off_s(failure_count: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds; 0 after none."""
    if failure_count <= 0:
        return 0.0
    return min(FIRST_BACK_OFF_S * 2.0 ** min(failure_count - 1, 32), MAX_BACK_OFF_S)
