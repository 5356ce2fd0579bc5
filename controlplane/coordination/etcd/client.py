"""A client of etcd: one channel an endpoint, whichever answers.

A call is tried at each endpoint in turn, beginning with the one that answered last. That repeats it when nobody knows
whether it took effect, so only calls may be made of which a second one, even a late one, is harmless: lease ids are
chosen here, and transactions compare before they write. Nothing is tried a second time at the same endpoint; whoever
calls knows better when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from controlplane.coordination.interface import CoordinationAway
from etcdserverpb import rpc_pb2 as pb
from etcdserverpb import rpc_pb2_grpc as rpc

ResultT = TypeVar("ResultT")
WatchCall = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]

ATTEMPT_S = 1.0
"""How long one endpoint may take. etcd on disks that keep up answers in 10 ms, and elects a new leader within 2 s."""

_OPTIONS = (
    # Connections are not shared with other clients in the process: one that hangs is then ours to give up.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # When a network that lost everything in silence is back, it is not waited for the kernel to repeat itself, which it
    # does at ever longer intervals. etcd refuses pings that come more often than every 5 s.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.enable_http_proxy", 0),  # as all our daemons: a proxy variable must not divert what is within a cluster
)
_REFUSALS = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
"""Codes by which etcd says that there is no such lease, or is one already; any other means that this endpoint cannot
help."""
_NEEDS_LEADER = (("hasleader", "true"),)
"""Has a member end a stream when it is cut off from the others, rather than keep it silent."""


class EtcdRefused(CoordinationAway):
    """etcd did not do it, and would not at another endpoint either; `code` says why."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """What is needed to speak TLS, as PEM; None for gRPC's own list of CAs, and for no certificate of ours."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None

    @classmethod
    def from_files(cls, ca_path: Path | None, cert_path: Path | None, key_path: Path | None) -> EtcdTls:
        """Read it.

        Raises:
            OSError: a file cannot be read.
        """
        return cls(*(path.read_bytes() if path is not None else None for path in (ca_path, cert_path, key_path)))


class _Endpoint:
    """One member of etcd, as far as we can say."""

    def __init__(self, url: str, tls: EtcdTls | None) -> None:
        self.url = url
        address = url.partition("://")[2]
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
            self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)


class EtcdClient:
    """Belongs to one event loop; connects at the first call.

    Args:
        endpoints: such as "http://127.0.0.1:2379"; with https only if there is `tls`.
    """

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls | None = None, attempt_s: float = ATTEMPT_S) -> None:
        self._endpoints = [_Endpoint(url, tls) for url in endpoints]
        self._attempt_s = attempt_s
        self._preferred = self._endpoints[0]
        self.is_closed = False

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read.

        Raises (as all here):
            EtcdRefused: etcd says no.
            CoordinationAway: no endpoint answered in time; what was to be written may have been, or may be yet.
        """
        return await self._call(lambda at: at.kv.Range(request, timeout=self._attempt_s))

    async def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Write a key of which it does not matter how often and in which order it is written."""
        return await self._call(lambda at: at.kv.Put(request, timeout=self._attempt_s))

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Compare and write; must come to the same when it is done twice."""
        return await self._call(lambda at: at.kv.Txn(request, timeout=self._attempt_s))

    async def grant(self, lease_id: int, ttl_s: int) -> None:
        """Make a lease of an id that nobody else chooses."""
        request = pb.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)
        try:
            await self._call(lambda at: at.lease.LeaseGrant(request, timeout=self._attempt_s))
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            # There is one with this id: made by the attempt before, of which no answer came.

    async def revoke(self, lease_id: int) -> None:
        """End a lease, and with it its keys. Idempotent."""
        request = pb.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._call(lambda at: at.lease.LeaseRevoke(request, timeout=self._attempt_s))
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def keep_alive(self, lease_id: int) -> pb.LeaseKeepAliveResponse:
        """Have a lease last for its whole time again; with a TTL of 0 there is none any more."""
        return await self._call(lambda at: self._keep_alive_at(at, pb.LeaseKeepAliveRequest(ID=lease_id)))

    async def _keep_alive_at(self, at: _Endpoint, request: pb.LeaseKeepAliveRequest) -> pb.LeaseKeepAliveResponse:
        call = at.lease.LeaseKeepAlive(timeout=self._attempt_s)
        try:
            await call.write(request)
            answer = await call.read()
            if isinstance(answer, pb.LeaseKeepAliveResponse):
                return answer
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "the stream ended without answer"
            )
        finally:
            call.cancel()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchCall]:
        """Open a stream at the endpoint that answered last, and cancel it at the end.

        Raises:
            grpc.aio.AioRpcError, grpc.aio.UsageError: here or by the stream; the endpoint is away, or this is closed.
        """
        call = self._preferred.watch.Watch(metadata=_NEEDS_LEADER)
        try:
            yield call
        finally:
            call.cancel()

    async def _call(self, attempt: Callable[[_Endpoint], Awaitable[ResultT]]) -> ResultT:
        failures: list[str] = []
        first = self._endpoints.index(self._preferred)
        for endpoint in (*self._endpoints[first:], *self._endpoints[:first]):
            try:
                answer = await attempt(endpoint)
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSALS:
                    self._preferred = endpoint
                    raise EtcdRefused(error.code(), error.details() or "") from error
                failures.append(f"{endpoint.url}: {self._failure(error)}")
            except grpc.aio.UsageError as error:
                raise CoordinationAway("the client of etcd is closed") from error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # Nobody cancelled the caller: the channel was closed under the call.
                raise CoordinationAway("the client of etcd is closed") from None
            else:
                self._preferred = endpoint
                return answer
        raise CoordinationAway(f"etcd does not answer: {'; '.join(failures)}")

    def _failure(self, error: grpc.aio.AioRpcError) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {self._attempt_s:g} s"
        return f"{error.details() or 'no details'} ({error.code().name})"

    async def close(self) -> None:
        """End all calls, those that wait included."""
        self.is_closed = True
        for endpoint in self._endpoints:
            await endpoint.channel.close()
