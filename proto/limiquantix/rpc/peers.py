"""What transports call the other end of a connection: "ipv4:192.0.2.7:51234", "ipv6:%5B2001:db8::1%5D:80"."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple
from urllib.parse import unquote

_IPV6_CUSTOMER_BITS: Final = 64
"""So much of an IPv6 address is the network of one customer, who has all addresses in it."""


class Peer(NamedTuple):
    """The other end of a connection.

    Attributes:
        address: an IP address as `plain_address` writes it; of other transports their kind, such as "unix"; "" if
            nothing is known.
        port: 0 if there is none.
    """

    address: str
    port: int


def peer_of(text: str) -> Peer:
    """Read what a transport says; what is no address is passed on as it is."""
    # gRPC writes the brackets around IPv6 as URLs do: "ipv6:%5B::1%5D:80".
    kind, _, rest = unquote(text).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return Peer(kind, 0)
    host, _, port = rest.rpartition(":")
    bare = (host or rest).strip("[]")
    try:
        return Peer(plain_address(bare), int(port) if port.isascii() and port.isdecimal() else 0)
    except ValueError:
        return Peer(bare, 0)


def plain_address(address: str) -> str:
    """Write an IP address in its shortest form: without a zone, and an IPv4 one as such also where IPv6 carries it.

    Raises:
        ValueError: it is none.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def counted_address(text: str) -> str:
    """Name the address of a peer as limits count it: of IPv6 the network that one customer has, "2001:db8:1:2::/64"."""
    address = peer_of(text).address
    try:
        customer = customer_of(address)
    except ValueError:
        return address
    return f"{customer}/{_IPV6_CUSTOMER_BITS}" if ":" in customer else customer


def customer_of(address: str) -> str:
    """Name all addresses of one customer by one: of IPv6 the first of their network. Raises as `plain_address`."""
    plain = plain_address(address)
    if ":" not in plain:
        return plain
    return str(ipaddress.IPv6Network((plain, _IPV6_CUSTOMER_BITS), strict=False).network_address)
