"""Open a client channel as every LimiQuantix program does: bounded messages, keep-alive, quick reconnects.

Keep-alive notices a vanished peer only after many seconds, so every call made over such a channel carries a deadline of
its own; the channel sets none.
"""

from __future__ import annotations

import grpc

from limiquantix.rpc.server import MAX_MESSAGE_BYTES, TlsFiles

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Below the time for which a command is tried again: a daemon that is back must be found within it.
    ("grpc.max_reconnect_backoff_ms", 500),
    # An attempt to connect that got no answer is given up after this time; by default after 20 s, which is how long a
    # peer behind a mended network would still be taken for lost.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.enable_http_proxy", 0),  # daemons talk to each other directly; a proxy variable must not divert them
)


def open_channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """Open a channel to "host:port"; connects at the first call. Without `tls` the channel is plain text."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca_path.read_bytes() if tls.ca_path else None,
        private_key=tls.key_path.read_bytes(),
        certificate_chain=tls.cert_path.read_bytes(),
    )
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
