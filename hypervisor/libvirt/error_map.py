"""Say libvirt's errors in our words, by their numbers; their texts change with version and language.

Source of the numbers: libvirt's virterror.h, where they are part of the ABI.
"""

from __future__ import annotations

import enum
from typing import Any

from hypervisor.errors import HypervisorError, Refused, Unavailable, VmNotFound


class ErrorCode(enum.IntEnum):
    """The `virErrorNumber`s that mean something particular to us."""

    INTERNAL_ERROR = 1
    """Among others, whatever QEMU itself refused."""
    NO_SUPPORT = 3
    NO_CONNECT = 5
    INVALID_CONN = 6
    OPERATION_FAILED = 9
    SYSTEM_ERROR = 38
    RPC = 39
    NO_DOMAIN = 42
    NO_NETWORK = 43
    AUTH_FAILED = 45
    OPERATION_INVALID = 55
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    OPERATION_ABORTED = 78
    """Somebody ended a job, such as a migration."""
    NO_DOMAIN_SNAPSHOT = 72
    AUTH_CANCELLED = 79
    NO_DOMAIN_METADATA = 80
    OPERATION_UNSUPPORTED = 84
    AGENT_UNRESPONSIVE = 86
    ACCESS_DENIED = 88
    CPU_INCOMPATIBLE = 91
    AUTH_UNAVAILABLE = 94
    AGENT_UNSYNCED = 97


class ErrorSource(enum.IntEnum):
    """The `virErrorDomain`s of errors that the client library itself raises about the connection."""

    RPC = 7
    REMOTE = 13


_UNAVAILABLE_CODES = frozenset(
    {
        ErrorCode.NO_CONNECT,
        ErrorCode.INVALID_CONN,
        ErrorCode.RPC,
        ErrorCode.AUTH_FAILED,
        ErrorCode.OPERATION_TIMEOUT,  # another job holds the domain, or its monitor does not answer
        ErrorCode.AUTH_CANCELLED,
        ErrorCode.AGENT_UNRESPONSIVE,
        ErrorCode.ACCESS_DENIED,
        ErrorCode.AUTH_UNAVAILABLE,
    }
)
_UNAVAILABLE_SOURCES = frozenset({ErrorSource.RPC, ErrorSource.REMOTE})


def has_code(error: Any, code: ErrorCode) -> bool:
    """Tell whether a `libvirtError` carries this number."""
    return bool(error.get_error_code() == code)


def translate(error: Any, vm_id: str, *, is_connected: bool) -> HypervisorError:
    """Make our error of a `libvirtError`.

    Args:
        vm_id: the VM the call was about; "" if about none.
        is_connected: whether the connection outlived the call. If not, the error is about that, whatever it says.
    """
    words = error.get_error_message() or str(error)
    if (
        not is_connected
        or error.get_error_code() in _UNAVAILABLE_CODES
        or error.get_error_domain() in _UNAVAILABLE_SOURCES
    ):
        return Unavailable(f"libvirt does not answer: {words}")
    if vm_id and has_code(error, ErrorCode.NO_DOMAIN):
        return VmNotFound(vm_id)
    return Refused(f"libvirt refused the operation on VM {vm_id}: {words}" if vm_id else f"libvirt refused: {words}")
