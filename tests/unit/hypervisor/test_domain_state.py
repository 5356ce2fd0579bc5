"""libvirt's states, events and errors in our words, without libvirt; and its numbers against the library's own."""

from __future__ import annotations

import enum

import pytest

from hypervisor.errors import HypervisorError, Refused, Unavailable, VmNotFound
from hypervisor.libvirt.domain_state import (
    UNDEFINED_RENAMED,
    DomainState,
    EventTranslator,
    Lifecycle,
    RawEvent,
    RawKind,
    ShutoffReason,
    StoppedDetail,
    power_state,
)
from hypervisor.libvirt.error_map import ErrorCode, ErrorSource, translate
from hypervisor.types import EventKind, PowerState

VM = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"


def told(translator: EventTranslator, *raw: tuple[Lifecycle, int]) -> list[tuple[EventKind, PowerState]]:
    events = [
        event
        for number, detail in raw
        for event in translator.translate(RawEvent(RawKind.LIFECYCLE, VM, number, detail))
    ]
    assert all(event.vm_id == VM for event in events)
    return [(event.kind, event.state) for event in events]


def running() -> EventTranslator:
    translator = EventTranslator()
    translator.reset({VM: PowerState.RUNNING})
    return translator


@pytest.mark.parametrize(
    ("enumeration", "prefix"),
    [
        (DomainState, "VIR_DOMAIN_"),
        (ShutoffReason, "VIR_DOMAIN_SHUTOFF_"),
        (Lifecycle, "VIR_DOMAIN_EVENT_"),
        (StoppedDetail, "VIR_DOMAIN_EVENT_STOPPED_"),
        (ErrorCode, "VIR_ERR_"),
        (ErrorSource, "VIR_FROM_"),
    ],
)
def test_numbers_are_those_of_the_library(enumeration: type[enum.IntEnum], prefix: str) -> None:
    libvirt = pytest.importorskip("libvirt")
    assert {member.name: member.value for member in enumeration} == {
        member.name: getattr(libvirt, prefix + member.name) for member in enumeration
    }


@pytest.mark.parametrize(
    ("state", "reason", "is_saved", "expected"),
    [
        (DomainState.NOSTATE, 0, False, PowerState.UNKNOWN),
        (DomainState.RUNNING, 1, False, PowerState.RUNNING),
        (DomainState.BLOCKED, 0, False, PowerState.RUNNING),
        (DomainState.SHUTDOWN, 0, False, PowerState.RUNNING),
        (DomainState.PAUSED, 1, False, PowerState.PAUSED),
        (DomainState.PMSUSPENDED, 0, False, PowerState.PAUSED),
        (DomainState.CRASHED, 1, False, PowerState.CRASHED),
        (DomainState.SHUTOFF, 0, False, PowerState.STOPPED),
        (DomainState.SHUTOFF, 6, False, PowerState.STOPPED),
        (DomainState.SHUTOFF, ShutoffReason.CRASHED, False, PowerState.CRASHED),
        (DomainState.SHUTOFF, ShutoffReason.DAEMON, False, PowerState.CRASHED),
        (DomainState.SHUTOFF, 5, True, PowerState.SUSPENDED),
        (DomainState.SHUTOFF, 5, False, PowerState.STOPPED),
        (99, 0, False, PowerState.UNKNOWN),
    ],
)
def test_power_state_of_each_state_and_reason(state: int, reason: int, is_saved: bool, expected: PowerState) -> None:
    assert power_state(state, reason, is_saved=is_saved) is expected


def test_events_of_a_whole_life_are_told_once_each() -> None:
    assert told(
        EventTranslator(),
        (Lifecycle.DEFINED, 0),
        (Lifecycle.RESUMED, 0),  # libvirt lets the vCPUs of a starting domain go before it calls it started
        (Lifecycle.STARTED, 0),
        (Lifecycle.SUSPENDED, 0),
        (Lifecycle.SUSPENDED, 0),
        (Lifecycle.RESUMED, 0),
        (Lifecycle.SHUTDOWN, 0),
        (Lifecycle.STOPPED, StoppedDetail.SHUTDOWN),
        (Lifecycle.DEFINED, 1),
        (Lifecycle.UNDEFINED, 0),
    ) == [
        (EventKind.DEFINED, PowerState.STOPPED),
        (EventKind.STARTED, PowerState.RUNNING),
        (EventKind.PAUSED, PowerState.PAUSED),
        (EventKind.RESUMED, PowerState.RUNNING),
        (EventKind.STOPPED, PowerState.STOPPED),
        (EventKind.DEFINED, PowerState.STOPPED),
        (EventKind.REMOVED, PowerState.UNKNOWN),
    ]


@pytest.mark.parametrize("detail", [StoppedDetail.CRASHED, StoppedDetail.FAILED])
def test_process_of_a_running_vm_that_vanishes_is_a_crash(detail: StoppedDetail) -> None:
    assert told(running(), (Lifecycle.STOPPED, detail)) == [(EventKind.CRASHED, PowerState.CRASHED)]


