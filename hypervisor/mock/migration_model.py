"""How a simulated migration goes: passes over the memory that get shorter, or do not. Pure functions of time.

Pre-copy as real hypervisors do it: all memory is sent while the guest runs, then what it wrote meanwhile, and so on,
until what is left takes no longer than the guest may stand still. Source: Clark et al., "Live Migration of Virtual
Machines", NSDI 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from hypervisor.migration import MigrationProgress, Phase

PAGE_BYTES: Final = 4096
DEFAULT_DOWNTIME_S: Final = 0.3
"""What QEMU aims at unless told. Source: its migration parameter `downtime-limit`."""
SWITCH_S: Final = 0.02
"""What handing over takes beside the memory that is left."""
THROTTLE: Final = 0.5
"""What a guest that is slowed down keeps of its speed, pass after pass."""
MAX_PASS_COUNT: Final = 1000


@dataclass(frozen=True, slots=True)
class Freight:
    """What is carried, and how."""

    memory_bytes: int
    disk_bytes: int
    dirty_bytes_s: int
    bandwidth_bytes_s: int
    max_downtime_s: float
    is_live: bool
    auto_converge: bool
    post_copy: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the memory, or over the disks, which come first."""

    begin_s: float
    end_s: float
    size_bytes: int
    is_disk: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """When what happens, in seconds since the beginning; `switch_s` is infinite if the guest writes too fast."""

    passes: tuple[Pass, ...]
    switch_s: float
    downtime_s: float
    end_s: float


def plot(freight: Freight) -> Course:
    """Say how a migration will go if nothing happens to it."""
    rate = max(freight.bandwidth_bytes_s, 1)
    disk_s = freight.disk_bytes / rate
    passes = [Pass(0.0, disk_s, freight.disk_bytes, is_disk=True)] if freight.disk_bytes else []
    if not freight.is_live:
        took_s = freight.memory_bytes / rate
        return Course(tuple(passes), disk_s, took_s + SWITCH_S, disk_s + took_s + SWITCH_S)
    at_s, left, dirty = disk_s, float(freight.memory_bytes), float(freight.dirty_bytes_s)
    limit_s = freight.max_downtime_s or DEFAULT_DOWNTIME_S
    for number in range(MAX_PASS_COUNT):
        took_s = left / rate
        if number and (took_s <= limit_s or freight.post_copy):
            is_post_copy = took_s > limit_s
            downtime_s = SWITCH_S if is_post_copy else took_s + SWITCH_S
            return Course(tuple(passes), at_s, downtime_s, at_s + took_s + SWITCH_S)
        passes.append(Pass(at_s, at_s + took_s, int(left)))
        at_s += took_s
        left = min(float(freight.memory_bytes), dirty * took_s)
        if freight.auto_converge and number:
            dirty *= THROTTLE
    return Course(tuple(passes), math.inf, 0.0, math.inf)


def progress_at(freight: Freight, course: Course, elapsed_s: float) -> MigrationProgress:
    """Say how far it is after so many seconds."""
    begun = [each for each in course.passes if each.begin_s <= elapsed_s]
    sent = sum(_sent(each, elapsed_s) for each in begun)
    disk = sum(_sent(each, elapsed_s) for each in begun if each.is_disk)
    total = freight.memory_bytes + freight.disk_bytes
    ahead = sum(each.size_bytes for each in course.passes[:2] if each.begin_s > elapsed_s)
    remaining = (begun[-1].size_bytes - _sent(begun[-1], elapsed_s) if begun else 0) + ahead
    is_switching = elapsed_s >= course.switch_s
    return MigrationProgress(
        phase=Phase.SWITCHING if is_switching else Phase.TRANSFERRING,
        transferred_bytes=sent,
        remaining_bytes=min(remaining, total),
        total_bytes=total,
        disk_transferred_bytes=disk,
        memory_page_count=(sent - disk) // PAGE_BYTES,
        dirty_bytes_s=freight.dirty_bytes_s,
        pass_count=sum(not each.is_disk for each in begun),
        elapsed_ms=int(elapsed_s * 1000),
        is_post_copy=is_switching and freight.post_copy and course.end_s - course.switch_s > course.downtime_s,
    )


def _sent(each: Pass, elapsed_s: float) -> int:
    if elapsed_s >= each.end_s or each.end_s <= each.begin_s:
        return each.size_bytes
    return int(each.size_bytes * (elapsed_s - each.begin_s) / (each.end_s - each.begin_s))
