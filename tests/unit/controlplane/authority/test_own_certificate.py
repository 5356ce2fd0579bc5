"""The control plane's own certificate, on a clock that is told."""

from __future__ import annotations

import asyncio
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from controlplane.api.http.tls import ServerTls
from controlplane.authority.certificates import LEAF_LIFETIME, Authority
from controlplane.authority.cluster import Cluster
from controlplane.authority.own_certificate import LOOK_S, CertificateFiles, OwnCertificate
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from tests.support.builders import START_OF_TIME, make_id


class Clock:
    def __init__(self) -> None:
        self.now = START_OF_TIME
        self.until = START_OF_TIME

    async def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self.now > self.until:
            raise asyncio.CancelledError


async def test_certificate_is_made_anew_at_half_its_life_with_all_its_names() -> None:
    clock, cluster_id = Clock(), make_id()
    cluster = Cluster(cluster_id, Authority.make(cluster_id, START_OF_TIME)[0])
    own = OwnCertificate(
        cluster, "cp-1", ("cp.example", "192.0.2.7"), lambda: clock.now, sleep=clock.sleep, jitter=lambda: 0.0
    )
    first = own.credentials.current

    clock.until = START_OF_TIME + LEAF_LIFETIME / 2 - timedelta(seconds=LOOK_S)
    with pytest.raises(asyncio.CancelledError):
        await own.run()
    assert own.credentials.current is first
    clock.until += timedelta(seconds=3 * LOOK_S)
    with pytest.raises(asyncio.CancelledError):
        await own.run()
    newer = own.credentials.current
    assert newer.key_pem != first.key_pem

    leaf = x509.load_pem_x509_certificate(newer.certificate_pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(newer.authority_pem))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [CONTROL_PLANE_SERVER_NAME, "cp.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"limiquantix://{cluster_id}/controlplane/cp-1"
    ]


async def test_files_are_replaced_with_every_certificate_and_trouble_with_them_is_tried_again(tmp_path: Path) -> None:
    clock, cluster_id = Clock(), make_id()
    cluster = Cluster(cluster_id, Authority.make(cluster_id, START_OF_TIME)[0])
    files = CertificateFiles(tmp_path / "tls")
    own = OwnCertificate(cluster, "cp-1", (), lambda: clock.now, sleep=clock.sleep, files=files, jitter=lambda: 0.0)
    first = own.credentials.current
    assert files.key_path.read_bytes() == first.key_pem
    assert files.cert_path.read_bytes() == first.certificate_pem + first.authority_pem
    assert stat.S_IMODE(files.key_path.stat().st_mode) == 0o600
    ServerTls(files.cert_path, files.key_path)

    shutil.rmtree(files.directory)
    files.directory.write_text("in the way")
    clock.until = START_OF_TIME + LEAF_LIFETIME / 2 + timedelta(seconds=3 * LOOK_S)
    with pytest.raises(asyncio.CancelledError):
        await own.run()
    assert own.credentials.current is first
    files.directory.unlink()
    clock.until += timedelta(seconds=2 * LOOK_S)
    with pytest.raises(asyncio.CancelledError):
        await own.run()
    assert files.key_path.read_bytes() == own.credentials.current.key_pem != first.key_pem
