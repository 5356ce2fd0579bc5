"""Watch one key of etcd for as long as somebody wants to know, over whichever endpoint answers.

A stream tells nothing while nothing happens, so it is asked for a sign of life; one that gives none is left for
another. A new stream continues at the revision behind the last change that was told. What a sign of life says of
revisions is not used: of etcd 3.4 it may be ahead of changes that are yet to be told.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import grpc
import structlog

from controlplane.coordination.etcd.client import EtcdClient, WatchCall
from controlplane.coordination.interface import CoordinationAway
from etcdserverpb import rpc_pb2 as pb
from mvccpb import kv_pb2

_log = structlog.get_logger(__name__)

PROGRESS_S = 2.0
"""How long a stream may be silent until it is asked for a sign of life, and then once more."""
RECONNECT_S = 0.2
"""Before the next stream: members that are away fail at once, and would otherwise be asked without pause."""


class Change(enum.Enum):
    """What is told."""

    CONNECTED = "connected"
    """From here on changes are told; so are those since the last stream, unless etcd has compacted them away."""
    PUT = "put"
    DELETED = "deleted"


class KeyWatch:
    """Tells what happens to a key, to one listener."""

    def __init__(self, client: EtcdClient, key: bytes) -> None:
        self._client = client
        self._key = key
        self._next_revision = 0

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Yield, for changes that came together, the last of them. Ends when the client is closed; never raises.

        Use `contextlib.aclosing`, or the stream stays until the iterator is collected.
        """
        while not self._client.is_closed:
            try:
                async with self._client.watch() as call, aclosing(self._of(call)) as changes:
                    async for change in changes:
                        yield change
            except grpc.aio.AioRpcError as error:
                _log.debug("watch_lost", key=self._key.decode(), error=error.details())
            except (grpc.aio.UsageError, TimeoutError) as error:
                _log.debug("watch_lost", key=self._key.decode(), error=str(error))
            await asyncio.sleep(RECONNECT_S)
            with suppress(CoordinationAway):
                # Any question has the client find an endpoint that is with the majority.
                await self._client.range(pb.RangeRequest(key=self._key, count_only=True))

    async def _of(self, call: WatchCall) -> AsyncGenerator[Change, None]:
        request = pb.WatchCreateRequest(key=self._key, start_revision=self._next_revision)
        await _write(call, pb.WatchRequest(create_request=request))
        async with aclosing(_answers(call)) as answers:
            async for answer in answers:
                if answer.canceled:
                    self._next_revision = answer.compact_revision or self._next_revision
                    return
                if answer.created:
                    # Even if nothing happens before the stream is lost.
                    self._next_revision = self._next_revision or answer.header.revision + 1
                    yield Change.CONNECTED
                if answer.events:
                    last = answer.events[-1]
                    self._next_revision = last.kv.mod_revision + 1
                    yield Change.DELETED if last.type == kv_pb2.Event.DELETE else Change.PUT


async def _answers(call: WatchCall) -> AsyncGenerator[pb.WatchResponse, None]:
    """Yield what comes; raises TimeoutError when nothing does."""
    reading = asyncio.ensure_future(call.read())
    is_asked = False
    try:
        while True:
            # Not by a timeout: a read that is cancelled ends the stream.
            await asyncio.wait([reading], timeout=PROGRESS_S)
            if not reading.done():
                if is_asked:
                    raise TimeoutError("no sign of life")
                await _write(call, pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                is_asked = True
                continue
            if reading.cancelled():
                return  # the channel was closed under it
            answer = reading.result()
            if not isinstance(answer, pb.WatchResponse):
                return
            is_asked = False
            reading = asyncio.ensure_future(call.read())
            yield answer
    finally:
        reading.cancel()


async def _write(call: WatchCall, request: pb.WatchRequest) -> None:
    async with asyncio.timeout(PROGRESS_S):  # a member that was stopped takes connections, but never answers
        await call.write(request)
