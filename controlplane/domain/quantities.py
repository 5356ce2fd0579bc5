"""Sizes and durations as people write them: "512MiB" to bytes and back, "1h30m" to seconds.

Only binary units are taken. "GB" means two things to two people, so it is refused with the unit to write instead.
"""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTOR_OF_UNIT = {
    **{unit.lower(): 1024**power for power, unit in enumerate(_UNITS)},
    **{unit[0].lower(): 1024**power for power, unit in enumerate(_UNITS) if power},
}
_DECIMAL_UNITS = {"kb": "KiB", "mb": "MiB", "gb": "GiB", "tb": "TiB", "pb": "PiB"}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", re.ASCII)

_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?", re.ASCII)

MIB = 2**20
GIB = 2**30

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400


def parse_bytes(text: str) -> int:
    """Read a size such as "512MiB", "1.5 GiB" or "2G" (the same as "2GiB").

    Raises:
        ValueError: it is no size, has no unit or a decimal one, or is no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r:.60} is not a size; write for example 512MiB or 2GiB")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"{text!r} has no unit; write {number}MiB or {number}GiB")
    if unit.lower() in _DECIMAL_UNITS:
        raise ValueError(f"{unit!r} may mean 1000s or 1024s; write {_DECIMAL_UNITS[unit.lower()]}, which is 1024s")
    factor = _FACTOR_OF_UNIT.get(unit.lower())
    if factor is None:
        raise ValueError(f"{unit!r:.60} is not a unit; units are {', '.join(_UNITS[1:])}")
    size_bytes = Fraction(number) * factor
    if size_bytes.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size_bytes)


def parse_mib(text: str) -> int:
    """Read a size in whole MiB, see `parse_bytes`."""
    return _whole(text, MIB, "MiB")


def parse_gib(text: str) -> int:
    """Read a size in whole GiB, see `parse_bytes`."""
    return _whole(text, GIB, "GiB")


def _whole(text: str, unit_bytes: int, unit: str) -> int:
    count, rest = divmod(parse_bytes(text), unit_bytes)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of {unit}")
    return count


def format_bytes(size_bytes: int) -> str:
    """Write a size in the largest unit that leaves at least 1, with at most one decimal: "1.5 GiB"."""
    value, power = float(size_bytes), 0
    while round(value, 1) >= 1024 and power < len(_UNITS) - 1:
        value /= 1024
        power += 1
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[power]}"


def parse_age_s(text: str) -> int:
    """Read a duration such as "90s", "15m", "1h30m" or "2d" as seconds.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r:.60} is not a duration; write for example 90s, 15m, 1h30m or 2d")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * _DAY_S + hours * _HOUR_S + minutes * _MINUTE_S + seconds
