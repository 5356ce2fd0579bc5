"""Who has left a node that is being emptied, who is under way, who cannot go, and what to do next. Pure.

A roster names every VM that was seen on the node. It is brought up to date from what is recorded, again and again, and
written down before anything is begun: whoever takes the work up from a process that died knows all of them.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.domain.operation import Json, Operation
from controlplane.domain.vm import ALIVE_STATES, Vm
from limiquantix.errors import Reason

MAX_ATTEMPTS = 3
"""Moves that are begun for one VM: more than one if it was started or stopped, or something else went first."""

_PASSING = frozenset({Reason.VM_STATE_FORBIDS, Reason.OPERATION_CANCELLED, Reason.CONCURRENT_CHANGE})
"""Refusals for what the VM was at that moment, which may be different by now."""

_MAX_SHOWN_CHARS = 160


class Fate(enum.StrEnum):
    """What has become of a VM of the node."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    STUCK = "stuck"
    STOPPING = "stopping"
    STOPPED = "stopped"
    GONE = "gone"


UNDER_WAY = frozenset({Fate.MOVING, Fate.STOPPING})


@dataclass(frozen=True, slots=True)
class Evacuee:
    """One VM. `operation_id` is the operation that moves or stops it, `attempt` counts moves that were begun from 1.

    One that is STOPPING without an operation is to be stopped, which is written down before it is asked for: once it
    is off, nothing else would tell that it was stopped.
    """

    vm_id: str
    name: str
    fate: Fate = Fate.WAITING
    why: str = ""
    operation_id: str = ""
    attempt: int = 1
    was_stop_tried: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """What is recorded at one moment.

    Attributes:
        here: VMs placed on the node, by id.
        elsewhere: nodes of VMs of the roster that are placed on others, by VM id.
        operations: those under way for VMs of the roster, and how they ended, by id.
    """

    here: Mapping[str, Vm]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    operations: Mapping[str, Operation] = field(default_factory=dict)


Roster = Mapping[str, Evacuee]
"""By VM id, in the order in which they were seen."""


def brought_up_to_date(roster: Roster, sight: Sight, *, may_try_again: bool) -> Roster:
    """Return the roster as it is by now, with VMs that were not seen before.

    Args:
        may_try_again: whether VMs that could not be moved for a passing reason are waited for once more.
    """
    known = {vm_id: _judged(each, sight, may_try_again) for vm_id, each in roster.items()}
    new = {vm_id: _seen(vm) for vm_id, vm in sight.here.items() if vm_id not in known}
    return known | new


def _seen(vm: Vm) -> Evacuee:
    if vm.is_managed:
        return Evacuee(vm.id, vm.name)
    why = "it was found on its host and is only shown; take it over, or move it with the tool that made it"
    return Evacuee(vm.id, vm.name, Fate.STUCK, why, was_stop_tried=True)


def _judged(evacuee: Evacuee, sight: Sight, may_try_again: bool) -> Evacuee:
    operation = sight.operations.get(evacuee.operation_id)
    if evacuee.fate in UNDER_WAY and operation is not None and not operation.has_ended:
        return evacuee
    if evacuee.vm_id not in sight.here:
        return replace(evacuee, fate=Fate.MOVED if evacuee.vm_id in sight.elsewhere else Fate.GONE, why="")
    if evacuee.fate is Fate.STOPPING:
        return _stopped(evacuee, operation) if evacuee.operation_id else evacuee
    if evacuee.fate is Fate.MOVING:
        return _not_moved(evacuee, operation, may_try_again)
    if evacuee.fate in (Fate.MOVED, Fate.GONE):  # it came back
        return replace(evacuee, fate=Fate.WAITING, attempt=evacuee.attempt + 1, operation_id="")
    return evacuee


def _stopped(evacuee: Evacuee, operation: Operation | None) -> Evacuee:
    fault = None if operation is None else operation.fault
    if fault is None:
        return replace(evacuee, fate=Fate.STOPPED)
    return replace(evacuee, fate=Fate.STUCK, why=f"{evacuee.why}; nor could it be stopped: {fault.message}")


