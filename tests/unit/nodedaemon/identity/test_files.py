"""The identity of a host on disk: whole, its owner's only, and of nobody else."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.authority.certificates import Authority
from limiquantix.rpc.credentials import MachineCertificate
from limiquantix.rpc.identity import MachineIdentity, Role
from nodedaemon.identity.files import IdentityFile, IdentityUnusable, NodeIdentity
from tests.support.builders import make_id

NODE = MachineIdentity(make_id(), Role.NODE, make_id())
ADDRESSES = ("cp-1:8082", "cp-2:8082")


def certificate_of(machine: MachineIdentity, authority: Authority | None = None) -> MachineCertificate:
    now = datetime.now(UTC)
    authority = authority or Authority.make(machine.cluster_id, now)[0]
    pair = authority.issue(machine, now)
    return MachineCertificate(pair.certificate_pem, pair.key_pem, authority.certificate_pem)


@pytest.fixture
def file(tmp_path: Path) -> IdentityFile:
    return IdentityFile.under(tmp_path)


def test_what_is_kept_is_found_again_and_nobody_elses_to_read(file: IdentityFile) -> None:
    assert file.load() is None
    for _ in range(2):
        identity = NodeIdentity.read(certificate_of(NODE), ADDRESSES)
        file.save(identity)
        assert file.load() == identity
    assert (identity.machine, identity.addresses) == (NODE, ADDRESSES)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert [each.name for each in file.path.parent.iterdir()] == [file.path.name], "nothing is left behind"


@pytest.mark.parametrize("fault", ["readable", "empty", "cut", "link", "list"])
def test_file_that_is_not_as_the_daemon_wrote_it_is_not_used(file: IdentityFile, tmp_path: Path, fault: str) -> None:
    file.save(NodeIdentity.read(certificate_of(NODE), ADDRESSES))
    match fault:
        case "readable":
            file.path.chmod(0o640)
        case "empty":
            file.path.write_text("")
        case "cut":
            file.path.write_bytes(file.path.read_bytes()[:-200])
        case "link":
            file.path.symlink_to(file.path.rename(tmp_path / "elsewhere"))
        case "list":
            file.path.write_text("[]")
    with pytest.raises(IdentityUnusable, match=r"chmod 600|join again|cannot be opened"):
        file.load()


def test_parts_that_do_not_belong_together_are_no_identity() -> None:
    one, two = certificate_of(NODE), certificate_of(NODE)
    for faulty, why in (
        (MachineCertificate(one.certificate_pem, two.key_pem, one.authority_pem), "key is not that"),
        (MachineCertificate(one.certificate_pem, one.key_pem, two.authority_pem), "do not belong together"),
        (MachineCertificate(b"rubbish", one.key_pem, one.authority_pem), "damaged"),
        (certificate_of(MachineIdentity(NODE.cluster_id, Role.CONTROL_PLANE, "cp-1")), "none of a node"),
    ):
        with pytest.raises(IdentityUnusable, match=why):
            NodeIdentity.read(faulty, ADDRESSES)


def test_key_is_not_told_by_accident() -> None:
    identity = NodeIdentity.read(certificate_of(NODE), ADDRESSES)
    assert "PRIVATE KEY" not in repr(identity)
