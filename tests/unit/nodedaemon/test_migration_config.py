"""How a node daemon says where other hosts' hypervisors reach its own."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nodedaemon.config import MigrationSection


@pytest.mark.parametrize(
    ("section", "uri"),
    [
        (MigrationSection(), "qemu+tls://10.0.0.5/system"),
        (MigrationSection(address="10.1.0.5"), "qemu+tls://10.1.0.5/system"),
        (MigrationSection(address="fd00::5"), "qemu+tls://[fd00::5]/system"),
        (MigrationSection(address="127.0.0.1", tls=False), "qemu+tcp://127.0.0.1/system"),
        (MigrationSection(uri="qemu+tls://h1.example/system"), "qemu+tls://h1.example/system"),
    ],
)
def test_address_becomes_the_uri_of_peers(section: MigrationSection, uri: str) -> None:
    assert section.peer_uri("10.0.0.5") == uri


def test_nothing_known_is_no_uri() -> None:
    assert MigrationSection().peer_uri("") == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"tls": False},
        {"tls": False, "address": "10.0.0.5"},
        {"tls": False, "uri": "qemu+tcp://10.0.0.5/system"},
        {"uri": "qemu+tcp://127.0.0.1/system"},
        {"uri": "qemu+ssh://10.0.0.5/system"},
        {"uri": "qemu+tls://10.0.0.5/system?no_verify=1"},
        {"address": "10.0.0.5/x"},
    ],
)
def test_memory_does_not_cross_the_network_in_the_clear(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MigrationSection.model_validate(settings)
