"""What is counted of an origin, and how long waits become."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controlplane.identity.login_limits import OF_ADDRESS, OF_NAME, address_of


@pytest.mark.parametrize(
    ("origin", "counted"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8::1%5D:80", "2001:db8::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", "fe80::/64"),
        ("ipv6:[::1]:80", "::/64"),
        ("ipv6:[fe80::1%eth0]:80", "fe80::/64"),
        ("ipv6:[::ffff:192.0.2.7]:80", "192.0.2.7"),
        ("unix:/run/x", "unix"),
        ("", "unknown"),
        ("nonsense", "nonsense"),
    ],
)
def test_address_is_counted_without_what_changes_with_every_call(origin: str, counted: str) -> None:
    assert address_of(origin) == counted


def test_waits_double_up_to_the_longest() -> None:
    waits = [OF_NAME.wait(count).total_seconds() for count in range(16)]
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert OF_ADDRESS.wait(29) == timedelta(0)
    assert OF_ADDRESS.wait(10**9) == timedelta(minutes=1)
