"""Sizes and ages as people write and read them: "512MiB" to bytes and back, seconds to "2h5m" and back, moments."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.domain.quantities import GIB, MIB, format_bytes, parse_age_s, parse_bytes, parse_gib, parse_mib

__all__ = (
    "GIB",
    "MIB",
    "format_age",
    "format_bytes",
    "format_moment",
    "format_took",
    "parse_age_s",
    "parse_bytes",
    "parse_gib",
    "parse_mib",
)

_TENTHS_BELOW_S = 10
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400


def format_took(took_s: float) -> str:
    """Write how long something took: like an age, but short times more exactly: "33ms", "1.2s"."""
    if took_s < 1:
        return f"{max(took_s, 0) * 1000:.0f}ms"
    return f"{took_s:.1f}s" if took_s < _TENTHS_BELOW_S else format_age(took_s)


def format_moment(moment: datetime) -> str:
    """Write a moment in UTC, to the second: "2025-06-01T12:00:00Z"."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def format_age(age_s: float) -> str:
    """Write a duration by its two largest units: "45s", "3m", "2h5m", "4d3h". Negative ones are clocks apart: "0s"."""
    seconds = max(int(age_s), 0)
    if seconds < _MINUTE_S:
        return f"{seconds}s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S}m"
    if seconds < _DAY_S:
        return _two(seconds // _HOUR_S, "h", seconds % _HOUR_S // _MINUTE_S, "m")
    return _two(seconds // _DAY_S, "d", seconds % _DAY_S // _HOUR_S, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"
