"""From where calls come that reverse proxies pass on: by `X-Forwarded-For`, as far as who wrote it is trusted.

Each proxy adds the address that it was called from at the right, and passes on what stood there, which its caller could
invent. So what counts is the right-most address that is none of the trusted proxies' own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HEADER = "x-forwarded-for"
_MAX_HOPS = 32
"""Looked at from the right; whoever needs more proxies writes nonsense."""


def with_true_addresses(app: ASGIApp, trusted: Sequence[Network]) -> ASGIApp:
    """Wrap an application so that it sees callers' own addresses behind the trusted proxies; all is as it is without.

    The port of such a caller is not known, and 0.
    """
    if not trusted:
        return app

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None:
            told = Headers(scope=scope).getlist(HEADER)
            address = caller_address(client[0], told, trusted)
            if address != client[0]:
                scope = {**scope, "client": (address, 0)}
        await app(scope, receive, send)

    return wrapped


def caller_address(peer: str, told: Sequence[str], trusted: Sequence[Network]) -> str:
    """Say who called.

    Args:
        peer: the address at the other end of the connection.
        told: the values of all `X-Forwarded-For` headers, in their order.
    """
    found = _parsed(peer)
    if found is None or not _is_one_of(found, trusted):
        return peer
    hops = ",".join(told).split(",") if told else []
    for hop in reversed(hops[-_MAX_HOPS:]):
        address = _parsed(hop)
        if address is None:
            break  # the proxy that was found last wrote this of its caller, and it tells nothing
        found = address
        if not _is_one_of(found, trusted):
            break
    return str(found)


def _is_one_of(address: _Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parsed(text: str) -> _Address | None:
    """Read an address, with or without a port, as proxies write it; one of IPv4 in IPv6 is one of IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
