"""Takes one operation through its steps to an end, and writes down each step of the way.

The runner belongs to one process, but whatever it writes is conditional on that process still owning the operation: a
process that was thought dead finds its writes refused and stops. What it still sends to hosts is refused there, because
whoever takes an operation over gives it a newer generation first.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from controlplane.daemons.interface import DaemonPool
from controlplane.domain import operation_errors
from controlplane.domain.operation import Fault, Operation, OperationState, StepState
from controlplane.operations.host_life import while_host_lives
from controlplane.operations.progress import (
    Progress,
    StoreAway,
    advance,
    raise_if_store_is_away,
    with_new_generation,
)
from controlplane.operations.steps import (
    Clock,
    Located,
    Outcome,
    OwnershipLost,
    Run,
    Step,
    Workflow,
    Workflows,
)
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Aborted, ApiError, Internal, Reason, Unavailable

_log = structlog.get_logger(__name__)


class _Cancelled(Exception):
    """The operation shall be cancelled, and is at a place where it can be."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a step is repeated when a host does not answer, in seconds between tries.

    A daemon that is being restarted is back within these; a host that is gone must not hold a caller for long.
    """

    do_pauses_s: tuple[float, ...] = (0.2, 0.5, 1.0)
    undo_pauses_s: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)
    store_pauses_s: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    """For writing what happened while the database is away; after that another process, or this one, takes it up."""


class Runner:
    """Runs operations; holds no state of its own, so one serves any number at once.

    Args:
        on_change: called after each write, with the operation as stored.
    """

    def __init__(
        self,
        store: Store,
        daemons: DaemonPool,
        workflows: Workflows,
        now: Clock,
        retries: RetryPolicy,
        on_change: Callable[[Operation], None],
    ) -> None:
        self._store = store
        self._daemons = daemons
        self._workflows = workflows
        self._now = now
        self._retries = retries
        self._on_change = on_change
        self._progress = Progress(store, retries.store_pauses_s, on_change)

    async def run(self, operation: Operation, cancel: asyncio.Event, known: Located | None = None) -> Operation:
        """Carry an operation that this process owns to its end and return it as stored.

        Args:
            cancel: set when somebody wants it cancelled.
            known: what was recorded with the operation, if that was just now, for the first step's first try.

        Raises:
            OwnershipLost: another process has it.
            StoreAway: the database does not answer.
        """
        workflow = self._workflows.of(operation.kind)
        steps = workflow.steps(operation.parameters)
        while operation.state == OperationState.RUNNING:  # again, if a step that seemed to fail was noted as done
            operation = await self._forward(operation, workflow, steps, cancel, known)
        if operation.state == OperationState.UNDOING:
            operation = await self._backward(operation, workflow, steps)
        return operation

    # -- forward

    async def _forward(
        self,
        operation: Operation,
        workflow: Workflow,
        steps: Sequence[Step],
        cancel: asyncio.Event,
        known: Located | None,
    ) -> Operation:
        is_resumed = operation.attempt_count > 1
        try:
            if not steps:
                return await self._progress.write(operation, lambda tx, latest: self._end_well(tx, latest, workflow))
            for index, step in enumerate(steps):
                if operation.steps[index].state == StepState.DONE:
                    continue
                if step.is_cancellable and (cancel.is_set() or operation.cancel_requested):
                    raise _Cancelled
                begun = replace(self._run_of(operation, index, is_repeated=is_resumed), known=known, cancel=cancel)
                operation = await self._step(begun, workflow, step, cancel)
                is_resumed, known = False, None
            return operation
        except _Cancelled:
            return await self._begin_undo(operation, Fault.of(await self._cancellation(operation)))
        except ApiError as error:
            raise_if_store_is_away(error)
            return await self._begin_undo(operation, Fault.of(error))
        except (OwnershipLost, StoreAway):
            raise
        except Exception as error:  # noqa: BLE001 - a defect of a step must not leave the operation without an end
            return await self._begin_undo(operation, Fault.of(_defect(operation, error)))

    async def _step(self, run: Run, workflow: Workflow, step: Step, cancel: asyncio.Event) -> Operation:
        """Do one step, note it as done, and end the operation if it is the last."""
        index = run.index
        operation, outcome = await self._do(run, step, cancel)

        async def note(tx: Transaction, latest: Operation) -> Operation:
            kept = await step.record(tx, self._run_of(latest, index), outcome)
            done = replace(
                latest.with_step(index, StepState.DONE, kept.result),
                parameters={**latest.parameters, **kept.kept},
                waiting_for="",
            )
            if index == len(latest.steps) - 1:
                return await self._end_well(tx, done, workflow)
            return await advance(tx, done)

        return await self._progress.write(operation, note)

    async def _do(self, run: Run, step: Step, cancel: asyncio.Event) -> tuple[Operation, Outcome]:
        """Do the host's part of a step, again if the host does not answer."""
        operation = run.operation
        pauses_s = iter(self._retries.do_pauses_s)
        while True:
            try:
                return operation, await self._do_once(run, step, cancel)
            except ApiError as error:
                if _is_stale(error):
                    operation = await self._with_newer_generation(operation, error)
                elif _may_pass(error) and (pause_s := next(pauses_s, None)) is not None:
                    raise_if_store_is_away(error)
                    operation = await self._waiting(operation, error)
                    await asyncio.sleep(pause_s)
                else:
                    raise
                run = replace(run, operation=operation, is_repeated=True, known=None)
            if step.is_cancellable and cancel.is_set():
                raise _Cancelled

    async def _waiting(self, operation: Operation, error: ApiError) -> Operation:
        """Say what the operation waits for, before it tries again with a newer generation.

        The command that was not answered may still be on its way. It must not come after the one that is sent next:
        a power cut that arrives after the start that followed it would leave a VM off that was said to run.
        """

        async def note(tx: Transaction, latest: Operation) -> Operation:
            return await with_new_generation(tx, replace(latest, waiting_for=error.message))

        return await self._progress.write(operation, note)

    async def _do_once(self, run: Run, step: Step, cancel: asyncio.Event) -> Outcome:
        acting = step.do(run) if step.minds_fences else while_host_lives(self._store, run.operation, step.do(run))
        if not step.is_interruptible:
            return await acting
        doing = asyncio.ensure_future(acting)
        waiting = asyncio.ensure_future(cancel.wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise _Cancelled
        finally:
            for task in (doing, waiting):
                task.cancel()
            await asyncio.gather(doing, waiting, return_exceptions=True)

    async def _end_well(self, tx: Transaction, operation: Operation, workflow: Workflow) -> Operation:
        packed = AnyMessage()
        packed.Pack(await workflow.conclude(tx, operation))
        return await advance(
            tx,
            replace(
                operation,
                state=OperationState.SUCCEEDED,
                response=packed.SerializeToString(),
                parameters={},
                waiting_for="",
                ended_at=self._now(),
            ),
        )

    # -- backward

    async def _begin_undo(self, operation: Operation, fault: Fault) -> Operation:
        """Turn around; from here on only commands of a newer generation count, so no late one can undo the undoing."""

        async def turn(tx: Transaction, latest: Operation) -> Operation:
            undoing = replace(latest, state=OperationState.UNDOING, fault=fault, waiting_for="")
            return await with_new_generation(tx, undoing)

        return await self._progress.write(operation, turn)

    async def _backward(self, operation: Operation, workflow: Workflow, steps: Sequence[Step]) -> Operation:
        for index, step in reversed(list(enumerate(steps))):
            state = operation.steps[index].state
            if state == StepState.UNDONE or not _may_have_begun(operation, index):
                continue
            operation = await self._undo(operation, index, step)
        return await self._progress.write(operation, lambda tx, latest: self._end_badly(tx, latest, workflow))

    async def _undo(self, operation: Operation, index: int, step: Step) -> Operation:
        was_done = operation.steps[index].state == StepState.DONE
        operation, trouble = await self._try_undo(operation, index, step)

        async def note(tx: Transaction, latest: Operation) -> Operation:
            run = self._run_of(latest, index)
            if trouble is not None:
                await step.record_given_up(tx, run, trouble)
            if was_done:
                await step.record_undo(tx, run)
            result = {} if trouble is None else {"not_undone": trouble.message}
            return await advance(tx, latest.with_step(index, StepState.UNDONE, result or None))

        return await self._progress.write(operation, note)

    async def _try_undo(self, operation: Operation, index: int, step: Step) -> tuple[Operation, Fault | None]:
        """Undo the host's part; returns what kept it from being undone."""
        pauses_s = iter(self._retries.undo_pauses_s)
        while True:
            try:
                await self._undo_once(self._run_of(operation, index, is_repeated=True), step)
                return operation, None
            except ApiError as error:
                raise_if_store_is_away(error)
                if _is_stale(error):
                    operation = await self._with_newer_generation(operation, error)
                    continue
                pause_s = next(pauses_s, None) if _may_pass(error) else None
                if pause_s is None:
                    _log.warning("step_not_undone", operation_id=operation.id, step=step.name, reason=error.reason)
                    return operation, Fault.of(error)
                await asyncio.sleep(pause_s)
            except (OwnershipLost, StoreAway):
                raise
            except Exception as error:  # noqa: BLE001 - as in `_forward`
                return operation, Fault.of(_defect(operation, error))

    async def _undo_once(self, run: Run, step: Step) -> None:
        if step.minds_fences:
            await step.undo(run)
        else:
            await while_host_lives(self._store, run.operation, step.undo(run))

    async def _end_badly(self, tx: Transaction, operation: Operation, workflow: Workflow) -> Operation:
        fault = operation.fault
        assert fault is not None  # noqa: S101 - set with UNDOING
        await workflow.fail(tx, operation, fault, self._now())
        cancelled = fault.reason == Reason.OPERATION_CANCELLED
        return await advance(
            tx,
            replace(
                operation,
                state=OperationState.CANCELLED if cancelled else OperationState.FAILED,
                parameters={},
                waiting_for="",
                ended_at=self._now(),
            ),
        )

    # -- shared

    def _run_of(self, operation: Operation, index: int, *, is_repeated: bool = False) -> Run:
        return Run(operation, self._store, self._daemons, self._now, is_repeated, index=index, on_note=self._on_change)

    async def _cancellation(self, operation: Operation) -> ApiError:
        """Make the error of a cancelled operation, with the reason that was given for it."""
        try:
            stored = await self._store.read(lambda tx: tx.get_operation(operation.id))
        except Unavailable as error:
            raise StoreAway from error
        return operation_errors.operation_cancelled(
            operation.id, stored.cancel_requested if stored else "it was asked for"
        )

    async def _with_newer_generation(self, operation: Operation, refusal: ApiError) -> Operation:
        """Go on with a generation beyond the one the host knows, unless somebody else has the operation.

        The host knows a newer one than the database after the database was put back to an older state.
        """
        newest = int(refusal.metadata.get("newest", "0"))
        return await self._progress.write(
            operation, lambda tx, latest: with_new_generation(tx, latest, at_least=newest)
        )


def _may_have_begun(operation: Operation, index: int) -> bool:
    """Whether a step is done, or is the first that is not: that one may have been begun."""
    return all(step.state in (StepState.DONE, StepState.UNDONE) for step in operation.steps[:index]) and (
        operation.steps[index].state == StepState.DONE
        or index == 0
        or operation.steps[index - 1].state == StepState.DONE
    )


def _may_pass(error: ApiError) -> bool:
    """Whether trying again soon may help: with a host that does not answer, or once its record is read anew."""
    if isinstance(error, Unavailable):
        return error.reason != Reason.NODE_FENCED
    return isinstance(error, Aborted) and error.reason in (Reason.STALE_FENCE_TOKEN, Reason.STALE_EPOCH)


def _is_stale(error: ApiError) -> bool:
    return isinstance(error, Aborted) and error.reason == Reason.STALE_GENERATION


def _defect(operation: Operation, error: Exception) -> Internal:
    correlation_id = uuid.uuid4().hex
    _log.error("operation_met_a_defect", operation_id=operation.id, correlation_id=correlation_id, exc_info=error)
    return Internal(
        Reason.INTERNAL,
        f"internal error; the server's log has it under correlation id {correlation_id}",
        metadata={"correlation_id": correlation_id, "operation_id": operation.id},
    )
