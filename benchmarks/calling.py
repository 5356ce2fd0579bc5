"""Calls of a control plane as programs make them: over TLS, with an API key.

A key is sent as metadata of each call. gRPC's own credentials of calls would start a thread for each, which on a small
machine is a tenth of what a read takes, and would be measured as the control plane's.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME


class _Signed:
    """As much of a channel as generated stubs use; its calls carry one of the keys each, in turn."""

    def __init__(self, channel: grpc.aio.Channel, keys: Sequence[str]) -> None:
        self._channel = channel
        self._turns = itertools.cycle([(("authorization", f"Bearer {key}"),) for key in keys])

    def unary_unary(self, *words: Any, **named: Any) -> Any:
        """Make a method's call."""
        return self._signed(self._channel.unary_unary(*words, **named))

    def unary_stream(self, *words: Any, **named: Any) -> Any:
        """Make a stream's call."""
        return self._signed(self._channel.unary_stream(*words, **named))

    def _signed(self, call: Any) -> Any:
        turns = self._turns

        def sign(request: Any, timeout: float | None = None) -> Any:
            return call(request, timeout=timeout, metadata=next(turns))

        return sign


@asynccontextmanager
async def open_as(keys: Sequence[str], address: str, authority_pem: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a control plane that calls with keys.

    Args:
        keys: in turn; how often each may be used is limited.
        authority_pem: whom to believe.
    """
    trust = grpc.ssl_channel_credentials(authority_pem.encode())
    async with open_channel(address, trust, CONTROL_PLANE_SERVER_NAME) as channel:
        yield cast("grpc.aio.Channel", _Signed(channel, keys))
