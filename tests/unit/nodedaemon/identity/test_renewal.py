"""Renewal on a clock that is told: when, what is kept, and that trouble is tried again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.authority.certificates import BACKDATE, LEAF_LIFETIME, Authority
from limiquantix.compute.v1.join_service_pb2 import RenewCertificateRequest, RenewCertificateResponse
from limiquantix.errors import Reason, Unavailable
from limiquantix.rpc.credentials import MachineCertificate, MachineCredentials
from limiquantix.rpc.identity import MachineIdentity, Role
from nodedaemon.identity.files import IdentityFile, IdentityUnusable, NodeIdentity
from nodedaemon.identity.renewal import LOOK_S, RETRY_S, Renewal
from tests.support.builders import make_id

START = datetime(2026, 1, 1, tzinfo=UTC)
NODE = MachineIdentity(make_id(), Role.NODE, make_id())
ENOUGH = 100_000


class Site:
    """An authority that answers, until it is told not to; time passes when the renewal sleeps."""

    def __init__(self, directory: Path) -> None:
        self.now = START
        self.authority, _ = Authority.make(NODE.cluster_id, START)
        self.signs_for = NODE
        self.failure_count = 0
        self.addresses: tuple[str, ...] = ()
        self.slept: list[float] = []
        self.asked_at: list[datetime] = []
        self.file = IdentityFile.under(directory)
        pair = self.authority.issue(NODE, START)
        held = MachineCertificate(pair.certificate_pem, pair.key_pem, self.authority.certificate_pem)
        self.first = NodeIdentity.read(held, ("cp-1:8082",))
        self.credentials = MachineCredentials(held)
        self.renewal = Renewal(
            self.first,
            self.file,
            self.credentials,
            self,
            now=lambda: self.now,
            sleep=self.sleep,
            jitter=lambda: 0.0,
        )

    async def renew(self, request: RenewCertificateRequest) -> RenewCertificateResponse:
        self.asked_at.append(self.now)
        if self.failure_count:
            self.failure_count -= 1
            raise Unavailable(Reason.STATE_UNAVAILABLE, "not now")
        pem = self.authority.certify(self.signs_for, request.certificate_request.encode(), self.now)
        return RenewCertificateResponse(certificate=pem.decode(), addresses=self.addresses)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)
        if self.renewal.identity is not self.first or len(self.slept) > ENOUGH:
            raise asyncio.CancelledError


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_certificate_is_renewed_at_half_its_life_kept_and_shown(site: Site) -> None:
    site.addresses = ("cp-9:8082",)
    with pytest.raises(asyncio.CancelledError):
        await site.renewal.run()
    half = START - BACKDATE + (LEAF_LIFETIME + BACKDATE) / 2
    assert half <= site.asked_at[0] < half + timedelta(seconds=LOOK_S)
    newer = site.renewal.identity
    assert newer.machine == NODE
    assert newer.addresses == ("cp-9:8082",), "where control planes are now"
    assert newer.certificate.key_pem != site.first.certificate.key_pem
    assert site.file.load() == newer
    assert site.credentials.current == newer.certificate


async def test_trouble_is_tried_again_and_the_old_one_stays_meanwhile(site: Site) -> None:
    site.now, site.failure_count = START + timedelta(days=5, hours=12), 3
    with pytest.raises(asyncio.CancelledError):
        await site.renewal.run()
    assert site.slept[:3] == [RETRY_S] * 3
    assert len(site.asked_at) == 4
    assert site.file.load() == site.renewal.identity


async def test_certificate_of_another_node_is_not_taken(site: Site) -> None:
    site.signs_for = MachineIdentity(NODE.cluster_id, Role.NODE, make_id())
    with pytest.raises(IdentityUnusable, match="not " + NODE.id):
        await site.renewal.renew()
    assert site.credentials.current == site.first.certificate
    assert site.file.load() is None


async def test_certificate_that_cannot_be_kept_is_not_shown(site: Site, tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("in the way")
    with pytest.raises(OSError, match="identity"):
        await site.renewal.renew()
    assert site.credentials.current == site.first.certificate
