"""Files of libvirt and QEMU: what is written, as whose, and what is said where libvirt cannot be told."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypervisor.errors import Unavailable
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.peer_certificates import LibvirtPeerCertificates, qemu_owner, write
from hypervisor.migration import PeerCertificate, RevokedPeer

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HELD = PeerCertificate(b"certificate\n", b"key\n", b"authority\n", b"list\n")
CAPABILITIES = """<capabilities><host>
<secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel></secmodel>
</host></capabilities>"""


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def peers(directory: Path, capabilities: str = "<capabilities><host/></capabilities>") -> LibvirtPeerCertificates:
    """Make one whose libvirt has its sockets in a directory, beside the files."""

    async def run(work: Callable[[Any], Any]) -> Any:
        return work(SimpleNamespace(getCapabilities=lambda: capabilities))

    uri = f"qemu+unix:///system?socket={directory}/libvirt-sock"
    return LibvirtPeerCertificates(cast("LibvirtConnection", SimpleNamespace(run=run)), uri, directory / "pki")


def test_all_is_where_libvirt_and_qemu_look_and_keys_are_nobody_elses(tmp_path: Path) -> None:
    write(tmp_path, HELD, None)

    found = files(tmp_path)
    assert {name: content.splitlines()[-1].decode() for name, content in found.items()} == {
        "CA/cacert.pem": "authority",
        "CA/cacrl.pem": "list",
        "libvirt/servercert.pem": "certificate",
        "libvirt/clientcert.pem": "certificate",
        "libvirt/private/serverkey.pem": "key",
        "libvirt/private/clientkey.pem": "key",
        "qemu/ca-cert.pem": "authority",
        "qemu/ca-crl.pem": "list",
        "qemu/server-cert.pem": "certificate",
        "qemu/client-cert.pem": "certificate",
        "qemu/server-key.pem": "key",
        "qemu/client-key.pem": "key",
    }
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in found}
    assert {name for name, mode in modes.items() if mode == 0o600} == {name for name in found if "key" in name}
    assert set(modes.values()) == {0o600, 0o644}
    assert stat.S_IMODE((tmp_path / "libvirt" / "private").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_keys_of_qemu_are_its_users(tmp_path: Path) -> None:
    write(tmp_path, HELD, (64055, 108))

    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in tmp_path.rglob("*.pem")}
    assert {name for name, owner in owners.items() if owner == (64055, 108)} >= {"server-key.pem", "client-key.pem"}
    assert owners["serverkey.pem"] == (os.geteuid(), os.getegid())


def test_files_are_replaced_whole_and_those_that_did_not_change_are_left(tmp_path: Path) -> None:
    write(tmp_path, HELD, None)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.pem")}

    write(tmp_path, PeerCertificate(b"newer\n", HELD.key_pem, HELD.authority_pem, HELD.revocation_list_pem), None)

    changed = {path.name for path, number in before.items() if path.stat().st_ino != number}
    assert changed == {"servercert.pem", "clientcert.pem", "server-cert.pem", "client-cert.pem"}
    assert set(before) == set(tmp_path.rglob("*.pem"))
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_what_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "CA").mkdir()
    (tmp_path / "CA" / "cacert.pem").write_text("theirs")

    with pytest.raises(Unavailable, match="was not made by this daemon"):
        write(tmp_path, HELD, None)

    assert files(tmp_path) == {"CA/cacert.pem": b"theirs"}


@pytest.mark.parametrize(
    ("capabilities", "owner"),
    [
        (CAPABILITIES, (64055, 108)),
        ("<capabilities><host/></capabilities>", None),
        (CAPABILITIES.replace("+", ""), None),
    ],
)
def test_user_of_qemu_is_read_from_libvirt(capabilities: str, owner: tuple[int, int] | None) -> None:
    assert qemu_owner(capabilities) == owner


async def test_libvirt_without_admin_socket_is_an_obstacle_that_says_what_to_do(tmp_path: Path) -> None:
    made = peers(tmp_path)
    assert "are not there" in made.find_obstacle()

    with pytest.raises(Unavailable, match=r"libvirtd-admin\.socket"):
        await made.install(HELD)

    assert "libvirtd-admin.socket" in made.find_obstacle()
    assert (tmp_path / "pki" / "libvirt" / "servercert.pem").is_file()  # for its next start


@pytest.mark.parametrize(
    ("script", "words"),
    [('echo "$@" > "${0%/*}/called"', ""), ("echo 'no tls service found' >&2; exit 1", "no tls service found")],
)
async def test_libvirt_is_told_by_its_admin_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    program = tmp_path / "virt-admin"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made, admin = peers(tmp_path), tmp_path / "libvirt-admin-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(admin))
        if words:
            with pytest.raises(Unavailable, match=words):
                await made.install(HELD)
        else:
            await made.install(HELD)
            called = (tmp_path / "called").read_text().split()
            assert called == ["-c", f"libvirtd+unix:///system?socket={admin}", "server-update-tls", "libvirtd"]
    assert (words in made.find_obstacle()) if words else made.find_obstacle() == ""


PRETEND = r"""#!/bin/sh
here="${0%/*}"
shift 2
case $1 in
client-list) printf ' Id   Transport   Connected since\n---\n'; cat "$here/clients";;
client-info) test -e "$here/client-$3" || { echo "no client" >&2; exit 1; }; cat "$here/client-$3";;
client-disconnect) echo "$4" >>"$here/ended"; sed -i "/^ $4 /d" "$here/clients";;
esac
"""


class PretendedLibvirt:
    """A daemon with connections, as `virt-admin` shows them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "virt-admin").write_text(PRETEND)
        (directory / "virt-admin").chmod(0o755)
        (directory / "clients").write_text("")

    def connect(self, client_id: int, name: str, transport: str = "tls") -> None:
        with (self.directory / "clients").open("a") as clients:
            clients.write(f" {client_id}    {transport}         2026-05-04 12:00:03+0000\n")
        (self.directory / f"client-{client_id}").write_text(
            f"id             : {client_id}\ntransport      : {transport}\nreadonly       : no\n"
            f"tls_x509_dname : O=LimiQuantix,CN={name}\n"
        )

    def take_ended(self) -> list[int]:
        path = self.directory / "ended"
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedLibvirt]:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "libvirt-admin-sock"))
        yield PretendedLibvirt(tmp_path)


