"""When a candidate takes itself to be elected, by a clock that is told and an etcd that says what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc

from controlplane.coordination.etcd.client import EtcdClient, EtcdRefused, WatchCall
from controlplane.coordination.etcd.election import MARGIN_SHARE, EtcdElection
from controlplane.coordination.interface import CoordinationAway
from etcdserverpb import rpc_pb2 as pb
from mvccpb import kv_pb2
from tests.support.elections import candidate, until, until_elected, until_not_elected

KEY = b"/leader"
SHORTEST_TTL_S = 1
"""So that the candidate looks five times a second."""
GRANTED_TTL_S = 100.0


@dataclass
class ScriptedEtcd:
    """One key and any number of leases; members may disagree about the term."""

    now_s: float = 1_000.0
    term: int = 5
    renewing_term: int | None = None
    """Of the member that keeps leases alive, if it is another one than the rest are in."""
    call_s: float = 0.0
    """How long each call takes."""
    is_away: bool = False
    forgets_leases: bool = False
    leases: set[int] = field(default_factory=set)
    holder: kv_pb2.KeyValue | None = None
    look_count: int = 0
    asked_s: float = 0.0
    """When it was last asked to keep a lease alive, and did."""
    is_closed: bool = False

    def clock(self) -> float:
        return self.now_s

    def _answer(self) -> None:
        if self.is_away:
            raise CoordinationAway("nobody answers")
        self.now_s += self.call_s

    async def grant(self, lease_id: int, _ttl_s: int) -> None:
        self._answer()
        self.leases.add(lease_id)

    async def revoke(self, lease_id: int) -> None:
        self._answer()
        self.leases.discard(lease_id)
        if self.holder is not None and self.holder.lease == lease_id:
            self.holder = None

    async def keep_alive(self, lease_id: int) -> pb.LeaseKeepAliveResponse:
        began_s = self.now_s
        self._answer()
        self.asked_s = began_s
        if self.forgets_leases:
            await self.revoke(lease_id)
        header = pb.ResponseHeader(raft_term=self.renewing_term or self.term)
        return pb.LeaseKeepAliveResponse(header=header, TTL=int(GRANTED_TTL_S) if lease_id in self.leases else 0)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        self._answer()
        if not request.count_only:
            self.look_count += 1
        kvs = [self.holder] if self.holder is not None else []
        return pb.RangeResponse(header=pb.ResponseHeader(raft_term=self.term), kvs=kvs)

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        self._answer()
        header = pb.ResponseHeader(raft_term=self.term)
        put = request.success[0].request_put
        if put.lease not in self.leases:
            raise EtcdRefused(grpc.StatusCode.NOT_FOUND, "requested lease not found")
        if self.holder is None:
            self.holder = kv_pb2.KeyValue(key=put.key, value=put.value, lease=put.lease)
            return pb.TxnResponse(header=header, succeeded=True)
        other = pb.ResponseOp(response_range=pb.RangeResponse(kvs=[self.holder]))
        return pb.TxnResponse(header=header, responses=[other])

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchCall]:
        await asyncio.Event().wait()  # tells nothing
        yield cast("WatchCall", None)


@asynccontextmanager
async def electing(etcd: ScriptedEtcd) -> AsyncIterator[EtcdElection]:
    client = cast("EtcdClient", etcd)
    election = EtcdElection(client, KEY, candidate("a"), SHORTEST_TTL_S, etcd.clock)
    election.start()
    try:
        yield election
    finally:
        await election.resign()


async def looks_again(etcd: ScriptedEtcd, times: int = 2) -> None:
    """Wait until looks have begun and ended."""
    wanted = etcd.look_count + times
    await until(lambda: etcd.look_count >= wanted)


async def test_elected_ends_before_a_session_counted_from_the_question_by_the_clock_alone() -> None:
    etcd = ScriptedEtcd(call_s=7.0)  # the answer comes late, and the reading that confirms it later
    async with electing(etcd) as election:
        await until_elected(election)
        etcd.is_away = True
        await until(lambda: election.obstacle == "nobody answers")
        ends_s = etcd.asked_s + GRANTED_TTL_S * (1 - MARGIN_SHARE)

        etcd.now_s = ends_s - 0.001
        assert election.is_elected
        etcd.now_s = ends_s
        assert not election.is_elected


async def test_session_kept_alive_in_another_term_than_was_read_counts_for_nothing() -> None:
    etcd = ScriptedEtcd(renewing_term=4)
    async with electing(etcd) as election:
        await until(lambda: etcd.holder is not None)
        await looks_again(etcd)
        assert not election.is_elected

        etcd.renewing_term = None
        await until_elected(election)

        etcd.term, etcd.renewing_term = 6, 5  # one that leads no more keeps it alive
        await looks_again(etcd)
        kept_until_s = etcd.now_s + GRANTED_TTL_S * (1 - MARGIN_SHARE)
        etcd.now_s += 1
        await looks_again(etcd)
        etcd.now_s = kept_until_s

        assert not election.is_elected


async def test_session_that_is_over_ends_it_and_another_session_is_begun() -> None:
    etcd = ScriptedEtcd()
    async with electing(etcd) as election:
        await until_elected(election)
        before = etcd.holder

        etcd.forgets_leases = True
        await until_not_elected(election)
        etcd.forgets_leases = False
        await until_elected(election)

        assert before is not None
        assert etcd.holder is not None
        assert etcd.holder.lease != before.lease


async def test_key_of_somebody_else_is_waited_for() -> None:
    etcd = ScriptedEtcd(holder=kv_pb2.KeyValue(key=KEY, lease=1))
    async with electing(etcd) as election:
        await looks_again(etcd)
        assert not election.is_elected
        assert election.obstacle == ""

        etcd.holder = None
        await until_elected(election)


async def test_key_taken_by_somebody_else_ends_it() -> None:
    etcd = ScriptedEtcd()
    async with electing(etcd) as election:
        await until_elected(election)

        etcd.holder = kv_pb2.KeyValue(key=KEY, lease=1)

        await until_not_elected(election)
        assert not election.obstacle, "etcd answers: it is another one's turn"


async def test_resign_while_nobody_answers_ends_it_at_once() -> None:
    etcd = ScriptedEtcd()
    async with electing(etcd) as election:
        await until_elected(election)
        etcd.is_away = True

        await election.resign()

        assert not election.is_elected
        assert etcd.holder is not None  # until the session ends


async def test_defect_is_told_and_ends_the_part_in_the_election() -> None:
    etcd = ScriptedEtcd()
    async with electing(etcd) as election:
        await until_elected(election)
        etcd.holder = cast("kv_pb2.KeyValue", "nonsense")

        await until(lambda: "internal error" in election.obstacle)
        etcd.now_s += GRANTED_TTL_S
        assert not election.is_elected
        etcd.holder = None