def _not_moved(evacuee: Evacuee, operation: Operation | None, may_try_again: bool) -> Evacuee:
    fault = None if operation is None else operation.fault
    reason, why = ("", "it is on the node again after it was moved") if fault is None else (fault.reason, fault.message)
    return refused(evacuee, reason, why, may_try_again=may_try_again)


def refused(evacuee: Evacuee, reason: str, why: str, *, may_try_again: bool = True) -> Evacuee:
    """Return one that was not moved: to be tried again if the reason passes, else stuck.

    Args:
        reason: stable cause of the refusal; "" for none.
    """
    if (not reason or reason in _PASSING) and may_try_again and evacuee.attempt < MAX_ATTEMPTS:
        return replace(evacuee, fate=Fate.WAITING, attempt=evacuee.attempt + 1, operation_id="")
    return replace(evacuee, fate=Fate.STUCK, why=why)


def given_up(roster: Roster, why: str) -> Roster:
    """Return the roster with those who wait told that they will not be moved."""
    return {
        vm_id: replace(each, fate=Fate.STUCK, why=why) if each.fate is Fate.WAITING else each
        for vm_id, each in roster.items()
    }


def next_to_move(roster: Roster, sight: Sight, at_once: int) -> Sequence[Evacuee]:
    """Name those to be moved next: the largest first, which have the fewest places to go."""
    free = at_once - sum(each.fate in UNDER_WAY for each in roster.values())
    waiting = [each for each in roster.values() if each.fate is Fate.WAITING and each.vm_id in sight.here]
    return sorted(waiting, key=lambda each: (-sight.here[each.vm_id].memory_bytes, each.vm_id))[: max(free, 0)]


def with_stops(roster: Roster, sight: Sight) -> Roster:
    """Return the roster with those to be stopped that cannot be moved, are in memory, and were not stopped before."""
    return {
        vm_id: replace(each, fate=Fate.STOPPING, operation_id="", was_stop_tried=True)
        if each.fate is Fate.STUCK
        and not each.was_stop_tried
        and vm_id in sight.here
        and sight.here[vm_id].power_state in ALIVE_STATES
        else each
        for vm_id, each in roster.items()
    }


def next_to_stop(roster: Roster) -> Sequence[Evacuee]:
    """Name those whose stop is to be asked for."""
    return [each for each in roster.values() if each.fate is Fate.STOPPING and not each.operation_id]


def is_over(roster: Roster) -> bool:
    """Whether nobody waits and nobody is under way."""
    return all(each.fate not in UNDER_WAY and each.fate is not Fate.WAITING for each in roster.values())


def summary_of(roster: Roster) -> str:
    """Say how far it is, such as "7 of 10 moved, 2 moving, 1 stuck (db-1: ...)"."""
    counts = Counter(each.fate for each in roster.values() if each.fate is not Fate.GONE)
    parts = [f"{counts[Fate.MOVED]} of {counts.total()} moved"]
    parts += [
        f"{counts[fate]} {fate.value}"
        for fate in (Fate.MOVING, Fate.WAITING, Fate.STOPPING, Fate.STOPPED, Fate.STUCK)
        if counts[fate]
    ]
    first = next((each for each in roster.values() if each.fate is Fate.STUCK), None)
    if first is not None:
        parts[-1] += f" ({first.name}: {first.why[:_MAX_SHOWN_CHARS]})"
    return ", ".join(parts)


def to_json(roster: Roster) -> Json:
    """Write a roster as the result of a step, which people read too."""
    return {
        "vms": [
            {
                "vm_id": each.vm_id,
                "name": each.name,
                "fate": each.fate.value,
                "why": each.why,
                "operation_id": each.operation_id,
                "attempt": each.attempt,
                "was_stop_tried": each.was_stop_tried,
            }
            for each in roster.values()
        ]
    }


def from_json(stored: Json) -> Roster:
    """Read what `to_json` wrote; nothing gives an empty roster."""
    return {each["vm_id"]: _evacuee(each) for each in stored.get("vms", ())}


def _evacuee(stored: Mapping[str, Any]) -> Evacuee:
    return Evacuee(**{**stored, "fate": Fate(stored["fate"])})
