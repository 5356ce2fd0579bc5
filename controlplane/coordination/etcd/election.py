"""Election by a key of etcd that goes with its holder's session.

Each candidate has a session: a lease of etcd, kept alive. Elected is whose session the key belongs to; the others look
at the key, and make it theirs when it is gone. A holder takes itself to be elected for less than its session can last:
it counts from before it *sent* what kept the session alive, by a clock that runs on while the machine sleeps.

A member of etcd that was its leader and does not know yet that another one is, keeps sessions alive that mean nothing.
So what it says counts only once a reading that took the majority has shown the key, in the same term of etcd's own
leader. A term has one leader, and each new one lets all sessions last for their whole time again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import asdict

import grpc
import structlog

from controlplane.coordination.etcd.client import EtcdClient, EtcdRefused
from controlplane.coordination.etcd.watch import Change, KeyWatch
from controlplane.coordination.interface import Candidate, CoordinationAway
from etcdserverpb import rpc_pb2 as pb
from mvccpb import kv_pb2

_log = structlog.get_logger(__name__)

MARGIN_SHARE = 0.1
"""Of a session, how much earlier its holder takes it to have ended: for clocks that drift, and for acting late."""
LOOKS_PER_SESSION = 5
"""Two that fail, or endpoints that do not answer, end no session."""
RETRY_S = 0.25
"""After a look that failed, or came between two terms of etcd's leader."""
_NEVER_S = float("-inf")
RESIGN_S = 1.0
"""How long leaving waits for etcd; else the session ends by itself."""


def boot_clock_s() -> float:
    """Seconds since the boot of this machine, which go on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class EtcdElection:
    """One candidate; `run` does the work."""

    def __init__(
        self,
        client: EtcdClient,
        key: bytes,
        candidate: Candidate,
        session_ttl_s: int,
        clock: Callable[[], float] = boot_clock_s,
    ) -> None:
        self._client = client
        self._key = key
        self._value = json.dumps(asdict(candidate)).encode()
        self._ttl_s = session_ttl_s
        self._clock = clock
        self._lease_id = 0
        self._until_s = _NEVER_S
        self._obstacle = "etcd was not asked yet"
        self._news = asyncio.Event()
        self._look_now = asyncio.Event()
        self._has_resigned = False
        self._running: asyncio.Task[None] | None = None

    @property
    def is_elected(self) -> bool:
        """Whether the key is ours and our session cannot have ended."""
        return self._clock() < self._until_s

    @property
    def obstacle(self) -> str:
        """Why etcd is of no help; "" when it is."""
        return self._obstacle

    async def changed(self) -> None:
        """Wait for news since the last time, or until the session may have ended; one caller at a time."""
        left_s = self._until_s - self._clock() if self.is_elected else None
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._news.wait()
        self._news.clear()

    async def resign(self) -> None:
        """Leave the election for good, and let the next one know at once if etcd answers. Idempotent."""
        if self._has_resigned:
            return
        self._has_resigned = True
        self._note_elected_until(_NEVER_S)
        await self._stop()
        if self._lease_id:
            with suppress(CoordinationAway, TimeoutError):
                async with asyncio.timeout(RESIGN_S):
                    await self._client.revoke(self._lease_id)

    # -- the work

    def start(self) -> None:
        """Take part from now on, until `resign`."""
        self._running = asyncio.get_running_loop().create_task(self._run(), name="EtcdElection")

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            if not self._running.cancelled():
                self._running.exception()  # was logged

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_looking())
                group.create_task(self._listen())
        except Exception:
            self._note_obstacle("this process left the election after an internal error; see its log")
            _log.exception("election_failed")
            raise

    async def _listen(self) -> None:
        async with aclosing(KeyWatch(self._client, self._key).changes()) as changes:
            async for change in changes:
                if change is not Change.PUT:
                    self._look_now.set()

    async def _keep_looking(self) -> None:
        while True:
            try:
                pause_s = await self._look()
                self._note_obstacle("")
            except CoordinationAway as error:
                self._note_obstacle(str(error))
                pause_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_now.wait()
            self._look_now.clear()

    async def _look(self) -> float:
        """Keep the session alive and see whose the key is; returns after how many seconds to do so again."""
        if not self._lease_id:
            lease_id = secrets.randbits(62) + 1
            await self._client.grant(lease_id, self._ttl_s)
            self._lease_id = lease_id
        sent_s = self._clock()
        renewed = await self._client.keep_alive(self._lease_id)
        if renewed.TTL <= 0:
            return self._lose_session()
        try:
            holder, term = await self._holder()
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return self._lose_session()
        if holder.lease != self._lease_id:
            self._note_elected_until(_NEVER_S)
        elif term != renewed.header.raft_term:
            return RETRY_S
        else:
            self._note_elected_until(sent_s + renewed.TTL * (1 - MARGIN_SHARE))
        return self._ttl_s / LOOKS_PER_SESSION

    def _lose_session(self) -> float:
        self._lease_id = 0
        self._note_elected_until(_NEVER_S)
        return 0.0

    async def _holder(self) -> tuple[kv_pb2.KeyValue, int]:
        """Read the key, or make it ours if it is not there; returns it, and the term in which that was so.

        Raises:
            EtcdRefused: with NOT_FOUND: the session has ended.
        """
        read = await self._client.range(pb.RangeRequest(key=self._key))
        if read.kvs:
            return read.kvs[0], read.header.raft_term
        is_absent = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=self._key, create_revision=0)
        put = pb.PutRequest(key=self._key, value=self._value, lease=self._lease_id)
        claim = await self._client.txn(
            pb.TxnRequest(
                compare=[is_absent],
                success=[pb.RequestOp(request_put=put)],
                failure=[pb.RequestOp(request_range=pb.RangeRequest(key=self._key))],
            )
        )
        if claim.succeeded:
            return kv_pb2.KeyValue(key=self._key, lease=self._lease_id), claim.header.raft_term
        return claim.responses[0].response_range.kvs[0], claim.header.raft_term

    def _note_elected_until(self, until_s: float) -> None:
        was_elected = self.is_elected
        self._until_s = until_s
        if was_elected != self.is_elected:
            self._news.set()

    def _note_obstacle(self, obstacle: str) -> None:
        if bool(obstacle) != bool(self._obstacle):
            self._news.set()
        self._obstacle = obstacle
