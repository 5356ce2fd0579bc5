"""What libvirt's states, reasons and events mean in our words; pure, and without the library.

Source of the numbers: libvirt's libvirt-domain.h, where they are part of the ABI.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from hypervisor.types import EventKind, PowerState, VmEvent


class DomainState(enum.IntEnum):
    """libvirt's `virDomainState`."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class ShutoffReason(enum.IntEnum):
    """Those of libvirt's `virDomainShutoffReason` that are not an ordinary end."""

    CRASHED = 3
    DAEMON = 8
    """libvirt found the process gone, or beyond use, when it was restarted."""


class Lifecycle(enum.IntEnum):
    """libvirt's `virDomainEventType`."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class StartedDetail(enum.IntEnum):
    """The `virDomainEventStartedDetailType` that is no start."""

    MIGRATED = 1
    """Another host begins to send it; it stands still until that is done."""


class PausedReason(enum.IntEnum):
    """Those of libvirt's `virDomainPausedReason` that belong to migrations."""

    MIGRATION = 2
    POSTCOPY = 12
    """It runs at the target, which fetches its memory from here."""
    POSTCOPY_FAILED = 13


class StoppedDetail(enum.IntEnum):
    """libvirt's `virDomainEventStoppedDetailType`."""

    SHUTDOWN = 0
    DESTROYED = 1
    CRASHED = 2
    MIGRATED = 3
    SAVED = 4
    FAILED = 5
    FROM_SNAPSHOT = 6


UNDEFINED_RENAMED = 1
"""Detail of `UNDEFINED`: half of a rename; a `DEFINED` follows."""

