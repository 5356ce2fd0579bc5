"""The scripts that make certificates and configuration, run as an operator runs them."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from controlplane.config import load_config as load_control_plane
from nodedaemon.config import load_config as load_node

DEPLOY = Path(__file__).parents[2] / "deploy"
MACHINES = ("node1=10.0.0.1", "node2=10.0.0.2")


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(DEPLOY / script), *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines' files; for reading only."""
    directory = tmp_path_factory.mktemp("deploy") / "cluster"
    for script in ("certificates.sh", "ha-config.sh"):
        done = run(script, str(directory), *MACHINES)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == [str(directory / "node1"), str(directory / "node2")]
    return directory


def described(certificate: Path) -> str:
    words = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName,extendedKeyUsage"]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout


def is_of(authority: Path, certificate: Path) -> bool:
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(authority), str(certificate)]
    return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0


def test_certificates_are_for_both_directions_and_hold_name_and_address(made: Path) -> None:
    etc = made / "node2" / "etc"
    ours = [etc / "limiquantix" / "tls" / f"{name}.pem" for name in ("controlplane", "node", "postgresql")]
    hosts = [etc / "pki" / "libvirt" / "servercert.pem", etc / "pki" / "qemu" / "client-cert.pem"]

    for certificate in (*ours, etc / "etcd" / "etcd.pem", *hosts):
        text = described(certificate)
        assert "DNS:node2" in text
        assert "IP Address:10.0.0.2" in text
        assert "10.0.0.1" not in text.replace("127.0.0.1", "")
        assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert all(is_of(etc / "limiquantix" / "tls" / "ca.pem", certificate) for certificate in ours)
    assert all(is_of(etc / "pki" / "CA" / "cacert.pem", certificate) for certificate in hosts)
    assert not any(is_of(etc / "pki" / "CA" / "cacert.pem", certificate) for certificate in ours)


def test_keys_are_for_their_owner_alone_and_those_of_the_authorities_stay_behind(made: Path) -> None:
    files = [path for path in made.rglob("*") if path.is_file()]
    keys = [path for path in files if path.name.endswith("key.pem")]
    assert len(keys) == 2 + 2 * 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    others = [path for path in (made / "node1").rglob("*") if path.is_file() and path not in keys]
    assert {stat.S_IMODE(path.stat().st_mode) for path in others} == {0o644}


def test_configuration_is_taken_by_both_daemons(made: Path, tmp_path: Path) -> None:
    here = {}
    for name in ("controlplane", "node"):
        text = (made / "node2" / "etc" / "limiquantix" / f"{name}.yaml").read_text()
        here[name] = tmp_path / f"{name}.yaml"
        here[name].write_text(text.replace("/etc/", f"{made}/node2/etc/"))
    plane, node = load_control_plane(here["controlplane"], {}), load_node(here["node"], {})

    assert plane.grpc.listen_address == "10.0.0.2:8081"
    assert plane.grpc.tls.ca_path
    assert plane.nodes.tls.ca_path
    assert plane.database.url.startswith("postgresql://limiquantix@10.0.0.1/limiquantix?sslmode=verify-full&")
    assert plane.coordination.endpoints == ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    assert node.control_plane.addresses == ("10.0.0.1:8081", "10.0.0.2:8081")
    assert node.tls.enabled
    assert node.tls.ca_path
    assert node.migration.address == "10.0.0.2"


def test_nothing_is_overwritten_and_machines_can_be_added(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    assert run("certificates.sh", str(directory), "node1=10.0.0.1").returncode == 0
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    refused = run("certificates.sh", str(directory), "node2=10.0.0.2", "node1=10.0.0.9")
    assert refused.returncode == 1
    assert f"{directory}/node1 is there already" in refused.stderr
    assert not (directory / "node2").exists()
    assert run("certificates.sh", str(directory), "node2=10.0.0.2,vm2.example").returncode == 0

    assert before == {path: path.read_bytes() for path in before}
    etc = directory / "node2" / "etc"
    assert is_of(directory / "ca" / "ca.pem", etc / "etcd" / "etcd.pem")
    assert "DNS:vm2.example" in described(etc / "etcd" / "etcd.pem")
    assert run("ha-config.sh", str(directory), "node1=10.0.0.1").returncode == 0
    again = run("ha-config.sh", str(directory), "node1=10.0.0.1")
    assert again.returncode == 1
    assert "controlplane.yaml is there already" in again.stderr
    nameless = run("ha-config.sh", str(directory), "node3=10.0.0.3")
    assert nameless.returncode == 1
    assert "run deploy/certificates.sh first" in nameless.stderr


@pytest.mark.parametrize("script", ["certificates.sh", "ha-config.sh"])
@pytest.mark.parametrize("machine", ["node1", "=10.0.0.1", "node1=", "../x=10.0.0.1", "a b=10.0.0.1", "node1=1=2"])
def test_what_is_no_machine_is_refused_and_nothing_made(script: str, machine: str, tmp_path: Path) -> None:
    done = run(script, str(tmp_path / "cluster"), machine)

    assert done.returncode == 2
    assert "NAME=ADDRESS" in done.stderr
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("script", ["certificates.sh", "ha-config.sh"])
def test_help_says_how_it_is_used(script: str) -> None:
    done = run(script, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: deploy/{script} DIRECTORY NAME=ADDRESS")
