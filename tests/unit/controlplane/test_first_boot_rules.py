"""What a request may say of the first boot, on both contracts; refusals show nothing of it."""

from __future__ import annotations

import pytest

from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CloudInitConfig, ProvisioningConfig
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.rpc.validation import violations_of
from tests.support.builders import make_id

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2k alice@desk"


def faults_of(config: CloudInitConfig) -> list[str]:
    """Name the fields that either contract finds wrong; they must agree."""
    request = api.CloneVMRequest(source_vm_id=make_id(), name="n", provisioning=ProvisioningConfig(cloud_init=config))
    command = node_v1.CreateVMOnNodeRequest(vm_id=make_id(), name="n", spec=node_v1.VMSpec(cpu_cores=1, memory_mib=64))
    command.spec.cloud_init.ParseFromString(config.SerializeToString())
    found, theirs = violations_of(request), violations_of(command)
    names = [violation.field.rpartition("cloud_init.")[2] for violation in found]
    assert names == [violation.field.rpartition("cloud_init.")[2] for violation in theirs]
    assert "s3cr3t" not in str([*found, *theirs])
    return names


@pytest.mark.parametrize("hostname", ["", "web-1", "WEB", "db.example.org", "a" * 63, "1"])
def test_hostname_is_taken(hostname: str) -> None:
    assert faults_of(CloudInitConfig(hostname=hostname)) == []


@pytest.mark.parametrize(
    "hostname",
    [
        "../x",
        "a\nb",
        "a\n",
        "a\x00",
        "a" * 64,
        "a." * 200,
        "-a",
        "a-",
        "a..b",
        "a_b",
        "a b",
        "w\u0435b",
        "\uff57eb",
        "a: {s3cr3t}",
    ],
)
def test_hostname_that_is_none_is_refused(hostname: str) -> None:
    assert set(faults_of(CloudInitConfig(hostname=hostname))) == {"hostname"}


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "ssh-rsa AAAA==",
        "ecdsa-sha2-nistp256 AAAA= me",
        "sk-ssh-ed25519@openssh.com AAAA my key",
    ],
)
def test_key_is_taken(key: str) -> None:
    assert faults_of(CloudInitConfig(ssh_authorized_keys=[key])) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "s3cr3t",
        f"{KEY}\nssh-rsa BBBB mallory",
        f'command="rm -rf /" {KEY}',
        "ssh-rsa not base64",
        "ssh-rsa AAAA\x00",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-rsa " + "A" * 20_000,
    ],
)
def test_key_that_is_none_is_refused(key: str) -> None:
    assert set(faults_of(CloudInitConfig(ssh_authorized_keys=[key]))) == {"ssh_authorized_keys[0]"}


@pytest.mark.parametrize("name", ["user_data", "meta_data", "network_config", "vendor_data"])
def test_text_that_is_too_long_or_binary_is_refused_unseen(name: str) -> None:
    assert faults_of(CloudInitConfig(**{name: "s3cr3t" + "x" * 262_144})) == [name]
    assert faults_of(CloudInitConfig(**{name: "s3cr3t\x00"})) == [name]
