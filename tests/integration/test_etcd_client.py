"""The client of etcd and what is built on it, with one real member: TLS, nobody there, closing, and what it costs."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.factory import create_coordinator
from controlplane.coordination.interface import CoordinationAway, RevocationMark
from controlplane.coordination.settings import Backend, CoordinationSettings, EtcdTlsSettings
from tests.support.elections import Listener, candidate, until, until_elected
from tests.support.etcd import EtcdCluster, etcd_cluster, require_etcd

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as started:
        yield started


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)  # noqa: S607


def write_certificates(directory: Path) -> EtcdTlsSettings:
    """Make a CA and a certificate of it that serves both sides."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    request, cert, key = directory / "it.csr", directory / "it.pem", directory / "it.key"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-subj", "/CN=test CA", "-days", "1")
    openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=limiquantix")
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", cert,
            "-days", "1", "-extfile", extensions)  # fmt: skip
    return EtcdTlsSettings(ca_path=ca, cert_path=cert, key_path=key)


async def test_tls_both_sides_show_a_certificate(tmp_path: Path) -> None:
    require_etcd()
    files = write_certificates(tmp_path)
    flags = ("--cert-file", str(files.cert_path), "--key-file", str(files.key_path), "--client-cert-auth",
             "--trusted-ca-file", str(files.ca_path))  # fmt: skip
    cluster = EtcdCluster(tmp_path, 1, flags)
    cluster.start()
    known = create_coordinator(settings_of(cluster, files))
    nameless = create_coordinator(settings_of(cluster, EtcdTlsSettings(ca_path=files.ca_path)))
    distrustful = create_coordinator(settings_of(cluster, EtcdTlsSettings()))
    try:
        async with known.elect(candidate("a")) as election:
            await until_elected(election)
            for coordinator in (nameless, distrustful):
                with pytest.raises(CoordinationAway, match=r"UNAVAILABLE|no answer"):
                    await coordinator.check()
    finally:
        for coordinator in (known, nameless, distrustful):
            await coordinator.close()
        cluster.stop()


def settings_of(cluster: EtcdCluster, tls: EtcdTlsSettings) -> CoordinationSettings:
    return CoordinationSettings(backend=Backend.ETCD, endpoints=cluster.endpoints, tls=tls)


async def test_nobody_there_names_each_endpoint_and_what_is_wrong() -> None:
    coordinator = EtcdCoordinator(EtcdClient([NOBODY, "http://127.0.0.1:2"]), "/t/", 5)
    async with coordinator.elect(candidate("a")) as election:
        assert election.obstacle  # from the beginning
        with pytest.raises(CoordinationAway, match=r"127\.0\.0\.1:1: .*refused.*; http://127\.0\.0\.1:2: .*refused"):
            await coordinator.revocations()
        await until(lambda: NOBODY in election.obstacle)
        assert not election.is_elected
    await coordinator.close()


async def test_endpoint_where_nobody_is_costs_nothing(cluster: EtcdCluster) -> None:
    coordinator = EtcdCoordinator(EtcdClient([NOBODY, *cluster.endpoints]), f"/{uuid.uuid4()}/", 5)

    await coordinator.publish_revocation(RevocationMark("node-1", 1))
    assert await coordinator.revocations() == {"node-1": 1}

    await coordinator.close()


async def test_close_ends_what_waits_and_refuses_the_rest(cluster: EtcdCluster) -> None:
    coordinator, listener = EtcdCoordinator(EtcdClient(cluster.endpoints), "/t/", 5), Listener()
    listening = asyncio.create_task(listener.run(coordinator, "topic"))
    await until(lambda: listener.count == 1)

    await coordinator.close()

    await asyncio.wait_for(listening, 60)
    with pytest.raises(CoordinationAway, match="closed"):
        await coordinator.check()


async def test_lease_calls_may_be_repeated(cluster: EtcdCluster) -> None:
    client, lease_id = EtcdClient(cluster.endpoints), uuid.uuid4().int >> 66
    for _ in range(2):
        await client.grant(lease_id, 5)
    assert (await client.keep_alive(lease_id)).TTL == 5

    for _ in range(2):
        await client.revoke(lease_id)
    assert (await client.keep_alive(lease_id)).TTL == 0

    await client.close()


async def test_election_makes_one_revision_and_time_makes_none(cluster: EtcdCluster) -> None:
    before = await asyncio.to_thread(cluster.revision)
    coordinators = [EtcdCoordinator(EtcdClient(cluster.endpoints), f"/{uuid.uuid4()}/", 5)] * 2
    async with coordinators[0].elect(candidate("a")) as a, coordinators[1].elect(candidate("b")) as b:
        await until(lambda: not (a.obstacle or b.obstacle))
        await asyncio.sleep(5.5)  # longer than a session: it was kept alive

        assert await asyncio.to_thread(cluster.revision) == before + 1
    await coordinators[0].close()


async def test_mark_published_or_cleared_once_more_makes_no_revision(cluster: EtcdCluster) -> None:
    coordinator, mark = EtcdCoordinator(EtcdClient(cluster.endpoints), f"/{uuid.uuid4()}/", 5), RevocationMark("n", 7)
    before = await asyncio.to_thread(cluster.revision)

    for _ in range(3):
        await coordinator.publish_revocation(mark)
    assert await asyncio.to_thread(cluster.revision) == before + 1
    for _ in range(3):
        await coordinator.clear_revocation(mark)
    assert await asyncio.to_thread(cluster.revision) == before + 2

    await coordinator.close()
