"""The section `coordination` of the configuration, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.factory import create_coordinator
from controlplane.coordination.local import LocalCoordinator
from controlplane.coordination.settings import Backend, CoordinationSettings

HTTP = "http://127.0.0.1:2379"


def test_defaults_need_no_etcd() -> None:
    settings = CoordinationSettings()

    assert (settings.backend, settings.endpoints) == (Backend.LOCAL, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "etcd"}, "needs endpoints"),
        ({"endpoints": [HTTP]}, "say backend: etcd"),
        ({"backend": "etcd", "endpoints": ["127.0.0.1:2379"]}, "is not"),
        ({"backend": "etcd", "endpoints": ["http://127.0.0.1"]}, "is not"),
        ({"backend": "etcd", "endpoints": ["http://127.0.0.1:0"]}, "is not"),
        ({"backend": "etcd", "endpoints": ["http://127.0.0.1:65536"]}, "is not"),
        ({"backend": "etcd", "endpoints": [HTTP + "/v3"]}, "is not"),
        ({"backend": "etcd", "endpoints": ["http://user@host:1"]}, "is not"),
        ({"backend": "etcd", "endpoints": [HTTP, "https://127.0.0.1:2380"]}, "or none does"),
        ({"backend": "etcd", "endpoints": [HTTP, HTTP]}, "named twice"),
        ({"backend": "etcd", "endpoints": [HTTP], "tls": {"ca_path": __file__}}, "say https"),
        ({"backend": "etcd", "endpoints": [HTTP], "tls": {"cert_path": __file__}}, "go together"),
        ({"backend": "etcd", "endpoints": [HTTP], "tls": {"key_path": "/no/such/file"}}, "key_path"),
        ({"backend": "zookeeper"}, "backend"),
        ({"session_ttl_s": 1}, "session_ttl_s"),
        ({"session_ttl_s": 61}, "session_ttl_s"),
        ({"prefix": "/no/slash/at/the/end"}, "prefix"),
        ({"prefix": "/with space/"}, "prefix"),
        ({"endpoint": HTTP}, "endpoint"),
    ],
)
def test_wrong_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        CoordinationSettings(**values)


@pytest.mark.parametrize("host", ["etcd-1.example", "10.0.0.1", "[fd00::1]"])
def test_endpoints_may_be_names_and_addresses_of_both_kinds(host: str) -> None:
    endpoints = [f"https://{host}:2379"]

    assert CoordinationSettings(backend=Backend.ETCD, endpoints=endpoints).endpoints == endpoints


async def test_factory_makes_what_the_backend_says(tmp_path: Path) -> None:
    made = create_coordinator(CoordinationSettings(backend=Backend.ETCD, endpoints=[HTTP]))
    await made.close()

    assert isinstance(made, EtcdCoordinator)
    assert isinstance(create_coordinator(CoordinationSettings()), LocalCoordinator)
