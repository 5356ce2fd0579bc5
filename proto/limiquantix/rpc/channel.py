"""Open a client channel as every LimiQuantix program does: bounded messages, keep-alive, quick reconnects.

Keep-alive notices a vanished peer only after many seconds, so every call made over such a channel carries a deadline of
its own; the channel sets none.
"""

from __future__ import annotations

from typing import Final

import grpc

from limiquantix.rpc.limits import MAX_MESSAGE_BYTES

CONNECT_LIMIT_MS: Final = 3_000
"""An attempt to connect that got no answer is given up after this time; by default after 20 s, which is how long a peer
behind a mended network would still be taken for lost."""
CROWD_CONNECT_LIMIT_MS: Final = 10_000
"""The same where all hosts connect to one server at once, as after its restart. They wait in line for half a
millisecond of its CPU each. Those who give up and come again must be served twice, and it gets no further: with 3 s
that begins at some 5,000 hosts. As long as the server waits for a handshake to be completed."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Below the time for which a command is tried again: a daemon that is back must be found within it.
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),  # daemons talk to each other directly; a proxy variable must not divert them
)


def open_channel(
    address: str,
    tls: grpc.ChannelCredentials | None = None,
    server_name: str = "",
    connect_limit_ms: int = CONNECT_LIMIT_MS,
) -> grpc.aio.Channel:
    """Open a channel to "host:port"; connects at the first call. Without `tls` the channel is plain text.

    Args:
        server_name: what the other side's certificate must name; "" for the host of the address.
        connect_limit_ms: how long an attempt to connect may take, the handshake included.
    """
    options: tuple[tuple[str, int | str], ...] = (*_OPTIONS, ("grpc.min_reconnect_backoff_ms", connect_limit_ms))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if server_name:
        options = (*options, ("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(address, tls, options=options)
