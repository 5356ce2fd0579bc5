"""What the documented system's control plane does wrong, done right; see tests/unit/test_faults_covered.py."""

from __future__ import annotations

import pytest

from controlplane.config import ControlPlaneConfig, is_loopback
from controlplane.domain.vm_spec import violations_of
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DisplayConfig, MemoryConfig, VmSpec
from tests.support.config_fields import default_secrets, default_settings


def test_fault_11_every_default_listener_of_the_control_plane_is_loopback() -> None:
    listeners = {name: value for name, value in default_settings(ControlPlaneConfig) if "listen" in name}
    assert set(listeners) == {"http.listen_address", "grpc.listen_address", "security.hosts_listen_address"}
    assert all(is_loopback(address) for address in listeners.values())


def test_fault_11_control_plane_has_no_default_secret_and_lets_no_other_site_in() -> None:
    assert default_secrets(ControlPlaneConfig) == {}
    config = dict(default_settings(ControlPlaneConfig))
    assert config["http.cors_origins"] == []
    assert "@" not in config["database.url"]  # nobody's password


def spec_listening_on(address: str) -> VmSpec:
    display = DisplayConfig(listen_address=address)
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), display=display)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  # what must be refused
        *("::", "[::]", "*", "0", "0x0", "192.0.2.1", " 127.0.0.1", "127.0.0.1.example.org", "example.org"),
    ],
)
def test_fault_11_console_asked_to_listen_elsewhere_is_refused_by_field(address: str) -> None:
    (violation,) = violations_of(spec_listening_on(address))
    assert violation.field == "spec.display.listen_address"
    assert "loopback" in violation.description


@pytest.mark.parametrize("address", ["", "127.0.0.1", "localhost"])
def test_fault_11_console_asked_to_listen_on_loopback_is_taken(address: str) -> None:
    assert violations_of(spec_listening_on(address)) == []
