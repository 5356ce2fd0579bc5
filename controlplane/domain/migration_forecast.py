"""Predict how long a migration takes and how long its guest stands still. Pure.

The model is that of iterative pre-copy: a first pass sends all memory, each further one what the guest wrote during the
one before, until what is left can be sent while the guest stands still. With memory V, rate of writing D and bandwidth
B, the passes take V/B, V/B * D/B, V/B * (D/B)^2, ...: they shrink if and only if D < B.
Source: Clark et al., "Live Migration of Virtual Machines", NSDI 2005, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_MBIT = 125_000

DEFAULT_MAX_DOWNTIME_MS = 300
"""How long a guest may stand still when nobody says: QEMU's own default (`downtime-limit`)."""

SWITCH_S = 0.03
"""What handing over takes beside memory: device state, and the target's first instruction."""

SET_UP_S = 0.5
"""What comes before and after sending: checks, connections, the target's process."""

MAX_PASSES = 100
"""Passes after which one that shrinks too slowly is taken for one that does not end."""

THROTTLE_STEPS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.01)
"""What is left of a guest's speed with auto-converge, one after the other, as long as passes do not shrink: QEMU begins
with 20 % and adds 10 % each time, up to 99 % (`cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle`)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What has to be carried. `memory_bytes` is 0 for a VM that is off, `disk_bytes` where the hosts share storage."""

    memory_bytes: int
    dirty_bytes_per_s: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Way:
    """How it is carried; `live` False lets the guest stand still for all of its memory."""

    bandwidth_bytes_per_s: int
    max_downtime_ms: int
    live: bool = True
    auto_converge: bool = False
    post_copy: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a migration will take.

    `converges` tells whether the passes come to an end by themselves, without slowing the guest down or post-copy;
    `ends` whether they do with what is allowed. One that does not end has the figures of giving up.
    """

    duration_ms: int
    downtime_ms: int
    pass_count: int
    converges: bool
    ends: bool


def forecast(load: Load, way: Way) -> Forecast:
    """Predict a migration."""
    bandwidth = max(way.bandwidth_bytes_per_s, 1)
    before_s = SET_UP_S + load.disk_bytes / bandwidth
    if not load.memory_bytes:
        return Forecast(_ms(before_s), 0, 0, converges=True, ends=True)
    if not way.live:
        still_s = load.memory_bytes / bandwidth + SWITCH_S
        return Forecast(_ms(before_s + still_s), _ms(still_s), 1, converges=True, ends=True)
    plain = _passes(load, way, bandwidth, ())
    if plain.ends:
        return _with(plain, before_s, converges=True)
    if way.post_copy:
        return _post_copied(load, bandwidth, before_s)
    if way.auto_converge:
        return _with(_passes(load, way, bandwidth, THROTTLE_STEPS), before_s, converges=False)
    return _with(plain, before_s, converges=False)


@dataclass(frozen=True, slots=True)
class _Passes:
    sending_s: float
    still_s: float
    count: int
    ends: bool


def _passes(load: Load, way: Way, bandwidth: int, throttling: tuple[float, ...]) -> _Passes:
    """Send pass after pass, the guest slowed down by one step more whenever one was no shorter than the one before."""
    limit_s = way.max_downtime_ms / 1000
    speed, steps = 1.0, list(throttling)
    left_bytes, sent_s = float(load.memory_bytes), 0.0
    for count in range(1, MAX_PASSES + 1):
        pass_s = left_bytes / bandwidth
        sent_s += pass_s
        written = min(load.dirty_bytes_per_s * speed * pass_s, float(load.memory_bytes))
        if written / bandwidth <= limit_s:
            return _Passes(sent_s, written / bandwidth + SWITCH_S, count, ends=True)
        if written >= left_bytes / 2:
            if steps:
                speed = steps.pop(0)
            elif written >= left_bytes:
                return _Passes(sent_s, written / bandwidth + SWITCH_S, count, ends=False)
        left_bytes = written
    return _Passes(sent_s, left_bytes / bandwidth + SWITCH_S, MAX_PASSES, ends=False)


def _post_copied(load: Load, bandwidth: int, before_s: float) -> Forecast:
    """One pass, the switch, and then what was written meanwhile, on demand."""
    first_s = load.memory_bytes / bandwidth
    rest_s = min(load.dirty_bytes_per_s * first_s, float(load.memory_bytes)) / bandwidth
    total_s = before_s + first_s + SWITCH_S + rest_s
    return Forecast(_ms(total_s), _ms(SWITCH_S), 2, converges=False, ends=True)


def _with(passes: _Passes, before_s: float, *, converges: bool) -> Forecast:
    total_s = before_s + passes.sending_s + passes.still_s
    return Forecast(_ms(total_s), _ms(passes.still_s), passes.count, converges, passes.ends)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
