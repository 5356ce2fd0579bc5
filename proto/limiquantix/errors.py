"""The one vocabulary of refusals that every LimiQuantix program speaks.

An error has a code (what a client may do about it), a stable `reason` (what a program may test for), a message for the
person reading it and metadata with the facts the message was made from. Transports encode it in one place:
`limiquantix.rpc.status` for gRPC, `controlplane.api.http` for JSON. Nothing here knows a transport.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar


class Code(enum.IntEnum):
    """Canonical status codes; numbers are those of google.rpc.Code."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(enum.StrEnum):
    """Stable, machine-readable cause of an error, sent as `ErrorInfo.reason` (AIP-193)."""

    FIELD_VIOLATIONS = "FIELD_VIOLATIONS"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - not a secret
    VM_NOT_FOUND = "VM_NOT_FOUND"
    VM_NAME_TAKEN = "VM_NAME_TAKEN"
    VM_STATE_FORBIDS = "VM_STATE_FORBIDS"
    VM_EXISTS_WITH_OTHER_CONFIG = "VM_EXISTS_WITH_OTHER_CONFIG"
    VM_NOT_MANAGED = "VM_NOT_MANAGED"
    VM_RUNS_ELSEWHERE = "VM_RUNS_ELSEWHERE"
    VM_BEING_CLONED = "VM_BEING_CLONED"
    VM_IS_TEMPLATE = "VM_IS_TEMPLATE"
    VM_NOT_TEMPLATE = "VM_NOT_TEMPLATE"
    TEMPLATE_IN_USE = "TEMPLATE_IN_USE"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    SNAPSHOT_NAME_TAKEN = "SNAPSHOT_NAME_TAKEN"
    SNAPSHOT_UNSUPPORTED = "SNAPSHOT_UNSUPPORTED"
    TOO_MANY_SNAPSHOTS = "TOO_MANY_SNAPSHOTS"
    CANNOT_QUIESCE = "CANNOT_QUIESCE"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    NODE_NOT_PLACED = "NODE_NOT_PLACED"
    NODE_STATE_FORBIDS = "NODE_STATE_FORBIDS"
    NODE_HAS_VMS = "NODE_HAS_VMS"
    NO_NODE_FITS = "NO_NODE_FITS"
    NO_FAILOVER_ROOM = "NO_FAILOVER_ROOM"
    NODE_UNREACHABLE = "NODE_UNREACHABLE"
    CONSOLE_ABSENT = "CONSOLE_ABSENT"
    CONSOLE_IN_USE = "CONSOLE_IN_USE"
    GUEST_DID_NOT_STOP = "GUEST_DID_NOT_STOP"
    GUEST_DID_NOT_RELEASE = "GUEST_DID_NOT_RELEASE"
    GUEST_AGENT_ABSENT = "GUEST_AGENT_ABSENT"
    GUEST_AGENT_SILENT = "GUEST_AGENT_SILENT"
    GUEST_AGENT_REFUSED = "GUEST_AGENT_REFUSED"
    DEVICE_NOT_FOUND = "DEVICE_NOT_FOUND"
    DEVICE_EXISTS = "DEVICE_EXISTS"
    TOO_MANY_DEVICES = "TOO_MANY_DEVICES"
    MAC_TAKEN = "MAC_TAKEN"
    HYPERVISOR_UNAVAILABLE = "HYPERVISOR_UNAVAILABLE"
    HYPERVISOR_REFUSED = "HYPERVISOR_REFUSED"
    HOST_LACKS = "HOST_LACKS"
    MIGRATION_NOT_FOUND = "MIGRATION_NOT_FOUND"
    MIGRATION_REFUSED = "MIGRATION_REFUSED"
    MIGRATION_TOKEN_REFUSED = "MIGRATION_TOKEN_REFUSED"  # noqa: S105 - not a secret
    MIGRATION_FAILED = "MIGRATION_FAILED"
    MIGRATION_UNSETTLED = "MIGRATION_UNSETTLED"
    STORAGE_FULL = "STORAGE_FULL"
    DISK_IMAGE_FAILED = "DISK_IMAGE_FAILED"
    TOO_MANY_OPERATIONS = "TOO_MANY_OPERATIONS"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    OPERATION_ENDED = "OPERATION_ENDED"
    OPERATION_CANCELLED = "OPERATION_CANCELLED"
    RECOMMENDATION_NOT_FOUND = "RECOMMENDATION_NOT_FOUND"
    RECOMMENDATION_CLOSED = "RECOMMENDATION_CLOSED"
    ALERT_NOT_FOUND = "ALERT_NOT_FOUND"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    STALE_GENERATION = "STALE_GENERATION"
    STALE_EPOCH = "STALE_EPOCH"
    STALE_FENCE_TOKEN = "STALE_FENCE_TOKEN"  # noqa: S105 - a name, no secret
    LEASE_ENDED = "LEASE_ENDED"
    FENCE_NOT_FOUND = "FENCE_NOT_FOUND"
    FENCE_EXISTS = "FENCE_EXISTS"
    FENCE_OBJECTED = "FENCE_OBJECTED"
    NODE_IS_HEARD = "NODE_IS_HEARD"
    HA_INACTIVE = "HA_INACTIVE"
    NODE_FENCED = "NODE_FENCED"
    JOIN_REFUSED = "JOIN_REFUSED"
    JOIN_TOKEN_NOT_FOUND = "JOIN_TOKEN_NOT_FOUND"  # noqa: S105 - a name, no secret
    HOSTNAME_TAKEN = "HOSTNAME_TAKEN"
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    NOT_OF_THIS_NODE = "NOT_OF_THIS_NODE"
    FAILOVER_REFUSED = "FAILOVER_REFUSED"
    WATCH_TOO_SLOW = "WATCH_TOO_SLOW"
    TOO_MANY_WATCHES = "TOO_MANY_WATCHES"
    TOO_MANY_CONSOLES = "TOO_MANY_CONSOLES"
    REVISION_UNAVAILABLE = "REVISION_UNAVAILABLE"
    STOPPING = "STOPPING"
    NOT_INFORMED_YET = "NOT_INFORMED_YET"
    CONCURRENT_CHANGE = "CONCURRENT_CHANGE"
    STATE_UNAVAILABLE = "STATE_UNAVAILABLE"
    LOGIN_FAILED = "LOGIN_FAILED"
    TOO_MANY_LOGINS = "TOO_MANY_LOGINS"
    CREDENTIAL_REFUSED = "CREDENTIAL_REFUSED"
    CREDENTIAL_EXPIRED = "CREDENTIAL_EXPIRED"
    SESSION_ENDED = "SESSION_ENDED"
    USER_NOT_FOUND = "USER_NOT_FOUND"
    USER_NAME_TAKEN = "USER_NAME_TAKEN"
    USER_STATE_FORBIDS = "USER_STATE_FORBIDS"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    TOO_MANY_API_KEYS = "TOO_MANY_API_KEYS"
    ISSUER_NOT_FOUND = "ISSUER_NOT_FOUND"
    ISSUER_UNAVAILABLE = "ISSUER_UNAVAILABLE"
    ID_TOKEN_REFUSED = "ID_TOKEN_REFUSED"  # noqa: S105 - a name, no secret
    PERMISSION_MISSING = "PERMISSION_MISSING"
    CALLER_UNSUITED = "CALLER_UNSUITED"
    NOT_LOGGED_IN = "NOT_LOGGED_IN"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    PROJECT_NOT_FOUND = "PROJECT_NOT_FOUND"
    PROJECT_NAME_TAKEN = "PROJECT_NAME_TAKEN"
    PROJECT_NOT_EMPTY = "PROJECT_NOT_EMPTY"
    PROJECT_IS_DEFAULT = "PROJECT_IS_DEFAULT"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    FOLDER_NOT_FOUND = "FOLDER_NOT_FOUND"
    FOLDER_NAME_TAKEN = "FOLDER_NAME_TAKEN"
    FOLDER_NOT_EMPTY = "FOLDER_NOT_EMPTY"
    FOLDER_MOVE_REFUSED = "FOLDER_MOVE_REFUSED"
    ROLE_NOT_FOUND = "ROLE_NOT_FOUND"
    ROLE_NAME_TAKEN = "ROLE_NAME_TAKEN"
    ROLE_IS_BUILT_IN = "ROLE_IS_BUILT_IN"
    ROLE_IN_USE = "ROLE_IN_USE"
    ROLE_GRANTS_MORE = "ROLE_GRANTS_MORE"
    BINDING_NOT_FOUND = "BINDING_NOT_FOUND"
    SUBJECT_NOT_FOUND = "SUBJECT_NOT_FOUND"
    LAST_ADMIN = "LAST_ADMIN"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault of a request; `field` is a path in proto names (`spec.disks[0].size_gib`), "" the whole message."""

    field: str
    description: str


class ApiError(Exception):
    """A refusal that can cross the wire. Raise one of its subclasses, never this class itself.

    Args:
        reason: stable cause, see `Reason`.
        message: what is wrong and what to do about it, one or two sentences.
        metadata: the facts behind the message; goes to every caller, so never a secret or a path outside storage.
        violations: every faulty field; only with `InvalidArgument`.
        retry_after_s: when a retry makes sense; None if the server cannot tell.
    """

    code: ClassVar[Code] = Code.UNKNOWN

    def __init__(
        self,
        reason: Reason | str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason}: {self.message})"


class InvalidArgument(ApiError):
    """The request itself is wrong, whatever the state of the system; sending it again cannot help."""

    code = Code.INVALID_ARGUMENT

    @classmethod
    def from_violations(cls, violations: Sequence[FieldViolation]) -> InvalidArgument:
        """Name every fault at once: a caller should not have to find them one by one."""
        listed = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
        return cls(Reason.FIELD_VIOLATIONS, listed, violations=violations)


class NotFound(ApiError):
    """The named thing does not exist, or the caller may not know that it does."""

    code = Code.NOT_FOUND


class AlreadyExists(ApiError):
    """A thing with that name or id exists."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(ApiError):
    """The system is not in the state this call needs; the message names the state."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(ApiError):
    """No room or no quota; the message says of what, and how much is missing."""

    code = Code.RESOURCE_EXHAUSTED


class Aborted(ApiError):
    """Lost a race against another caller; reading again and repeating the call makes sense."""

    code = Code.ABORTED


class PermissionDenied(ApiError):
    """It is known who calls, and they may not do this; the message names the permission and the place."""

    code = Code.PERMISSION_DENIED


class Unavailable(ApiError):
    """A part that is needed does not answer now; the same call may work later."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(ApiError):
    """The work did not finish in time. It may have happened: look before repeating."""

    code = Code.DEADLINE_EXCEEDED


class OutOfRange(ApiError):
    """Beyond what there is; another position may work."""

    code = Code.OUT_OF_RANGE


class Unimplemented(ApiError):
    """Documented, but not in this version."""

    code = Code.UNIMPLEMENTED


class Unauthenticated(ApiError):
    """It is not known who calls: no credential, or one that is not good; the message says how to get one."""

    code = Code.UNAUTHENTICATED


class Internal(ApiError):
    """A defect of ours. The message carries a correlation id and nothing of the inside."""

    code = Code.INTERNAL


ERROR_CLASSES: Mapping[Code, type[ApiError]] = MappingProxyType(
    {
        cls.code: cls
        for cls in (
            InvalidArgument,
            NotFound,
            AlreadyExists,
            FailedPrecondition,
            ResourceExhausted,
            Aborted,
            PermissionDenied,
            Unavailable,
            DeadlineExceeded,
            OutOfRange,
            Unimplemented,
            Unauthenticated,
            Internal,
        )
    }
)
