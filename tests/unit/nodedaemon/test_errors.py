"""Every error of the hypervisor layer has a place in the table."""

from __future__ import annotations

import pytest

from hypervisor import errors as hv
from limiquantix.errors import ApiError, Code
from nodedaemon.errors import hypervisor_errors, to_api_error

CASES: list[tuple[hv.HypervisorError, Code, str]] = [
    (hv.VmNotFound("v"), Code.NOT_FOUND, "VM_NOT_FOUND"),
    (hv.VmExists("v"), Code.ALREADY_EXISTS, "VM_EXISTS_WITH_OTHER_CONFIG"),
    (hv.WrongState("v", "start", "running"), Code.FAILED_PRECONDITION, "VM_STATE_FORBIDS"),
    (hv.GuestDidNotStop("v", 3), Code.DEADLINE_EXCEEDED, "GUEST_DID_NOT_STOP"),
    (hv.SnapshotNotFound("v", "s"), Code.NOT_FOUND, "SNAPSHOT_NOT_FOUND"),
    (hv.SnapshotNameTaken("v", "s"), Code.ALREADY_EXISTS, "SNAPSHOT_NAME_TAKEN"),
    (hv.SnapshotUnsupported("raw"), Code.FAILED_PRECONDITION, "SNAPSHOT_UNSUPPORTED"),
    (hv.CannotQuiesce("mute"), Code.FAILED_PRECONDITION, "CANNOT_QUIESCE"),
    (hv.MigrationRefused("snapshots"), Code.FAILED_PRECONDITION, "MIGRATION_REFUSED"),
    (hv.MigrationFailed("gone"), Code.FAILED_PRECONDITION, "MIGRATION_FAILED"),
    (hv.DeviceNotFound("v", "disk d"), Code.NOT_FOUND, "DEVICE_NOT_FOUND"),
    (hv.DeviceExists("v", "disk d"), Code.ALREADY_EXISTS, "DEVICE_EXISTS"),
    (hv.GuestDidNotRelease("v", "disk d", 3), Code.FAILED_PRECONDITION, "GUEST_DID_NOT_RELEASE"),
    (hv.GuestAgentAbsent("v"), Code.FAILED_PRECONDITION, "GUEST_AGENT_ABSENT"),
    (hv.GuestAgentSilent("v", "hangs"), Code.DEADLINE_EXCEEDED, "GUEST_AGENT_SILENT"),
    (hv.GuestAgentRefused("v", "no"), Code.FAILED_PRECONDITION, "GUEST_AGENT_REFUSED"),
    (hv.ConsoleAbsent("none"), Code.FAILED_PRECONDITION, "CONSOLE_ABSENT"),
    (hv.ConsoleInUse("v"), Code.FAILED_PRECONDITION, "CONSOLE_IN_USE"),
    (hv.HostCannot("no TPM"), Code.FAILED_PRECONDITION, "HOST_LACKS"),
    (hv.Refused("no"), Code.FAILED_PRECONDITION, "HYPERVISOR_REFUSED"),
    (hv.Unavailable("down"), Code.UNAVAILABLE, "HYPERVISOR_UNAVAILABLE"),
]


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=lambda value: type(value).__name__)
def test_hypervisor_error_becomes_its_api_error(error: hv.HypervisorError, code: Code, reason: str) -> None:
    with pytest.raises(ApiError) as caught, hypervisor_errors("v"):
        raise error
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.metadata["vm_id"] == "v"
    assert caught.value.message == str(error)
    assert caught.value.__cause__ is error


def all_below(error: type[hv.HypervisorError]) -> set[type[hv.HypervisorError]]:
    return {each for below in error.__subclasses__() for each in (below, *all_below(below))}


def test_every_hypervisor_error_class_is_a_case() -> None:
    assert {type(error) for error, _, _ in CASES} == all_below(hv.HypervisorError)


def test_wrong_state_carries_the_state() -> None:
    assert to_api_error(hv.WrongState("v", "start", "running"), "v").metadata["state"] == "running"
