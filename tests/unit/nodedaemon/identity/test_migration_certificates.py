"""Certificates of the hypervisor on a clock that is told: when they are asked for, and that trouble is tried again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cryptography import x509

from controlplane.authority.certificates import Authority
from controlplane.authority.cluster import Cluster
from controlplane.authority.migration_authority import LIFETIME, MigrationAuthority
from hypervisor.errors import Unavailable as HypervisorUnavailable
from hypervisor.migration import PeerCertificate, PeerCertificates, RevokedPeer
from limiquantix.compute.v1.join_service_pb2 import (
    IssueMigrationCertificateRequest,
    IssueMigrationCertificateResponse,
)
from limiquantix.errors import Reason, Unavailable
from limiquantix.rpc.credentials import MachineCertificate
from nodedaemon.identity.files import NodeIdentity
from nodedaemon.identity.migration_certificates import LOOK_S, MigrationCertificates
from tests.support.builders import make_id
from tests.support.private_libvirt_host import eventually

START = datetime(2026, 1, 1, tzinfo=UTC)
ENOUGH = 10_000


class Site(PeerCertificates):
    """A control plane and a hypervisor, both obliging until told otherwise; time passes when the task sleeps."""

    def __init__(self) -> None:
        self.now = START
        self.ahead = timedelta()
        authority, _ = Authority.make(make_id(), START)
        self.cluster = Cluster(make_id(), authority)
        self.authority = MigrationAuthority(self.cluster)
        self.name = "10.0.0.5"
        self.failures: list[Exception] = []
        self.newest_revocation: datetime | None = None
        self.asked_at: list[datetime] = []
        self.installed: list[PeerCertificate] = []
        self.refuses = False
        self.changes: list[datetime] = []
        self.slept: list[float] = []
        self.identity = self._identity()
        self.task = MigrationCertificates(
            self,
            self,
            lambda: self.identity,
            "10.0.0.5",
            now=lambda: self.now,
            sleep=self.sleep,
            jitter=lambda: 0.0,
        )
        self.task.tell_changes(lambda: self.changes.append(self.now))

    def _identity(self) -> NodeIdentity:
        pair = self.cluster.authority.issue(self.cluster.node(make_id()), self.now)
        held = MachineCertificate(pair.certificate_pem, pair.key_pem, self.cluster.authority.certificate_pem)
        return NodeIdentity.read(held, ())

    def join_again(self) -> None:
        self.identity = self._identity()

    async def issue(self, request: IssueMigrationCertificateRequest) -> IssueMigrationCertificateResponse:
        self.asked_at.append(self.now)
        if self.failures:
            raise self.failures.pop(0)
        at, request_pem = self.now - self.ahead, request.certificate_request.encode()
        pem = self.authority.certify(make_id(), ["host-1", self.name], request_pem, at)
        answer = IssueMigrationCertificateResponse(
            certificate=pem.decode(), authority_certificate=self.authority.certificate_pem.decode()
        )
        if self.newest_revocation is not None:
            answer.newest_revocation.FromDatetime(self.newest_revocation)
            answer.revoked.add(common_name="host two").revoked_at.FromDatetime(self.newest_revocation)
        return answer

    async def install(self, certificate: PeerCertificate) -> None:
        if self.refuses:
            raise HypervisorUnavailable("no admin socket")
        self.installed.append(certificate)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < ENOUGH
        self.now += timedelta(seconds=seconds)
        await asyncio.sleep(0)

    async def until(self, at: datetime) -> None:
        """Run until the clock is there."""
        running = asyncio.create_task(self.task.run())
        try:
            while self.now < at:
                assert not running.done(), running.exception()
                await asyncio.sleep(0)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_asked_for_at_the_start_and_at_half_of_each_life() -> None:
    site = Site()

    await site.until(START + 2 * LIFETIME)

    assert site.asked_at[0] == START
    gaps = [after - before for before, after in zip(site.asked_at, site.asked_at[1:], strict=False)]
    assert gaps
    assert all(LIFETIME / 2 - timedelta(seconds=1) <= gap <= LIFETIME / 2 + timedelta(seconds=LOOK_S) for gap in gaps)
    assert len(site.installed) == len(site.asked_at)
    assert site.changes == [START]


async def test_key_stays_while_the_identity_does() -> None:
    site = Site()
    await site.task.renew()
    await site.task.renew()
    site.now += timedelta(days=4)
    site.join_again()
    await site.task.renew()

    first, second, third = (each.key_pem for each in site.installed)
    assert first == second != third
    leaf = x509.load_pem_x509_certificate(site.installed[2].certificate_pem)
    assert leaf.not_valid_after_utc == site.now + LIFETIME


async def test_failures_are_tried_again_ever_more_slowly() -> None:
    site = Site()
    site.failures = [Unavailable(Reason.STATE_UNAVAILABLE, "not now")] * 8

    await site.until(START + timedelta(minutes=5))

    assert site.slept[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(site.installed) == 1


async def test_revocation_has_new_ones_asked_for_once() -> None:
    site = Site()
    await site.until(START + timedelta(seconds=LOOK_S))
    site.newest_revocation = site.now

    site.task.revoked(site.now)
    site.task.revoked(site.now - timedelta(days=1))  # another control plane, which has not heard of it yet
    await site.until(site.now + timedelta(seconds=4 * LOOK_S))

    assert [list(each.revoked) for each in site.installed] == [
        [],
        [RevokedPeer("host two", site.newest_revocation)],
    ]


async def test_revocation_of_a_host_that_is_forgotten_is_not_asked_for_again_and_again() -> None:
    site = Site()
    site.task.revoked(START)

    await site.until(START + timedelta(seconds=4 * LOOK_S))

    assert len(site.installed) == 1


async def test_certificate_for_another_address_is_not_used() -> None:
    site = Site()
    site.name = "10.0.0.6"
    await site.until(START + timedelta(seconds=10))
    assert site.installed == []

    site.name = "10.0.0.5"
    await site.until(site.now + timedelta(seconds=60))
    assert len(site.installed) == 1


async def test_hypervisor_that_takes_none_is_told_of_and_so_is_that_it_took_one() -> None:
    site = Site()
    await site.until(START + LIFETIME / 4)
    assert len(site.changes) == 1
    site.refuses = True
    await site.until(START + LIFETIME)
    assert len(site.changes) == 2
    site.refuses = False
    await site.until(site.now + timedelta(seconds=120))
    assert len(site.changes) == 3


async def test_clock_far_ahead_of_the_control_planes_is_no_reason_to_ask_without_a_pause() -> None:
    site = Site()
    site.ahead = 2 * LIFETIME

    await site.until(START + timedelta(minutes=5))

    assert len(site.installed) <= 1 + 300 / LOOK_S


async def test_news_wakes_one_that_sleeps() -> None:
    site = Site()
    site.now = datetime.now(UTC)
    task = MigrationCertificates(site, site, lambda: site.identity, "10.0.0.5", jitter=lambda: 0.0)
    running = asyncio.create_task(task.run())

    async def are_installed(count: int) -> bool | None:
        return True if len(site.installed) == count else None

    try:
        await eventually(partial(are_installed, 1), "the first one")
        task.revoked(datetime.now(UTC))
        await eventually(partial(are_installed, 2), "the second one")
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
