"""The script that makes configuration and certificates of several machines, run as an operator runs it."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from controlplane.config import load_config as load_control_plane
from controlplane.secrets.key_file import read_or_make
from nodedaemon.config import load_config as load_node

SCRIPT = Path(__file__).parents[2] / "deploy" / "ha-config.sh"
MACHINES = ("node1=10.0.0.1", "node2=10.0.0.2")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", str(SCRIPT), *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines' files; for reading only."""
    directory = tmp_path_factory.mktemp("deploy") / "cluster"
    done = run(str(directory), *MACHINES)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(directory / "node1"), str(directory / "node2")]
    return directory


def described(certificate: Path) -> str:
    words = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName,extendedKeyUsage"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def is_of(authority: Path, certificate: Path) -> bool:
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(authority), str(certificate)]
    return subprocess.run(words, capture_output=True, timeout=120, check=False).returncode == 0


def test_certificates_of_etcd_and_postgresql_are_for_both_directions_and_hold_name_and_address(made: Path) -> None:
    etc = made / "node2" / "etc"
    certificates = [etc / "limiquantix" / "tls" / f"{name}.pem" for name in ("controlplane", "postgresql")]

    for certificate in (*certificates, etc / "etcd" / "etcd.pem"):
        text = described(certificate)
        assert "DNS:node2" in text
        assert "IP Address:10.0.0.2" in text
        assert "10.0.0.1" not in text.replace("127.0.0.1", "")
        assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
        assert is_of(etc / "limiquantix" / "tls" / "ca.pem", certificate)
    assert (etc / "etcd" / "ca.pem").read_bytes() == (made / "ca" / "ca.pem").read_bytes()


def test_keys_are_for_their_owner_alone_and_that_of_the_authority_stays_behind(made: Path) -> None:
    files = [path for path in made.rglob("*") if path.is_file()]
    keys = [path for path in files if path.name.endswith("key.pem") or path.name == "secret.key"]
    assert len(keys) == 2 + 2 * 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    others = [path for path in (made / "node1").rglob("*") if path.is_file() and path not in keys]
    assert {stat.S_IMODE(path.stat().st_mode) for path in others} == {0o644}
    assert not [
        path for path in files if path.parent != made / "ca" and path.read_bytes() == (made / "ca/key.pem").read_bytes()
    ]


def test_configuration_is_taken_by_both_daemons(made: Path, tmp_path: Path) -> None:
    here = {}
    for name in ("controlplane", "node"):
        text = (made / "node2" / "etc" / "limiquantix" / f"{name}.yaml").read_text()
        here[name] = tmp_path / f"{name}.yaml"
        here[name].write_text(text.replace("/etc/", f"{made}/node2/etc/"))
    plane, node = load_control_plane(here["controlplane"], {}), load_node(here["node"], {})

    assert (plane.http.listen_address, plane.grpc.listen_address) == ("10.0.0.2:8080", "10.0.0.2:8081")
    assert plane.security.hosts_listen_address == "10.0.0.2:8082"
    assert plane.security.addresses == ("10.0.0.1:8081", "10.0.0.2:8081")
    assert plane.security.hosts_addresses == ("10.0.0.1:8082", "10.0.0.2:8082")
    assert {"node2", "10.0.0.2"} <= set(plane.security.names)
    assert plane.database.url.startswith("postgresql://limiquantix@10.0.0.1/limiquantix?sslmode=verify-full&")
    assert plane.coordination.endpoints == ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    assert node.migration.address == "10.0.0.2"
    keys = [made / f"node{number}" / "etc" / "limiquantix" / "secret.key" for number in (1, 2)]
    assert keys[0].read_bytes() == keys[1].read_bytes()
    read_or_make(keys[0], may_make=False)


def test_nothing_is_overwritten_and_a_later_call_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    assert run(str(directory), "node1=10.0.0.1").returncode == 0
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    refused = run(str(directory), "node2=10.0.0.2", "node1=10.0.0.9")
    assert refused.returncode == 1
    assert f"{directory}/node1 is there already" in refused.stderr
    assert not (directory / "node2").exists()
    assert run(str(directory), "node2=10.0.0.2").returncode == 0

    assert before == {path: path.read_bytes() for path in before}
    etc = directory / "node2" / "etc"
    assert is_of(directory / "ca" / "ca.pem", etc / "etcd" / "etcd.pem")
    assert (etc / "limiquantix" / "secret.key").read_bytes() == (directory / "secret.key").read_bytes()


@pytest.mark.parametrize(
    "machine",
    ["node1", "=10.0.0.1", "node1=", "../x=10.0.0.1", "a b=10.0.0.1", "node1=1=2", "node1=host", "ca=10.0.0.1"],
)
def test_what_is_no_machine_is_refused_and_nothing_made(machine: str, tmp_path: Path) -> None:
    done = run(str(tmp_path / "cluster"), machine)

    assert done.returncode == 2
    assert "NAME=ADDRESS" in done.stderr
    assert not (tmp_path / "cluster").exists()


def test_help_says_how_it_is_used() -> None:
    done = run("--help")

    assert done.returncode == 0
    assert done.stdout.startswith("Usage: deploy/ha-config.sh DIRECTORY NAME=ADDRESS")
