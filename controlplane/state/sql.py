"""The interface's store on a SQL database: opens it, runs transactions, repeats them, and says when it cannot."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from controlplane.domain import errors
from controlplane.state.engine import Database, Progress, Session, SessionPool, StoreLimits
from controlplane.state.faults import OUTCOME_UNKNOWN, is_conflict, is_lost, unavailable
from controlplane.state.interface import SchemaMismatch, Transaction
from controlplane.state.revision import mismatch, stored_revision
from controlplane.state.schema_base import REVISION
from controlplane.state.transaction import SqlTransaction
from limiquantix.errors import Aborted

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)

_MET_ANOTHER = "a transaction met another and begins anew"


class SqlStore:
    """A store; any number of them, in any number of processes, may share one database."""

    def __init__(self, database: Database, limits: StoreLimits) -> None:
        self._database = database
        self._limits = limits
        self._pools = database.pools(limits)
        self._is_open = False
        self._probes: set[asyncio.Task[str | None]] = set()

    async def open(self) -> None:
        """Connect and check the schema's revision; see the interface."""
        if not await asyncio.to_thread(self._database.exists):
            raise mismatch(None)
        found = await self._serve(self._pools.reader, _read_revision, self._limits.total_s)
        if found != REVISION:
            raise await asyncio.to_thread(_mismatch, found)
        self._is_open = True

    async def close(self) -> None:
        """Let go of the database; safe to call twice. Waits `StoreLimits.release_s` for work that is under way."""
        self._is_open = False
        await self._pools.reader.dispose()
        await self._pools.writer.dispose()

    async def ping(self) -> None:
        """Read something small; Unavailable if it takes longer than `StoreLimits.ping_s`, even on dead storage."""
        self._require_open()
        limit_s = self._limits.ping_s
        # A task of its own: on a file system that hangs, even giving the connection back would hold the caller.
        probe = asyncio.create_task(self._serve(self._pools.reader, _read_revision, limit_s))
        self._probes.add(probe)
        probe.add_done_callback(self._end_probe)
        done, _ = await asyncio.wait({probe}, timeout=limit_s)
        if not done:
            probe.cancel()
            raise errors.state_unavailable(f"no answer within {limit_s:g} s")
        await probe

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do the work in one transaction; see the interface.

        The work runs in a thread of its own. A cancelled call ends when its statement under way has ended or was
        interrupted; nothing of it remains, unless the commit was already under way.
        """
        return await self._transact(self._pools.writer, work, read_only=False)

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do read-only work on one snapshot; see the interface.

        Raises:
            RuntimeError: the work writes.
        """
        return await self._transact(self._pools.reader, work, read_only=True)

    async def _transact(
        self, pool: SessionPool, work: Callable[[Transaction], Awaitable[ResultT]], *, read_only: bool
    ) -> ResultT:
        self._require_open()

        async def use(session: Session) -> ResultT:
            transaction = SqlTransaction(session, read_only=read_only)
            result = await work(transaction)
            transaction.require_usable()
            return result

        return await self._serve(pool, use, self._limits.total_s, writes=not read_only)

    async def _serve(
        self, pool: SessionPool, use: Callable[[Session], Awaitable[ResultT]], limit_s: float, *, writes: bool = False
    ) -> ResultT:
        """Run one transaction within the limit, repeated as needed, with the database's faults in our words."""
        progress = Progress()
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._repeat(pool, use, progress, writes=writes)
        except TimeoutError as error:
            if not limit.expired():
                raise  # the work's own
            in_doubt = f"; {OUTCOME_UNKNOWN}" if progress.commit_sent else ""
            raise errors.state_unavailable(f"no answer within {limit_s:g} s{in_doubt}") from error
        except DBAPIError as error:
            refusal = unavailable(error, commit_sent=progress.commit_sent)
            if refusal is None:
                raise
            raise refusal from error

    async def _repeat(
        self,
        pool: SessionPool,
        use: Callable[[Session], Awaitable[ResultT]],
        progress: Progress,
        *,
        writes: bool,
    ) -> ResultT:
        """Begin anew after a conflict, each time in a new transaction, with growing, random pauses between."""
        longest_pause_s = self._limits.first_pause_s
        has_reconnected = False
        for attempts_left in reversed(range(self._limits.attempt_count)):
            try:
                return await pool.transact(use, progress, writes=writes)
            except Aborted:
                # A row changed after the work had read it. If that was in this transaction, as it mostly is, the next
                # one reads what it is now. SQLite's writers never meet this.
                if not (attempts_left and writes):
                    raise
                _log.debug(_MET_ANOTHER, exc_info=True)
            except DBAPIError as error:
                # A connection that died while it lay in the pool says nothing about the database; once one is found,
                # the pool drops all that are as old. Never again after the commit was sent: it may have happened.
                if is_lost(error) and not (progress.commit_sent or has_reconnected) and attempts_left:
                    has_reconnected = True
                    continue
                if not (is_conflict(error) and attempts_left):
                    raise
                _log.debug(_MET_ANOTHER, exc_info=True)
            await asyncio.sleep(random.uniform(0, longest_pause_s))  # noqa: S311 - spreads callers, guards nothing
            longest_pause_s *= 2
        raise AssertionError("no attempt was the last one")

    def _end_probe(self, probe: asyncio.Task[str | None]) -> None:
        self._probes.discard(probe)
        if not probe.cancelled():
            probe.exception()  # a caller that no longer waits has no use for it

    def _require_open(self) -> None:
        if not self._is_open:
            raise errors.state_unavailable("the store is not open; the control plane is starting or ending")


async def _read_revision(session: Session) -> str | None:
    return await session.call(stored_revision)


def _mismatch(found: str | None) -> SchemaMismatch:
    """Describe the wrong schema; only now is Alembic needed, to tell an older one from a newer."""
    from controlplane.state.migration import is_older  # noqa: PLC0415

    return mismatch(found, is_older=found is None or is_older(found))
