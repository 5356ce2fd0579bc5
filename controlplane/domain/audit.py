"""The audit record: one call that was to change something, or was refused."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


class AuditOutcome(enum.IntEnum):
    """What became of a call; numbers are those of the contract."""

    DONE = 1
    FAILED = 2
    REFUSED = 3
    UNKNOWN = 4
    """It began, and no end is on record."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What is known of a call when it is written down, and never changes.

    Attributes:
        principal_kind: "" for a caller that nobody recognised.
        resources: such as "vm/<id>".
        request_json: without what is secret.
        is_refusal: it was not let in, so that its end is known already.
        call_count: of refusals that are alike and are told together.
    """

    id: str
    begun_at: datetime
    method: str
    principal_kind: str = ""
    principal_id: str = ""
    principal_name: str = ""
    resources: Sequence[str] = ()
    project_id: str = ""
    request_id: str = ""
    reason: str = ""
    address: str = ""
    request_json: str = ""
    is_refusal: bool = False
    code: int = 0
    message: str = ""
    call_count: int = 1


@dataclass(frozen=True, slots=True)
class AuditEnd:
    """How a call ended.

    Attributes:
        code: 0, or a `limiquantix.errors.Code`.
    """

    record_id: str
    ended_at: datetime
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An entry in its place in the chain of the process that wrote it, and its end if that is known.

    Attributes:
        number: from 1, without gaps.
        digest: over the entry and the record before it.
        end_digest: over the end and `digest`; "" without an end.
    """

    entry: AuditEntry
    writer_id: str
    number: int
    digest: str
    end: AuditEnd | None = None
    end_digest: str = ""

    @property
    def outcome(self) -> AuditOutcome:
        """What became of it, as far as that is on record."""
        if self.entry.is_refusal:
            return AuditOutcome.REFUSED
        if self.end is None:
            return AuditOutcome.UNKNOWN
        return AuditOutcome.DONE if self.end.code == 0 else AuditOutcome.FAILED


@dataclass(frozen=True, slots=True)
class AuditChain:
    """Where the chain of one process begins and ends; what is outside was never written, or has been forgotten.

    Attributes:
        number: of its last record; 0 for none.
        digest: of that record.
        forgotten_number: of the last record that was removed for its age; 0 for none.
        forgotten_digest: of that one.
        seal: keyed digest over the rest, so that nobody moves an end.
    """

    writer_id: str
    number: int = 0
    digest: str = ""
    forgotten_number: int = 0
    forgotten_digest: str = ""
    seal: str = ""


@dataclass(frozen=True, slots=True)
class AuditFault:
    """A place where the trail is not what was written."""

    writer_id: str
    number: int
    description: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records; an empty part does not filter.

    Attributes:
        principal: id or name.
        resource: "vm/<id>", or the id alone.
        method: full name, or its last part.
    """

    since: datetime | None = None
    until: datetime | None = None
    principal: str = ""
    resource: str = ""
    method: str = ""
    outcomes: frozenset[AuditOutcome] = frozenset()
