"""What operations are made of: steps with `do` and `undo`, and the workflows that put them in order.

A step may be begun more than once, because the process that worked on it may die at any line: whatever it does must be
harmless when repeated. The database part of a step (`record`, `record_undo`) happens in the transaction that notes the
step as done, so it happens exactly once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar

from google.protobuf.message import Message

from controlplane.daemons.interface import DaemonPool, NodeDaemon
from controlplane.domain import errors, ha_errors, operation_errors
from controlplane.domain.fencing import FenceState
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import Vm
from controlplane.state.interface import Store, Transaction

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step leaves behind.

    `result` is shown to whoever reads the operation, so it holds no secrets. `kept` is added to the operation's
    parameters, which are not shown, for later steps and for undoing.
    """

    result: Json = field(default_factory=dict)
    kept: Json = field(default_factory=dict)


NOTHING = Outcome()


@dataclass(frozen=True, slots=True)
class Located:
    """A VM as it was recorded with its operation, and its node."""

    vm: Vm
    node: Node


class OwnershipLost(Exception):
    """Another process works on the operation now, or it has ended; there is nothing left to do here."""


def _tell_nobody(_: Operation) -> None:
    """Where nobody waits for progress."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at one operation, as its steps see it."""

    operation: Operation
    store: Store
    daemons: DaemonPool
    now: Clock
    is_repeated: bool = False
    """Whether the step may have been begun before, by this process or one that died."""
    known: Located | None = None
    """What this process recorded a moment ago, with the operation: nobody else changes its VM before the first step."""
    index: int = 0
    """Which of the operation's steps is done."""
    cancel: asyncio.Event | None = None
    on_note: Callable[[Operation], None] = _tell_nobody

    @property
    def is_cancelled(self) -> bool:
        """Whether the operation shall be cancelled: for a step that takes long and can stop in order."""
        return self.cancel is not None and self.cancel.is_set()

    @property
    def so_far(self) -> Json:
        """What an earlier try of this step, or of a process that died over it, noted last."""
        return self.operation.steps[self.index].result

    async def note(self, text: str, result: Json | None = None) -> None:
        """Show how far the step is while it goes on; nothing is written if nothing changed.

        Args:
            text: becomes what the operation waits for.
            result: becomes the step's result so far; None leaves that.

        Raises:
            OwnershipLost: another process has the operation, so the step must not go on.
            Unavailable: the database does not answer.
        """
        if self._noted(self._mine(await self.store.read(lambda tx: tx.get_operation(self.operation.id))), text, result):

            async def write(tx: Transaction) -> Operation | None:
                noted = self._noted(self._mine(await tx.get_operation(self.operation.id)), text, result)
                return None if noted is None else await tx.advance_operation(noted)

            written = await self.store.run(write)
            if written is not None:
                self.on_note(written)

    def _mine(self, stored: Operation | None) -> Operation:
        mine = (self.operation.owner_id, self.operation.attempt_count)
        if stored is None or stored.has_ended or (stored.owner_id, stored.attempt_count) != mine:
            raise OwnershipLost
        return stored

    def _noted(self, stored: Operation, text: str, result: Json | None) -> Operation | None:
        """Return the operation with the note; None if it has it already."""
        step = stored.steps[self.index]
        if stored.waiting_for == text and (result is None or result == step.result):
            return None
        return replace(stored.with_step(self.index, step.state, result), waiting_for=text)

    @property
    def parameters(self) -> Json:
        """What the steps need to know of the request, and what earlier steps kept."""
        return self.operation.parameters

    async def located(self) -> tuple[Vm, NodeDaemon]:
        """Read the VM as it is recorded now, and find the daemon of its host.

        Raises:
            NotFound: it is gone.
            FailedPrecondition: it is on no node.
            Unavailable: its host is proven dead, reason NODE_FENCED.
        """
        if self.known is not None and self.known.node.phase != Phase.NOT_READY:
            return self.known.vm, self.daemons.daemon(self.known.node)
        vm_id = self.operation.resource_id

        async def read(tx: Transaction) -> tuple[Vm | None, Node | None]:
            vm = await tx.get_vm(vm_id)
            node = await tx.get_node(vm.node_id) if vm is not None and vm.node_id else None
            if node is not None and node.phase == Phase.NOT_READY:  # as every node is that is proven dead
                await require_unfenced(tx, node)
            return vm, node

        vm, node = await self.store.read(read)
        if vm is None:
            raise errors.vm_not_found(vm_id)
        if node is None:
            raise errors.vm_not_placed(vm_id)
        return vm, self.daemons.daemon(node)


