"""The other end of a connection is the same, however a transport writes it."""

from __future__ import annotations

import pytest

from limiquantix.rpc.peers import counted_address, peer_of, plain_address


@pytest.mark.parametrize(
    ("text", "address", "port", "counted"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7", 51234, "192.0.2.7"),
        ("ipv4:192.0.2.7", "192.0.2.7", 0, "192.0.2.7"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2:3:4:5:6", 80, "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8::1%5D:443", "2001:db8::1", 443, "2001:db8::/64"),
        ("ipv6:[2001:0db8:0::1]:443", "2001:db8::1", 443, "2001:db8::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", "fe80::1", 80, "fe80::/64"),
        ("ipv6:[fe80::1%eth0]:80", "fe80::1", 80, "fe80::/64"),
        ("ipv6:[::1]:80", "::1", 80, "::/64"),
        ("ipv6:[::ffff:192.0.2.7]:80", "192.0.2.7", 80, "192.0.2.7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:80", "192.0.2.7", 80, "192.0.2.7"),
        ("ipv6:nonsense", "nonsense", 0, "nonsense"),
        ("ipv4:192.0.2.7:\u0663", "192.0.2.7", 0, "192.0.2.7"),
        ("ipv4:", "", 0, ""),
        ("unix:/run/x.sock", "unix", 0, "unix"),
        ("nonsense", "nonsense", 0, "nonsense"),
        ("", "", 0, ""),
    ],
)
def test_peer_is_read(text: str, address: str, port: int, counted: str) -> None:
    assert peer_of(text) == (address, port)
    assert counted_address(text) == counted


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.7:80", "[::1]"])
def test_what_is_no_address_is_not_written_as_one(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        plain_address(text)
