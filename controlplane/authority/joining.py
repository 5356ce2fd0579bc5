"""How hosts join, renew their certificates, and lose them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import ssl
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

import structlog

from controlplane.authority.certificates import LEAF_LIFETIME, RequestRefused
from controlplane.authority.cluster import Cluster
from controlplane.domain import machine_errors
from controlplane.domain.machines import JoinToken, MachineRecord
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError
from limiquantix.join_token import JoinTokenText

DEFAULT_LIFETIME: Final = timedelta(hours=1)
KEPT: Final = timedelta(days=30)
_SECRET_BYTES: Final = 32
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """What a host gets."""

    node_id: str
    certificate_pem: bytes


@dataclass(frozen=True, slots=True)
class JoiningService:
    """Carries out `JoinService`.

    Attributes:
        addresses: "host:port" of each control plane's port for people and programs, where hosts join.
    """

    store: Store
    cluster: Cluster
    addresses: Sequence[str]
    now: Callable[[], datetime]

    async def create_token(
        self,
        principal: str,
        lifetime: timedelta = DEFAULT_LIFETIME,
        hostname: str = "",
        node_id: str = "",
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[JoinTokenText, JoinToken]:
        """Make a token; its text is in the answer and nowhere else.

        Raises:
            NotFound: there is no such node, and no host joined as it.
        """
        now, secret = self.now(), secrets.token_urlsafe(_SECRET_BYTES)
        token = JoinToken(
            id=str(uuid.uuid4()),
            digest=_digest(secret),
            created_by=principal,
            created_at=now,
            expires_at=now + lifetime,
            hostname=hostname,
            node_id=node_id,
            labels=dict(labels),
        )

        async def insert(tx: Transaction) -> JoinToken:
            kept = token
            if node_id:
                # Nodes of a cluster that was open until now have not joined, and keep their ids when they do.
                known = await tx.get_machine(node_id) or await tx.get_node(node_id)
                if known is None:
                    raise machine_errors.never_joined(node_id)
                kept = replace(token, hostname=known.hostname)
            await tx.forget_join_tokens(now - KEPT)
            await tx.insert_join_token(kept)
            return kept

        kept = await self.store.run(insert)
        authority_der = ssl.PEM_cert_to_DER_cert(self.cluster.authority.certificate_pem.decode())
        return JoinTokenText(kept.id, secret, authority_der, tuple(self.addresses)), kept

    async def list_tokens(self) -> Sequence[JoinToken]:
        """Read all that are kept."""
        return await self.store.read(lambda tx: tx.list_join_tokens())

    async def revoke_token(self, token_id: str) -> None:
        """Have one be of no use.

        Raises:
            NotFound: there is none that is unused.
        """
        if not await self.store.run(lambda tx: tx.revoke_join_token(token_id, self.now())):
            raise machine_errors.join_token_not_found(token_id)

    async def revoke_certificate(self, node_id: str) -> None:
        """Have every certificate that a node was given until now be good no more. Idempotent.

        Raises:
            NotFound: no host joined as that node.
        """
        if not await self.store.run(lambda tx: tx.refuse_certificates(node_id, self.now())):
            raise machine_errors.never_joined(node_id)
        _log.warning("node_certificates_revoked", node_id=node_id)

    async def join(self, token_id: str, secret: str, hostname: str, request_pem: bytes) -> Joined:
        """Take a host in. The token is used up by whoever comes first, with all else in one transaction.

        Raises:
            PermissionDenied: the token is not good; the same answer whatever is wrong with it.
            InvalidArgument: the request for a certificate cannot be signed; the token stays good.
            AlreadyExists: another host joined with that name; the token stays good.
        """
        now = self.now()

        async def take_in(tx: Transaction) -> Joined:
            token = await tx.get_join_token(token_id)
            if token is None or not hmac.compare_digest(token.digest, _digest(secret)):
                raise machine_errors.join_refused()
            if token.hostname.lower() not in ("", hostname.lower()) or not token.is_good(now):
                raise machine_errors.join_refused()
            if not token.node_id and await tx.get_node_by_hostname(hostname) is not None:
                raise machine_errors.hostname_taken(hostname)
            node_id = token.node_id or str(uuid.uuid4())
            known = await tx.get_machine(node_id)
            earlier = known or await tx.departure(node_id)
            refused_before = earlier.refused_before if earlier is not None else None
            issued_at = _issue_time(now, refused_before)
            certificate_pem = self._certify(node_id, request_pem, issued_at)
            if not await tx.use_join_token(token_id, node_id, now):
                raise machine_errors.join_refused()
            ends_at, labels = issued_at + LEAF_LIFETIME, token.labels if known is None else known.labels
            await tx.put_machine(
                MachineRecord(node_id, hostname, now, issued_at, ends_at, labels, refused_before=refused_before)
            )
            return Joined(node_id, certificate_pem)

        try:
            joined = await self.store.run(take_in)
        except ApiError as error:
            _log.warning("join_refused", token_id=token_id, hostname=hostname, reason=error.reason)
            raise
        _log.info("host_joined", node_id=joined.node_id, hostname=hostname, token_id=token_id)
        return joined

    async def renew(self, node_id: str, request_pem: bytes) -> bytes:
        """Return a new certificate for a host that showed a good one.

        Raises:
            Unauthenticated: the host was forgotten since.
            InvalidArgument: the request cannot be signed.
        """
        now = self.now()

        async def note(tx: Transaction) -> bytes:
            machine = await tx.get_machine(node_id)
            if machine is None:
                raise machine_errors.certificate_refused(node_id)
            issued_at = _issue_time(now, machine.refused_before)
            certificate_pem = self._certify(node_id, request_pem, issued_at)
            await tx.put_machine(replace(machine, issued_at=issued_at, ends_at=issued_at + LEAF_LIFETIME))
            return certificate_pem

        return await self.store.run(note)

    def _certify(self, node_id: str, request_pem: bytes, now: datetime) -> bytes:
        try:
            return self.cluster.authority.certify(self.cluster.node(node_id), request_pem, now)
        except RequestRefused as error:
            raise machine_errors.request_refused(str(error)) from error


def _issue_time(now: datetime, refused_before: datetime | None) -> datetime:
    """Say when a certificate is issued: after those that were revoked, in the whole seconds that certificates have."""
    if refused_before is None or now.replace(microsecond=0) >= refused_before:
        return now
    return refused_before.replace(microsecond=0) + timedelta(seconds=1)


def _digest(secret: str) -> str:
    """Digest a secret that is random and long: there is nothing to guess, so it need not be slow."""
    return hashlib.sha256(secret.encode()).hexdigest()