async def require_unfenced(tx: Transaction, node: Node) -> None:
    """Check that a node is not proven dead.

    Raises:
        Unavailable: it is, reason NODE_FENCED.
    """
    for fence in await tx.current_fences():
        if fence.node_id == node.id and fence.state == FenceState.PROVEN:
            raise ha_errors.node_fenced(node, fence.id)


class Step(ABC):
    """One step of a workflow; stateless, so one object serves all operations."""

    name: ClassVar[str]
    is_interruptible: ClassVar[bool] = False
    """Whether a cancellation may cut `do` short: only for one that waits and whose effect needs no undoing."""
    is_cancellable: ClassVar[bool] = True
    """Whether a cancellation keeps it from being begun, or tried again. One that is not sees to it itself, or comes
    after what cannot be taken back."""

    minds_fences: ClassVar[bool] = False
    """Whether it itself leaves out hosts that are proven dead. Any other step is cut short when that of its VM is, and
    is not undone there."""

    @abstractmethod
    async def do(self, run: Run) -> Outcome:
        """Act on hosts. Harmless when repeated; raises `ApiError` if it cannot be."""

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write to the database what `do` did; an `ApiError` raised here fails the step. Returns what is kept of it."""
        return outcome

    async def undo(self, run: Run) -> None:  # noqa: B027 - most steps have nothing to take back
        """Take back on hosts what `do` did or may have done. Harmless when repeated, also when `do` never began."""

    async def record_undo(self, tx: Transaction, run: Run) -> None:  # noqa: B027
        """Take back in the database what `record` did; only called if it had happened."""

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:  # noqa: B027
        """Note what `undo` could not do, so that it is done when it can be."""


class DatabaseStep(Step):
    """A step without a part outside the database."""

    async def do(self, run: Run) -> Outcome:
        """Nothing; everything is in `record`."""
        return NOTHING


class Workflow(ABC):
    """How operations of one kind go."""

    kind: ClassVar[str]

    @abstractmethod
    def steps(self, parameters: Json) -> Sequence[Step]:
        """Say which steps there are; the same parameters always give the same steps."""

    @abstractmethod
    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Make the answer for the caller, in the transaction that notes the last step as done."""

    async def fail(  # noqa: B027 - some leave nothing
        self, tx: Transaction, operation: Operation, fault: Fault, now: datetime
    ) -> None:
        """Write to the database that the operation failed, in the transaction that ends it."""


class Workflows:
    """All workflows, by kind."""

    def __init__(self, workflows: Sequence[Workflow]) -> None:
        self._by_kind: Mapping[str, Workflow] = {workflow.kind: workflow for workflow in workflows}

    def with_(self, *others: Workflow) -> Workflows:
        """Return these and others, which replace those of the same kind."""
        return Workflows([*self._by_kind.values(), *others])

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind there is."""
        return frozenset(self._by_kind)

    def of(self, kind: str) -> Workflow:
        """Return the workflow of a kind.

        Raises:
            Unimplemented: there is none; an older program took up an operation of a newer one.
        """
        workflow = self._by_kind.get(kind)
        if workflow is None:
            raise operation_errors.operation_unknown(kind)
        return workflow
