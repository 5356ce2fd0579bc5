"""How far an operation is, written exactly once each time, and only by the process that owns it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from controlplane.domain.operation import Operation
from controlplane.operations.steps import OwnershipLost
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError, Reason, Unavailable

Write = Callable[[Transaction, Operation], Awaitable[Operation]]


class StoreAway(Exception):
    """The database does not answer; the operation stays as it is recorded and can be run again later."""


class _Outdated(Exception):
    """The operation was changed since it was read; the transaction is taken back."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Writes progress of operations.

    Attributes:
        pauses_s: between tries while the database is away.
        on_change: called after each write, with the operation as stored.
    """

    store: Store
    pauses_s: Sequence[float]
    on_change: Callable[[Operation], None]

    async def write(self, operation: Operation, work: Write) -> Operation:
        """Write progress exactly once, and again while the database is away: what a step did is not forgotten.

        A commit whose answer is lost may have happened. Then the operation has a newer version, and is further than it
        was; if it only has a newer version, its step noted something or somebody asked for its cancellation meanwhile.

        Raises:
            OwnershipLost: another process has the operation.
            StoreAway: the database does not answer.
        """
        pauses_s = iter(self.pauses_s)
        while True:
            try:
                stored = await self.store.run(lambda tx, latest=operation: work(tx, latest))  # type: ignore[misc]
            except _Outdated:
                latest = await self._read(operation)
                if _stage_of(latest) == _stage_of(operation):
                    operation = latest
                    continue
                stored = latest
            except Unavailable as error:
                if error.reason != Reason.STATE_UNAVAILABLE:
                    raise
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    raise StoreAway from error
                await asyncio.sleep(pause_s)
                continue
            self.on_change(stored)
            return stored

    async def _read(self, operation: Operation) -> Operation:
        """Read the operation again, if it is still ours."""
        try:
            latest = await self.store.read(lambda tx: tx.get_operation(operation.id))
        except Unavailable as error:
            raise StoreAway from error
        mine = (operation.owner_id, operation.attempt_count)
        if latest is None or (latest.owner_id, latest.attempt_count) != mine:
            raise OwnershipLost
        return latest


async def advance(tx: Transaction, operation: Operation) -> Operation:
    """Write an operation as it is now; only within `Progress.write`, which sees to it if it was changed meanwhile."""
    stored = await tx.advance_operation(operation)
    if stored is None:
        raise _Outdated
    return stored


async def with_new_generation(tx: Transaction, operation: Operation, at_least: int = 0) -> Operation:
    """Write an operation with a generation larger than all before, and than `at_least`; as `advance`."""
    counted = await tx.next_generation(operation.resource_id, at_least)
    # Without a VM there is no row that counts: one more is newer than all that this operation sent.
    generation = counted if counted is not None else max(operation.generation, at_least) + 1
    renewed = replace(operation, generation=generation, version=operation.version + 1)
    if not await tx.take_operation(renewed, operation.version):
        raise _Outdated
    return renewed


def raise_if_store_is_away(error: ApiError) -> None:
    """A database that does not answer is no failure of the operation.

    Raises:
        StoreAway: the error says so.
    """
    if error.reason == Reason.STATE_UNAVAILABLE:
        raise StoreAway from error


def _stage_of(operation: Operation) -> tuple[int, tuple[int, ...]]:
    """How far an operation is. What its steps found is no part of it, since a step may note that as it goes on."""
    return operation.state, tuple(step.state for step in operation.steps)
