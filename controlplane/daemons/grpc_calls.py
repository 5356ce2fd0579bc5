"""One call on a node daemon over gRPC: its time limit, what it tells of us, and how its failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from limiquantix.errors import Reason, Unavailable
from limiquantix.rpc.status import from_rpc_error

if TYPE_CHECKING:  # the asynchronous types exist for type checkers only
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

    StreamCall = grpc.aio.UnaryStreamCall[Any, "ResponseT"]

ResponseT = TypeVar("ResponseT")

TOKEN_KEY: Final = "limiquantix-fence-token"  # noqa: S105 - a name, no secret
EPOCH_KEY: Final = "limiquantix-epoch"
"""Metadata of calls: what daemons compare with what they know, see decision 23."""


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """How long to wait for a daemon, in seconds.

    `query_s` for reads, `power_s` for start, pause and the like, `create_s` where disk images are made or removed,
    `copy_s` where whole disks are copied: a little more than the daemon allows itself, so that its reason is heard.
    A graceful stop gets the guest's own time and `power_s` on top.
    """

    query_s: float = 5.0
    power_s: float = 60.0
    create_s: float = 300.0
    copy_s: float = 4 * 3600.0 + 300.0


@dataclass(frozen=True, slots=True)
class Told:
    """What all calls on one object tell the daemon; an epoch of 0 is not told."""

    fence_token: int
    epoch: int = 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """As it goes with a call."""
        token = (TOKEN_KEY, str(self.fence_token))
        return (token, (EPOCH_KEY, str(self.epoch))) if self.epoch else (token,)


class GrpcCalls:
    """What the calls of one daemon, as it is called with one token, have in common."""

    def __init__(self, stub: NodeDaemonServiceAsyncStub, peer: str, timeouts: CallTimeouts, told: Told) -> None:
        self._stub = stub
        self._peer = peer
        self._timeouts = timeouts
        self.told = told
        self._metadata = told.metadata

    async def _call(self, method: Callable[..., Awaitable[ResponseT]], request: Message, timeout_s: float) -> ResponseT:
        with self._failures():
            return await method(request, timeout=timeout_s, metadata=self._metadata)

    async def _stream(
        self, method: Callable[..., StreamCall[ResponseT]], request: Message
    ) -> AsyncGenerator[ResponseT, None]:
        """Yield what the daemon sends for as long as it takes; who reads gives up on a silent stream."""
        with self._failures():
            call = method(request, metadata=self._metadata)
            try:
                async for message in call:
                    yield message
            finally:
                call.cancel()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Tell failures of the library in our own errors."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error
        except grpc.aio.UsageError as error:
            raise self._moved() from error  # the channel was closed before the call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled the caller: the channel was closed under the call, which the library tells in this way.
            raise self._moved() from None

    def _moved(self) -> Unavailable:
        return Unavailable(
            Reason.NODE_UNREACHABLE,
            f"{self._peer} is called at another address now, or no longer; look at the VM and try again",
            metadata={"peer": self._peer},
        )