_PAUSE_DETAILS: Mapping[int, str] = {
    1: "paused by a migration",
    2: "paused by an error of its storage",
    3: "paused by its watchdog",
    6: "paused by a failed operation",
    7: "paused by a migration; it runs at the target and fetches its memory from here",
    8: "paused by a failed migration",
}
_RUNNING_STATES = frozenset({DomainState.RUNNING, DomainState.BLOCKED, DomainState.SHUTDOWN})
_ACTIVE = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class RawKind(enum.Enum):
    """Which of libvirt's event families something came from."""

    LIFECYCLE = "lifecycle"
    REBOOT = "reboot"
    METADATA = "metadata"
    DEVICE_REMOVED = "device_removed"
    """A guest let go of a device."""


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One event as libvirt gave it; `number` and `detail` are set for `LIFECYCLE` only."""

    kind: RawKind
    vm_id: str
    number: int = 0
    detail: int = 0


def power_state(state: int, reason: int, *, is_saved: bool = False) -> PowerState:
    """Translate what libvirt says of a domain; `is_saved` tells whether a managed-save image exists.

    A domain whose start failed is off, not crashed: it never ran. One suspended to its memory counts as paused.
    """
    if state in _RUNNING_STATES:
        return PowerState.RUNNING
    if state in (DomainState.PAUSED, DomainState.PMSUSPENDED):
        return PowerState.PAUSED
    if state == DomainState.CRASHED:
        return PowerState.CRASHED
    if state == DomainState.SHUTOFF:
        if is_saved:
            return PowerState.SUSPENDED
        is_crash = reason in (ShutoffReason.CRASHED, ShutoffReason.DAEMON)
        return PowerState.CRASHED if is_crash else PowerState.STOPPED
    return PowerState.UNKNOWN


def is_active(state: int) -> bool:
    """Tell whether a hypervisor process exists for a domain in this state."""
    return state not in (DomainState.NOSTATE, DomainState.SHUTOFF)


def _plain_change(raw: RawEvent, before: PowerState | None) -> tuple[EventKind, PowerState, str] | None:
    """Say what a lifecycle event means where that depends on nothing but the state before it."""
    match raw.number:
        case Lifecycle.DEFINED:
            return EventKind.DEFINED, before or PowerState.STOPPED, ""
        case Lifecycle.STARTED:
            comes = raw.detail == StartedDetail.MIGRATED
            kind, state = (EventKind.ARRIVING, PowerState.PAUSED) if comes else (EventKind.STARTED, PowerState.RUNNING)
            return kind, state, ""
        case Lifecycle.SUSPENDED | Lifecycle.PMSUSPENDED if before is not PowerState.PAUSED:
            is_sleep = raw.number == Lifecycle.PMSUSPENDED
            detail = "the guest went to sleep" if is_sleep else _PAUSE_DETAILS.get(raw.detail, "")
            return EventKind.PAUSED, PowerState.PAUSED, detail
        case Lifecycle.RESUMED if before is PowerState.PAUSED:
            return EventKind.RESUMED, PowerState.RUNNING, ""
        case Lifecycle.CRASHED if before is not PowerState.CRASHED:
            return EventKind.CRASHED, PowerState.CRASHED, "the guest panicked"
    return None


class EventTranslator:
    """Turns libvirt's events into ours, remembering each VM's state.

    The memory is needed since libvirt tells the same change more than once (a start is also a resume, a panic is also a
    stop) and does not say what state a redefined VM is in. It serves events only; status is always asked for.
    """

    def __init__(self) -> None:
        self._states: dict[str, PowerState] = {}
        self._doomed: set[str] = set()
        self._arriving: set[str] = set()

    def reset(self, states: Mapping[str, PowerState]) -> None:
        """Begin with these states: all VMs that exist now."""
        self._states = dict(states)
        self._doomed.clear()
        self._arriving.clear()

    def translate(self, raw: RawEvent) -> tuple[VmEvent, ...]:
        """Say what a raw event means; nothing, if it is half of something or already told."""
        if raw.kind in (RawKind.METADATA, RawKind.DEVICE_REMOVED):
            return ()
        if raw.kind is RawKind.REBOOT:
            return (self._change(raw.vm_id, EventKind.REBOOTED, PowerState.RUNNING),)
        before = self._states.get(raw.vm_id)
        match raw.number:
            case _ if raw.vm_id in self._arriving:
                return self._arrival(raw)
            case Lifecycle.UNDEFINED if raw.detail != UNDEFINED_RENAMED:
                return self._undefined(raw.vm_id, before)
            case Lifecycle.STOPPED:
                return self._stopped(raw.vm_id, before, raw.detail)
        change = _plain_change(raw, before)
        if change is not None and change[0] is EventKind.ARRIVING:
            self._arriving.add(raw.vm_id)
        return () if change is None else (self._change(raw.vm_id, *change),)

    def _arrival(self, raw: RawEvent) -> tuple[VmEvent, ...]:
        """A domain that is being sent here comes to life, stands still as it did elsewhere, or is gone again."""
        match raw.number:
            case Lifecycle.RESUMED | Lifecycle.SUSPENDED:
                self._arriving.discard(raw.vm_id)
                is_running = raw.number == Lifecycle.RESUMED
                state = PowerState.RUNNING if is_running else PowerState.PAUSED
                return (self._change(raw.vm_id, EventKind.MIGRATED_IN, state),)
            case Lifecycle.STOPPED | Lifecycle.UNDEFINED:
                self._arriving.discard(raw.vm_id)
                return (self._removed(raw.vm_id),)
        return ()

    def _change(self, vm_id: str, kind: EventKind, state: PowerState, detail: str = "") -> VmEvent:
        self._states[vm_id] = state
        return VmEvent(kind, vm_id, state, detail)

    def _undefined(self, vm_id: str, before: PowerState | None) -> tuple[VmEvent, ...]:
        """A domain undefined while it runs goes on without a definition, and is gone once it stops."""
        if before in _ACTIVE:
            self._doomed.add(vm_id)
            return ()
        return (self._removed(vm_id),)

    def _removed(self, vm_id: str) -> VmEvent:
        self._states.pop(vm_id, None)
        self._doomed.discard(vm_id)
        return VmEvent(EventKind.REMOVED, vm_id, PowerState.UNKNOWN)

    def _stopped(self, vm_id: str, before: PowerState | None, detail: int) -> tuple[VmEvent, ...]:
        # libvirt calls it "failed" when a running domain's process vanishes, and also when one could not be started.
        is_crash = detail == StoppedDetail.CRASHED or (detail == StoppedDetail.FAILED and before in _ACTIVE)
        if is_crash and before is PowerState.CRASHED:
            events: tuple[VmEvent, ...] = ()
        elif is_crash:
            words = "its process died, or the guest panicked"
            events = (self._change(vm_id, EventKind.CRASHED, PowerState.CRASHED, words),)
        elif detail == StoppedDetail.MIGRATED:
            events = (self._change(vm_id, EventKind.MIGRATED_OUT, PowerState.STOPPED),)
        elif detail == StoppedDetail.SAVED:
            events = (self._change(vm_id, EventKind.SUSPENDED, PowerState.SUSPENDED),)
        else:
            words = StoppedDetail(detail).name.lower() if detail in StoppedDetail.__members__.values() else ""
            events = (self._change(vm_id, EventKind.STOPPED, PowerState.STOPPED, words),)
        return (*events, self._removed(vm_id)) if vm_id in self._doomed else events