def holding(*revoked: RevokedPeer) -> PeerCertificate:
    return replace(HELD, revoked=revoked)


async def test_what_revoked_peers_have_open_is_ended_once_for_each_time(
    tmp_path: Path, libvirt: PretendedLibvirt
) -> None:
    made, once, again = peers(tmp_path), RevokedPeer("host one", NOW), RevokedPeer("host one", NOW + timedelta(hours=1))
    libvirt.connect(3, "host one")
    libvirt.connect(4, "host one and more")
    libvirt.connect(5, "host one", transport="unix")
    libvirt.connect(17, "host one")
    await made.install(HELD)
    assert libvirt.take_ended() == []
    await made.install(holding(once))
    assert libvirt.take_ended() == [3, 17]
    libvirt.connect(18, "host one")  # which joined again
    await made.install(holding(once))
    assert libvirt.take_ended() == []
    await made.install(holding(again))
    assert libvirt.take_ended() == [18]


async def test_connection_that_ends_meanwhile_is_no_trouble_but_one_that_cannot_be_looked_at_is(
    tmp_path: Path, libvirt: PretendedLibvirt
) -> None:
    made, revoked = peers(tmp_path), holding(RevokedPeer("host one", NOW))
    libvirt.connect(3, "host one")
    (tmp_path / "client-3").unlink()
    with pytest.raises(Unavailable, match="does not end connections of revoked hosts: libvirtd: no client"):
        await made.install(revoked)
    assert "does not end connections" in made.find_obstacle()
    (tmp_path / "client-3").write_text("transport      : tls\n")
    with pytest.raises(Unavailable, match="does not say whose connection 3 is"):
        await made.install(revoked)
    (tmp_path / "client-3").write_text("tls_x509_dname : CN=host one,O=LimiQuantix\n")
    await made.install(revoked)
    assert libvirt.take_ended() == [3]