def test_start_that_failed_is_a_stop_and_no_crash() -> None:
    translator = EventTranslator()
    translator.reset({VM: PowerState.STOPPED})
    assert told(translator, (Lifecycle.STOPPED, StoppedDetail.FAILED)) == [(EventKind.STOPPED, PowerState.STOPPED)]


def test_panic_is_told_once_though_libvirt_tells_it_twice() -> None:
    events = told(running(), (Lifecycle.CRASHED, 0), (Lifecycle.STOPPED, StoppedDetail.CRASHED))
    assert events == [(EventKind.CRASHED, PowerState.CRASHED)]


def test_redefined_vm_keeps_its_state() -> None:
    assert told(running(), (Lifecycle.DEFINED, 1)) == [(EventKind.DEFINED, PowerState.RUNNING)]


def test_saved_vm_is_suspended_and_starts_from_there() -> None:
    events = told(running(), (Lifecycle.STOPPED, StoppedDetail.SAVED), (Lifecycle.STARTED, 2), (Lifecycle.RESUMED, 0))
    assert events == [(EventKind.SUSPENDED, PowerState.SUSPENDED), (EventKind.STARTED, PowerState.RUNNING)]


def test_vm_undefined_while_it_runs_is_removed_when_it_stops() -> None:
    translator = running()
    assert told(translator, (Lifecycle.UNDEFINED, 0)) == []
    assert told(translator, (Lifecycle.STOPPED, StoppedDetail.DESTROYED)) == [
        (EventKind.STOPPED, PowerState.STOPPED),
        (EventKind.REMOVED, PowerState.UNKNOWN),
    ]


def test_rename_by_another_tool_is_a_definition_and_no_removal() -> None:
    events = told(running(), (Lifecycle.UNDEFINED, UNDEFINED_RENAMED), (Lifecycle.DEFINED, 2))
    assert events == [(EventKind.DEFINED, PowerState.RUNNING)]


def test_reboot_leaves_it_running_and_changed_metadata_is_no_event() -> None:
    translator = running()
    (event,) = translator.translate(RawEvent(RawKind.REBOOT, VM))
    assert (event.kind, event.state) == (EventKind.REBOOTED, PowerState.RUNNING)
    assert translator.translate(RawEvent(RawKind.METADATA, VM)) == ()


def test_events_of_unknown_numbers_are_ignored() -> None:
    assert running().translate(RawEvent(RawKind.LIFECYCLE, VM, 99, 99)) == ()


class LibraryError(Exception):
    """What `translate` looks at of a `libvirtError`."""

    def __init__(self, code: int, source: int = 10, words: str = "words of libvirt") -> None:
        super().__init__(words)
        self._code, self._source, self._words = code, source, words

    def get_error_code(self) -> int:
        return self._code

    def get_error_domain(self) -> int:
        return self._source

    def get_error_message(self) -> str:
        return self._words


@pytest.mark.parametrize(
    ("error", "is_connected", "kind"),
    [
        (LibraryError(ErrorCode.NO_DOMAIN), True, VmNotFound),
        (LibraryError(ErrorCode.NO_DOMAIN), False, Unavailable),
        (LibraryError(ErrorCode.OPERATION_TIMEOUT), True, Unavailable),
        (LibraryError(ErrorCode.SYSTEM_ERROR, ErrorSource.RPC), True, Unavailable),
        (LibraryError(ErrorCode.SYSTEM_ERROR), True, Refused),
        (LibraryError(1), True, Refused),
        (LibraryError(1), False, Unavailable),
    ],
)
def test_error_of_libvirt_becomes_ours_by_its_numbers(
    error: LibraryError, is_connected: bool, kind: type[HypervisorError]
) -> None:
    ours = translate(error, VM, is_connected=is_connected)
    assert type(ours) is kind
    if kind is not VmNotFound:
        assert "words of libvirt" in str(ours)


ARRIVING = (Lifecycle.STARTED, 1)


def test_a_vm_that_arrives_stands_still_until_it_runs_here() -> None:
    assert told(EventTranslator(), ARRIVING, (Lifecycle.DEFINED, 0), (Lifecycle.RESUMED, 1)) == [
        (EventKind.ARRIVING, PowerState.PAUSED),
        (EventKind.MIGRATED_IN, PowerState.RUNNING),
    ]


def test_a_paused_vm_that_arrives_is_here_when_that_is_told() -> None:
    assert told(EventTranslator(), ARRIVING, (Lifecycle.SUSPENDED, 0)) == [
        (EventKind.ARRIVING, PowerState.PAUSED),
        (EventKind.MIGRATED_IN, PowerState.PAUSED),
    ]


def test_a_vm_that_does_not_arrive_after_all_is_gone_and_did_not_crash() -> None:
    assert told(EventTranslator(), ARRIVING, (Lifecycle.STOPPED, StoppedDetail.FAILED)) == [
        (EventKind.ARRIVING, PowerState.PAUSED),
        (EventKind.REMOVED, PowerState.UNKNOWN),
    ]


def test_a_vm_that_left_is_not_merely_stopped() -> None:
    translator = running()
    assert told(translator, (Lifecycle.STOPPED, StoppedDetail.MIGRATED)) == [
        (EventKind.MIGRATED_OUT, PowerState.STOPPED)
    ]
