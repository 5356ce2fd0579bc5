"""Coordination by etcd. Of each cluster it holds, below the cluster's prefix:

    leader            who is elected, as JSON; goes with the session of that process
    revoked/<node>    the token of the fence because of which a node gets no lease
    wake/<topic>      changes when somebody wakes; never deleted

A new revision of the store comes of each election (and of the end of a leader's session), each fence (one when it is
opened, one when it ends) and each wake-up; none of time passing, since keeping sessions alive and reading make none.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.election import EtcdElection
from controlplane.coordination.etcd.watch import Change, KeyWatch
from controlplane.coordination.interface import Candidate, CoordinationAway, RevocationMark
from etcdserverpb import rpc_pb2 as pb
from mvccpb import kv_pb2

ParsedT = TypeVar("ParsedT")


class EtcdCoordinator:
    """Belongs to one event loop; has the client to itself."""

    def __init__(self, client: EtcdClient, prefix: str, session_ttl_s: int) -> None:
        self._client = client
        self._leader_key = f"{prefix}leader".encode()
        self._revoked_prefix = f"{prefix}revoked/".encode()
        self._wake_prefix = f"{prefix}wake/".encode()
        self._session_ttl_s = session_ttl_s

    @asynccontextmanager
    async def elect(self, candidate: Candidate) -> AsyncIterator[EtcdElection]:
        """Take part while the context lasts; leaving it resigns."""
        election = EtcdElection(self._client, self._leader_key, candidate, self._session_ttl_s)
        election.start()
        try:
            yield election
        finally:
            await election.resign()

    async def leader(self) -> Candidate | None:
        """Read who is elected."""
        read = await self._client.range(pb.RangeRequest(key=self._leader_key))
        return _read(read.kvs[0], lambda _, value: _candidate(value)) if read.kvs else None

    async def publish_revocation(self, mark: RevocationMark) -> None:
        """Publish a mark, unless there is a newer one."""
        key = self._revoked_prefix + mark.node_id.encode()
        # Holds of no key that is not there, so such a one is written.
        is_as_new = pb.Compare(
            result=pb.Compare.GREATER, target=pb.Compare.VALUE, key=key, value=_token_value(mark.token - 1)
        )
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=_token_value(mark.token)))
        await self._client.txn(pb.TxnRequest(compare=[is_as_new], failure=[put]))

    async def clear_revocation(self, mark: RevocationMark) -> None:
        """Take a mark back, unless there is a newer one."""
        key = self._revoked_prefix + mark.node_id.encode()
        is_not_newer = pb.Compare(
            result=pb.Compare.LESS, target=pb.Compare.VALUE, key=key, value=_token_value(mark.token + 1)
        )
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        await self._client.txn(pb.TxnRequest(compare=[is_not_newer], success=[delete]))

    async def revocations(self) -> dict[str, int]:
        """Read all marks, by a reading that takes the majority."""
        begin = self._revoked_prefix
        end = begin[:-1] + bytes([begin[-1] + 1])
        read = await self._client.range(pb.RangeRequest(key=begin, range_end=end, serializable=False))
        return dict(_read(kv, lambda key, value: (key.removeprefix(begin).decode(), int(value))) for kv in read.kvs)

    async def wake(self, topic: str) -> None:
        """Change the topic's key."""
        with suppress(CoordinationAway):
            await self._client.put(pb.PutRequest(key=self._wake_prefix + topic.encode()))

    async def woken(self, topic: str) -> AsyncGenerator[None, None]:
        """Yield when connected and whenever the topic's key was changed."""
        watch = KeyWatch(self._client, self._wake_prefix + topic.encode())
        async with aclosing(watch.changes()) as changes:
            async for change in changes:
                if change is not Change.DELETED:
                    yield

    async def check(self) -> None:
        """Read something that takes the majority."""
        await self._client.range(pb.RangeRequest(key=self._leader_key, count_only=True))

    async def close(self) -> None:
        """Close all connections; what waits for news ends."""
        await self._client.close()


def _token_value(token: int) -> bytes:
    """Write a token so that bytes are ordered as numbers are; -1 comes before 0."""
    return f"{token:020d}".encode()


def _read(kv: kv_pb2.KeyValue, parse: Callable[[bytes, bytes], ParsedT]) -> ParsedT:
    """Parse what may have been written by anybody who may write to etcd.

    Raises:
        CoordinationAway: it cannot be parsed. The rest is not told then either, or a mark would be taken for absent.
    """
    try:
        return parse(kv.key, kv.value)
    except (ValueError, TypeError, KeyError) as error:
        raise CoordinationAway(f"etcd holds {kv.key!r} with {kv.value[:80]!r}, which is not ours; delete it") from error


def _candidate(value: bytes) -> Candidate:
    said = json.loads(value)  # maybe by a later version, which says more
    return Candidate(id=said["id"], hostname=said["hostname"], address=said["address"])
