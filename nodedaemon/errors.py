"""The one table from what a hypervisor raises to what a caller is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypervisor import errors as hv
from limiquantix.errors import (
    AlreadyExists,
    ApiError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Reason,
    Unavailable,
)

_TABLE: tuple[tuple[type[hv.HypervisorError], type[ApiError], Reason], ...] = (
    (hv.VmNotFound, NotFound, Reason.VM_NOT_FOUND),
    (hv.VmExists, AlreadyExists, Reason.VM_EXISTS_WITH_OTHER_CONFIG),
    (hv.WrongState, FailedPrecondition, Reason.VM_STATE_FORBIDS),
    # The guest may still shut down later, which is what DEADLINE_EXCEEDED says.
    (hv.GuestDidNotStop, DeadlineExceeded, Reason.GUEST_DID_NOT_STOP),
    (hv.DeviceNotFound, NotFound, Reason.DEVICE_NOT_FOUND),
    (hv.DeviceExists, AlreadyExists, Reason.DEVICE_EXISTS),
    (hv.GuestDidNotRelease, FailedPrecondition, Reason.GUEST_DID_NOT_RELEASE),
    (hv.GuestAgentAbsent, FailedPrecondition, Reason.GUEST_AGENT_ABSENT),
    (hv.GuestAgentSilent, DeadlineExceeded, Reason.GUEST_AGENT_SILENT),
    (hv.GuestAgentRefused, FailedPrecondition, Reason.GUEST_AGENT_REFUSED),
    (hv.ConsoleAbsent, FailedPrecondition, Reason.CONSOLE_ABSENT),
    (hv.ConsoleInUse, FailedPrecondition, Reason.CONSOLE_IN_USE),
    (hv.SnapshotNotFound, NotFound, Reason.SNAPSHOT_NOT_FOUND),
    (hv.SnapshotNameTaken, AlreadyExists, Reason.SNAPSHOT_NAME_TAKEN),
    (hv.SnapshotUnsupported, FailedPrecondition, Reason.SNAPSHOT_UNSUPPORTED),
    (hv.MigrationRefused, FailedPrecondition, Reason.MIGRATION_REFUSED),
    (hv.MigrationFailed, FailedPrecondition, Reason.MIGRATION_FAILED),
    (hv.CannotQuiesce, FailedPrecondition, Reason.CANNOT_QUIESCE),
    (hv.HostCannot, FailedPrecondition, Reason.HOST_LACKS),
    (hv.Refused, FailedPrecondition, Reason.HYPERVISOR_REFUSED),
    (hv.Unavailable, Unavailable, Reason.HYPERVISOR_UNAVAILABLE),
)


def to_api_error(error: hv.HypervisorError, vm_id: str) -> ApiError:
    """Translate; `vm_id` goes into the metadata unless it is ""."""
    metadata = {"vm_id": vm_id} if vm_id else {}
    if isinstance(error, hv.WrongState):
        metadata["state"] = error.state
    for kind, api_kind, reason in _TABLE:
        if isinstance(error, kind):
            return api_kind(reason, str(error), metadata=metadata)
    raise AssertionError(f"{type(error).__name__} is missing in the error table") from error


@contextmanager
def hypervisor_errors(vm_id: str = "") -> Iterator[None]:
    """Translate whatever the hypervisor raises inside."""
    try:
        yield
    except hv.HypervisorError as error:
        raise to_api_error(error, vm_id) from error
