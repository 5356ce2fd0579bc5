"""Whom QEMU itself believes when VMs move: its own TLS, with the files that are written for it, on a served disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from controlplane.authority.certificates import Authority
from controlplane.authority.cluster import Cluster
from controlplane.authority.migration_authority import LIFETIME, MigrationAuthority
from controlplane.domain.machines import Revocation
from hypervisor.libvirt.peer_certificates import write
from hypervisor.migration import PeerCertificate
from nodedaemon.identity.requests import new_request
from tests.support.own_cluster import own_cluster
from tests.support.ports import own_port
from tests.support.private_libvirt_host import leave_out

DEADLINE_S: Final = 60.0
NOW: Final = datetime.now(UTC)


def peer(cluster: Cluster, node_id: str, issued_at: datetime = NOW) -> PeerCertificate:
    authority = MigrationAuthority(cluster)
    key_pem, request_pem = new_request()
    certificate_pem = authority.certify(node_id, ["127.0.0.1"], request_pem, issued_at)
    return PeerCertificate(certificate_pem, key_pem, authority.certificate_pem, authority.revocation_list([], NOW))


def qemu_files(directory: Path, held: PeerCertificate) -> Path:
    write(directory, held, None)
    return directory / "qemu"


@contextmanager
def served(files: Path, scratch: Path) -> Iterator[int]:
    """Have QEMU serve a disk by TLS to whom it believes; yields the port."""
    disk = scratch / "disk.raw"
    disk.write_bytes(bytes(65536))
    port = own_port()
    words = ["--object", f"tls-creds-x509,id=t,endpoint=server,dir={files},verify-peer=on", "--tls-creds", "t"]
    process = subprocess.Popen(
        [_program("qemu-nbd"), *words, "-b", "127.0.0.1", "-p", str(port), "-f", "raw", "-t", str(disk)]
    )
    try:
        until_s = time.monotonic() + DEADLINE_S
        while not _listens(port):
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        leave_out(f"{name} is not installed")
    return str(found)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def refusal(port: int, files: Path) -> str:
    """Read the disk as another host's QEMU would; returns why that failed, "" if it did not."""
    creds = f"tls-creds-x509,id=t,endpoint=client,dir={files}"
    words = ["info", "--object", creds, "--image-opts", f"driver=nbd,host=127.0.0.1,port={port},tls-creds=t"]
    done = subprocess.run(
        [_program("qemu-img"), *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    return done.stderr if done.returncode else ""


def test_qemu_lets_in_hosts_of_its_cluster_but_no_revoked_one_and_no_other(tmp_path: Path) -> None:
    """Where it is called, that is: as the caller it reads no list, and libvirt has looked at the other side before."""
    doomed, other, here = (str(uuid.uuid4()) for _ in range(3))
    cluster = own_cluster()
    at = NOW + timedelta(seconds=1)
    listing = MigrationAuthority(cluster).revocation_list([Revocation(doomed, at)], at)
    own = peer(cluster, here)
    stranger_authority, _ = Authority.make(str(uuid.uuid4()), NOW)
    stranger = peer(Cluster(str(uuid.uuid4()), stranger_authority), other)
    # One that believes us, so that it is we who have to find fault with it.
    stranger = replace(stranger, authority_pem=own.authority_pem, revocation_list_pem=own.revocation_list_pem)
    callers = {
        name: qemu_files(tmp_path / name, held)
        for name, held in {"revoked": peer(cluster, doomed), "good": peer(cluster, other)}.items()
    }
    before = qemu_files(tmp_path / "before", own)
    after = qemu_files(tmp_path / "after", replace(own, revocation_list_pem=listing))

    with served(before, tmp_path) as port:
        assert refusal(port, callers["good"]) == ""
        assert refusal(port, callers["revoked"]) == ""
    with served(after, tmp_path) as port:
        assert refusal(port, callers["good"]) == ""
        assert refusal(port, callers["revoked"])
        assert refusal(port, qemu_files(tmp_path / "stranger", stranger))


def test_qemu_refuses_what_has_ended(tmp_path: Path) -> None:
    cluster = own_cluster()
    ended = qemu_files(tmp_path / "ended", peer(cluster, str(uuid.uuid4()), NOW - LIFETIME - timedelta(minutes=1)))
    good = qemu_files(tmp_path / "good", peer(cluster, str(uuid.uuid4())))

    with served(good, tmp_path) as port:
        assert refusal(port, good) == ""
        assert "expired" in refusal(port, ended)
