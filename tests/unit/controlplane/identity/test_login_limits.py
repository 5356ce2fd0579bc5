"""What is counted of an origin, and how long waits become."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controlplane.identity.login_limits import OF_ADDRESS, OF_NAME, address_of


@pytest.mark.parametrize(("origin", "counted"), [("ipv6:[2001:db8::6]:80", "2001:db8::/64"), ("", "unknown")])
def test_address_is_counted_without_what_changes_with_every_call(origin: str, counted: str) -> None:
    assert address_of(origin) == counted


def test_waits_double_up_to_the_longest() -> None:
    waits = [OF_NAME.wait(count).total_seconds() for count in range(16)]
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert OF_ADDRESS.wait(29) == timedelta(0)
    assert OF_ADDRESS.wait(10**9) == timedelta(minutes=1)
