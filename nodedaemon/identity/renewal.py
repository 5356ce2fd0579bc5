"""Renew this host's certificate at half its life, while everything goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import grpc
import structlog

from limiquantix.compute.v1.join_service_pb2 import (
    IssueMigrationCertificateRequest,
    IssueMigrationCertificateResponse,
    RenewCertificateRequest,
    RenewCertificateResponse,
)
from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceStub
from limiquantix.errors import ApiError, Reason, Unavailable
from limiquantix.rpc.credentials import LastingStub, MachineCertificate, MachineCredentials
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error
from nodedaemon.identity.files import IdentityFile, IdentityUnusable, NodeIdentity
from nodedaemon.identity.requests import new_request

if TYPE_CHECKING:
    from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceAsyncStub

AnswerT = TypeVar("AnswerT")

LOOK_S: Final = 300.0
"""How often the clock is looked at: not once in days, since it may be set, and machines sleep."""
RETRY_S: Final = 300.0
"""Between tries that failed: hundreds of them, until the certificate ends."""
WARN_BEFORE_SHARE: Final = 0.25
"""With less of its life left than this, a certificate that cannot be renewed is an error in the log."""
_JITTER: Final = 0.1
_DEADLINE_S: Final = 15.0

_log = structlog.get_logger(__name__)


class Renewer(Protocol):
    """Asks a control plane for another certificate."""

    async def renew(self, request: RenewCertificateRequest) -> RenewCertificateResponse:
        """Ask.

        Raises:
            ApiError: none answered, or it was refused.
        """
        ...


class GrpcRenewer:
    """Asks control planes for certificates, one after the other, until one answers."""

    def __init__(self, addresses: tuple[str, ...], credentials: MachineCredentials) -> None:
        self._stubs: dict[str, LastingStub[JoinServiceAsyncStub]] = {
            address: LastingStub(JoinServiceStub, address, credentials, CONTROL_PLANE_SERVER_NAME)
            for address in addresses
        }

    async def renew(self, request: RenewCertificateRequest) -> RenewCertificateResponse:
        """See `Renewer`."""
        return await self._answer(lambda stub: stub.RenewCertificate(request, timeout=_DEADLINE_S))

    async def issue(self, request: IssueMigrationCertificateRequest) -> IssueMigrationCertificateResponse:
        """See `nodedaemon.identity.migration_certificates.Issuer`."""
        return await self._answer(lambda stub: stub.IssueMigrationCertificate(request, timeout=_DEADLINE_S))

    async def _answer(self, ask: Callable[[JoinServiceAsyncStub], Awaitable[AnswerT]]) -> AnswerT:
        failure: ApiError = Unavailable(Reason.STATE_UNAVAILABLE, "this host is told of no control plane to ask")
        for address, stub in self._stubs.items():
            try:
                return await ask(stub.get())
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error, peer=f"control plane {address}")
                failure.__cause__ = error
        raise failure

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.gather(*(stub.close_soon() for stub in self._stubs.values()))


class Renewal:
    """One task (`run`), which owns the identity.

    Args:
        credentials: what ports and channels of this process use; a new certificate is shown from then on.
        sleep, jitter: seams for tests; `jitter` returns a number from 0 to 1.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        file: IdentityFile,
        credentials: MachineCredentials,
        renewer: Renewer,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._identity = identity
        self._file = file
        self._credentials = credentials
        self._renewer = renewer
        self._now = now
        self._sleep = sleep
        self._early = 1.0 - _JITTER * jitter()

    @property
    def identity(self) -> NodeIdentity:
        """The newest."""
        return self._identity

    async def run(self) -> None:
        """Renew until cancelled; what fails is tried again."""
        while True:
            if not self.is_due():
                await self._sleep(LOOK_S)
                continue
            try:
                await self.renew()
            except (ApiError, IdentityUnusable, OSError) as error:
                self._tell(error)
                await self._sleep(RETRY_S)

    def is_due(self) -> bool:
        """Whether half of its life is over; hosts that joined together come at different times."""
        begun, ends = self._identity.begins_at, self._identity.ends_at
        return self._now() >= begun + (ends - begun) * 0.5 * self._early

    async def renew(self) -> None:
        """Renew once: kept on disk first, then shown.

        Raises:
            ApiError: it was not given.
            IdentityUnusable: what was given is not for this node.
            OSError: it cannot be kept, and so is not shown: after a restart it would be lost.
        """
        known = self._identity
        key_pem, request_pem = await asyncio.to_thread(new_request)
        answer = await self._renewer.renew(RenewCertificateRequest(certificate_request=request_pem.decode()))
        held = MachineCertificate(answer.certificate.encode(), key_pem, known.certificate.authority_pem)
        newer = NodeIdentity.read(held, tuple(answer.addresses) or known.addresses)
        if newer.machine != known.machine:
            raise IdentityUnusable(f"the certificate is for node {newer.machine.id}, not {known.machine.id}")
        await asyncio.to_thread(self._file.save, newer)
        self._credentials.replace(held)
        self._identity = newer
        _log.info("certificate_renewed", ends_at=newer.ends_at.isoformat())

    def _tell(self, error: Exception) -> None:
        begins, ends = self._identity.begins_at, self._identity.ends_at
        is_urgent = ends - self._now() < (ends - begins) * WARN_BEFORE_SHARE
        (_log.error if is_urgent else _log.warning)(
            "certificate_not_renewed",
            error=str(error),
            ends_at=ends.isoformat(),
            advice=f"once it has ended, or was revoked, this host joins again with a token of `limiquantix node token "
            f"create --node {self._identity.machine.id}`",
        )
