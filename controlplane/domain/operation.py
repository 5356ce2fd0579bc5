"""The operation record: one change that was asked for, from the request to its outcome.

An operation is written in the transaction that writes its intent, and worked on by whichever control-plane process owns
it. Its steps are data: what they do is looked up by kind and name (`controlplane.operations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from controlplane.domain.access import VisiblePlaces
from limiquantix.compute.v1.operation_pb2 import Operation as OperationMessage
from limiquantix.compute.v1.operation_pb2 import OperationStep
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.errors import ERROR_CLASSES, ApiError, Code, FieldViolation

OperationState = OperationMessage.State
StepState = OperationStep.State
"""The contract's enums; values are plain ints in records."""

FINAL_STATES = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})
ACTIVE_STATES = frozenset({OperationState.RUNNING, OperationState.UNDOING})

Json = Mapping[str, Any]
"""A JSON object; `Any` because JSON has no schema of its own."""

SYSTEM_PRINCIPAL = "system"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: its name, how far it is, and what it found or made as JSON that a person can read."""

    name: str
    state: OperationStep.State.ValueType = StepState.PENDING
    result: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """An `ApiError` in a form that can be stored and raised again by another process."""

    code: int
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: ApiError) -> Fault:
        """Keep everything of an error that its caller would see."""
        return cls(
            code=int(error.code),
            reason=error.reason,
            message=error.message,
            metadata=dict(error.metadata),
            violations=tuple((violation.field, violation.description) for violation in error.violations),
            retry_after_s=error.retry_after_s,
        )

    def error(self) -> ApiError:
        """Make the error again."""
        error_class = ERROR_CLASSES.get(Code(self.code), ApiError)
        return error_class(
            self.reason,
            self.message,
            metadata=self.metadata,
            violations=[FieldViolation(path, description) for path, description in self.violations],
            retry_after_s=self.retry_after_s,
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as the database has it.

    `position` orders the operations of one resource by when they were asked for. `generation` is the one its commands
    to hosts carry; each process that takes it up gets a newer one, so that what a dead or slow predecessor still sends
    is refused. `owner_id` is the process that works on it, "" for none; only the owner of the present `attempt_count`
    may write progress. `preempts` puts it ahead of waiting ones. `parameters` are what its steps need to know from the
    request; they are not shown, since they may hold secrets. `request_digest` is one of `digest_of`.
    """

    id: str
    kind: str
    resource_type: str
    resource_id: str
    project_id: str
    principal: str
    created_at: datetime
    steps: tuple[StepRecord, ...]
    parameters: Json = field(default_factory=dict)
    request_id: str = ""
    request_digest: str = ""
    state: OperationMessage.State.ValueType = OperationState.QUEUED
    position: int = 1
    generation: int = 0
    preempts: bool = False
    fault: Fault | None = None
    response: bytes = b""
    owner_id: str = ""
    attempt_count: int = 0
    cancel_requested: str = ""
    """Why it shall be cancelled; "" if it shall not."""
    waiting_for: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    version: int = 1

    @property
    def has_ended(self) -> bool:
        """Whether it is in a final state."""
        return self.state in FINAL_STATES

    @property
    def progress_percent(self) -> int:
        """Share of its steps that are done; 100 only when it succeeded."""
        if self.state == OperationState.SUCCEEDED:
            return 100
        done = sum(step.state == StepState.DONE for step in self.steps)
        return min(99, 100 * done // max(len(self.steps), 1))

    def with_step(self, index: int, state: OperationStep.State.ValueType, result: Json | None = None) -> Operation:
        """Return the operation with one step changed."""
        old = self.steps[index]
        new = StepRecord(old.name, state, old.result if result is None else result)
        return replace(self, steps=(*self.steps[:index], new, *self.steps[index + 1 :]))


@dataclass(frozen=True, slots=True)
class OperationFilter:
    """Which operations; an empty part does not filter, `visible` None shows all."""

    resource_id: str = ""
    project_id: str = ""
    kinds: frozenset[str] = frozenset()
    states: frozenset[int] = frozenset()
    visible: VisiblePlaces | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One control-plane process that shares the database.

    Whether it lives is judged by whether `renewal_count` grows, by the clock of whoever looks: clocks of different
    machines are never compared.
    """

    id: str
    hostname: str
    started_at: datetime
    renewed_at: datetime
    renewal_count: int = 1


@dataclass(frozen=True, slots=True)
class DepartedVm:
    """A VM that was removed from the inventory while its host may still have it.

    `is_kept`: it was removed on request and is left alone there. Otherwise it is what a failed create or a delete could
    not reach, and is removed when its host reports it. `power_state` is the one its host reported last.
    """

    vm_id: str
    node_id: str
    is_kept: bool
    reason: str
    departed_at: datetime
    power_state: VmStatus.PowerState.ValueType = VmStatus.PowerState.UNKNOWN
