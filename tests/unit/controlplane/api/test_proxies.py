"""Whose call it is that a reverse proxy passes on."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.api.http.connect import ConnectContext
from controlplane.api.http.proxies import caller_address, with_true_addresses
from controlplane.config import HttpSettings
from limiquantix.rpc.peers import counted_address

TRUSTED = [ipaddress.ip_network(each) for each in ("10.0.0.0/8", "fd00::/8")]
PROXY, CALLER, OTHER = "10.0.0.1", "192.0.2.7", "198.51.100.9"


@pytest.mark.parametrize(
    ("peer", "told", "address"),
    [
        (CALLER, [], CALLER),
        (CALLER, [OTHER], CALLER),
        (PROXY, [], PROXY),
        (PROXY, [CALLER], CALLER),
        (PROXY, [f"{OTHER}, {CALLER}"], CALLER),
        (PROXY, [OTHER, CALLER], CALLER),
        (PROXY, [f"{CALLER}, 10.2.2.2"], CALLER),
        (PROXY, [f"{OTHER},{CALLER},10.2.2.2 , 10.3.3.3"], CALLER),
        (PROXY, ["10.9.9.9, 10.2.2.2"], "10.9.9.9"),
        (PROXY, [f"{OTHER}, unknown"], PROXY),
        (PROXY, [f"{OTHER}, nonsense, 10.2.2.2"], "10.2.2.2"),
        (PROXY, [""], PROXY),
        (PROXY, [f"{CALLER}:4711"], CALLER),
        ("fd00::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", [f"::ffff:{CALLER}"], CALLER),
        ("", [OTHER], ""),
    ],
)
def test_right_most_address_that_is_not_trusted_counts(peer: str, told: list[str], address: str) -> None:
    assert caller_address(peer, told, TRUSTED) == address


def test_endless_header_is_not_gone_through() -> None:
    assert caller_address(PROXY, [f"{CALLER}," + "10.1.1.1," * 5000 + "10.2.2.2"], TRUSTED) == "10.1.1.1"


@pytest.mark.parametrize("networks", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8"])
def test_what_is_no_network_is_refused(networks: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        HttpSettings.model_validate({"trusted_proxies": [networks]})


@pytest.mark.parametrize(
    ("address", "peer", "counted"),
    [
        ("192.0.2.7:80", "ipv4:192.0.2.7:80", "192.0.2.7"),
        ("2001:db8::7:80", "ipv6:[2001:db8::7]:80", "2001:db8::/64"),
    ],
)
def test_caller_over_http_is_counted_as_over_grpc(address: str, peer: str, counted: str) -> None:
    context = ConnectContext(SimpleNamespace(client_address=address))  # type: ignore[arg-type]
    assert context.peer() == peer
    assert counted_address(context.peer()) == counted


async def test_header_is_ignored_without_trusted_proxies() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    scope = {"type": "http", "client": (PROXY, 4711), "headers": [(b"x-forwarded-for", CALLER.encode())]}
    for trusted in ((), TRUSTED):
        await with_true_addresses(app, trusted)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [(PROXY, 4711), (CALLER, 0)]
