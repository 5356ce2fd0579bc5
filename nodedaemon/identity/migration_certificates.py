"""Certificates by which hypervisors of the cluster know each other: asked for, and handed to this host's one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog
from cryptography import x509

from hypervisor.errors import HypervisorError
from hypervisor.migration import PeerCertificate, PeerCertificates, RevokedPeer
from limiquantix.compute.v1.join_service_pb2 import (
    IssueMigrationCertificateRequest,
    IssueMigrationCertificateResponse,
)
from limiquantix.errors import ApiError, Code
from nodedaemon.identity.files import NodeIdentity
from nodedaemon.identity.requests import new_request

LOOK_S: Final = 30.0
"""How often the clock is looked at, since it may be set, and machines sleep."""
LEAST_LIFE: Final = timedelta(seconds=LOOK_S)
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
SPREAD_S: Final = 3.0
"""Over which hosts that hear of a revocation ask, not all at once."""
_JITTER: Final = 0.1
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

_log = structlog.get_logger(__name__)


class CertificateUnusable(Exception):
    """What was issued is not what this host needs; the message says why."""


class Issuer(Protocol):
    """Asks a control plane."""

    async def issue(self, request: IssueMigrationCertificateRequest) -> IssueMigrationCertificateResponse:
        """Ask.

        Raises:
            ApiError: none answered, or it was refused.
        """
        ...


class MigrationCertificates:
    """One task (`run`): asks at its start, at half of a certificate's life, and when a host was revoked.

    The key is kept for as long as the identity of this host is: a renewed certificate fits the key that is there, so
    that whoever reads both while one is replaced finds a pair.

    Args:
        identity: the newest.
        address: at which other hosts reach this one's hypervisor; what is issued must name it.
        sleep: a seam for tests; waits that long at most, and less if there is news.
        jitter: returns a number from 0 to 1.
    """

    def __init__(
        self,
        issuer: Issuer,
        certificates: PeerCertificates,
        identity: Callable[[], NodeIdentity],
        address: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._issuer = issuer
        self._certificates = certificates
        self._identity = identity
        self._address = address
        self._changed: Callable[[], None] = lambda: None
        self._now = now
        self._news = asyncio.Event()
        self._sleep = sleep or self._sleep_until_news
        self._jitter = jitter
        self._key: tuple[datetime, bytes, bytes] | None = None
        self._renew_at = _NEVER
        self._listed = _NEVER
        """The newest revocation that the hypervisor knows of."""
        self._revoked = _NEVER
        """The newest one that this host heard of."""
        self._is_well = False

    def tell_changes(self, changed: Callable[[], None]) -> None:
        """Call that, from now on, when migration became possible, or is no more."""
        self._changed = changed

    def revoked(self, at: datetime) -> None:
        """Hear when certificates of a host were last revoked; returns at once."""
        if at > self._revoked:
            self._revoked = at
            self._news.set()

    async def run(self) -> None:
        """Keep it good until cancelled; what fails is tried again."""
        retry_s = FIRST_RETRY_S
        while True:
            self._news.clear()
            if self._listed < self._revoked and self._is_well:
                await asyncio.sleep(SPREAD_S * self._jitter())
            if self._now() < self._renew_at and self._listed >= self._revoked:
                await self._sleep(LOOK_S)
                continue
            try:
                await self.renew()
            except (ApiError, HypervisorError, CertificateUnusable) as error:
                self._tell(error, retry_s)
                await self._sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)
            else:
                retry_s = FIRST_RETRY_S
                self._note(is_well=True)

    async def renew(self) -> None:
        """Ask once, and have it used.

        Raises:
            ApiError: it was not issued.
            CertificateUnusable: it is not for this host as it is reached.
            HypervisorError: it is not used.
        """
        heard, begins_at = self._revoked, self._identity().begins_at
        if self._key is None or self._key[0] != begins_at:
            self._key = (begins_at, *await asyncio.to_thread(new_request))
        _, key_pem, request_pem = self._key
        answer = await self._issuer.issue(IssueMigrationCertificateRequest(certificate_request=request_pem.decode()))
        ends_at = self._end_of(answer)
        await self._certificates.install(
            PeerCertificate(
                answer.certificate.encode(),
                key_pem,
                answer.authority_certificate.encode(),
                answer.revocation_list.encode(),
                [RevokedPeer(each.common_name, each.revoked_at.ToDatetime(UTC)) for each in answer.revoked],
            )
        )
        now = self._now()
        half = (ends_at - now) * 0.5 * (1.0 - _JITTER * self._jitter())
        self._renew_at = now + max(half, LEAST_LIFE)  # where clocks differ by more than a life lasts
        told = answer.newest_revocation.ToDatetime(UTC) if answer.HasField("newest_revocation") else _NEVER
        self._listed = max(heard, told)  # what was heard of before is in the list, or its host is gone
        _log.info("migration_certificate_renewed", ends_at=ends_at.isoformat(), address=self._address)

    def _end_of(self, answer: IssueMigrationCertificateResponse) -> datetime:
        """Say until when it is good, once it is seen to be for this host."""
        try:
            certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound) as error:
            raise CertificateUnusable(f"what was issued is no certificate of a hypervisor: {error}") from error
        known = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
        known.update(name.lower() for name in names.get_values_for_type(x509.DNSName))
        if self._address.lower() not in known:
            raise CertificateUnusable(
                f"it was issued for {', '.join(sorted(known))}, and this host is reached at {self._address}, which it "
                "has not registered yet"
            )
        return certificate.not_valid_after_utc

    def _tell(self, error: Exception, retry_s: float) -> None:
        is_early = isinstance(error, ApiError) and error.code is Code.NOT_FOUND  # it registers just now
        (_log.info if is_early else _log.warning)(
            "migration_certificate_not_renewed", error=str(error), retry_s=retry_s
        )
        if isinstance(error, HypervisorError):
            self._note(is_well=False)

    def _note(self, *, is_well: bool) -> None:
        if is_well is not self._is_well:
            self._is_well = is_well
            self._changed()

    async def _sleep_until_news(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass
