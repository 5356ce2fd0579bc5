"""A closed control plane: the cluster's authority, who may call, what they may do, and the record of it.

Everything here reads secrets of the database, so it is built when the store is open and its keys are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import structlog

from controlplane.access.authorizer import Authorizer
from controlplane.access.floods import FloodBook, FloodWatch, shared_with
from controlplane.access.guard import Guard
from controlplane.access.interface import Authenticator, CallsNoted
from controlplane.access.limits import CallLimits
from controlplane.access.memory import AccessMemory
from controlplane.access.methods import FOR_STRANGERS, REFLECTION
from controlplane.access.recorded_reads import with_recorded
from controlplane.access.visibility import CallersVisibility
from controlplane.api.http.tls import ServerTls
from controlplane.audit.trail import Trail
from controlplane.authority.certificates import Pair
from controlplane.authority.cluster import Cluster, open_cluster
from controlplane.authority.host_calls import MachineAuthenticator, OwnWords
from controlplane.authority.joining import JoiningService
from controlplane.authority.machine_memory import MachineMemory
from controlplane.authority.migration_authority import MigrationAuthority
from controlplane.authority.migration_certificates import MigrationCertificates
from controlplane.authority.own_certificate import CertificateFiles, OwnCertificate
from controlplane.composition.rules import utc_now
from controlplane.config import ControlPlaneConfig
from controlplane.domain.access import THE_CLUSTER, Permission
from controlplane.domain.principal import Principal
from controlplane.identity.api_keys import ApiKeyService
from controlplane.identity.authenticator import BearerAuthenticator
from controlplane.identity.callers import KnownCallers
from controlplane.identity.issuer_keys import IssuerKeys
from controlplane.identity.oidc import IssuerTokens
from controlplane.identity.passwords import Passwords
from controlplane.identity.sessions import SessionService
from controlplane.identity.signing_keys import SigningKeys
from controlplane.identity.tokens import TokenMaker
from controlplane.identity.users import UserService
from controlplane.secrets.keyring import Keyring
from controlplane.security_settings import SecuritySettings
from controlplane.state.interface import Store
from limiquantix.errors import ApiError

FORGET_INTERVAL_S: Final = 3600.0
_log = structlog.get_logger(__name__)


class Running(Protocol):
    """Something that goes on until it is cancelled."""

    async def run(self) -> None:
        """Go on."""
        ...


@dataclass(frozen=True, slots=True)
class _Task:
    """Runs `work`, whatever its name is."""

    work: Callable[[], Awaitable[None]]

    async def run(self) -> None:
        """Do it."""
        await self.work()


@dataclass(frozen=True, slots=True)
class Security:
    """All of it.

    Attributes:
        https: what the HTTP listener encrypts with.
        guard: of the ports for people and programs, which ask nobody for a certificate.
        hosts_guard: of the port for hosts, where a certificate is all that counts.
        floods: looks after the connections of the gRPC port, where anybody can connect.
    """

    settings: SecuritySettings
    keyring: Keyring
    cluster: Cluster
    own: OwnCertificate
    https: ServerTls
    machines: MachineMemory
    joining: JoiningService
    migrations: MigrationCertificates
    access: AccessMemory
    trail: Trail
    passwords: Passwords
    callers: KnownCallers
    sessions: SessionService
    users: UserService
    api_keys: ApiKeyService
    issuers: Mapping[str, IssuerTokens]
    guard: Guard
    hosts_guard: Guard
    floods: FloodWatch

    @property
    def visibility(self) -> CallersVisibility:
        """What callers may see of lists."""
        return CallersVisibility(self.access)

    @property
    def background(self) -> Sequence[Running]:
        """What has to run beside the servers."""
        return (
            self.keyring,
            self.own,
            self.machines,
            self.trail,
            self.callers,
            self.floods,
            _Task(self.access.keep_level),
            _Task(self._forget_sessions),
        )

    async def _forget_sessions(self) -> None:
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            try:
                await self.sessions.forget()
            except ApiError as error:
                _log.warning("old_sessions_not_forgotten", reason=error.reason, message=error.message)

    async def stop(self) -> None:
        """Write what is not written yet; the store is open still."""
        for work, complaint in ((self.trail.settle, "audit_ends_lost"), (self.callers.write_uses, "key_uses_lost")):
            try:
                await work()
            except ApiError as error:
                _log.warning(complaint, reason=error.reason, message=error.message)
        self.passwords.close()


async def open_security(config: ControlPlaneConfig, store: Store, keyring: Keyring) -> Security:
    """Build it over an open store, with the keys that seal its secrets.

    Raises:
        AuthorityUnusable, CertificateUnusable, OSError: certificates cannot be used or written.
        ApiError: the database does not answer.
    """
    settings = config.security
    cluster = await open_cluster(store, keyring.box, utc_now(), _brought(settings))
    files = CertificateFiles(settings.runtime_dir)
    own = OwnCertificate(cluster, settings.name or socket.gethostname(), settings.names, utc_now, files=files)
    machines, access, callers, passwords = (
        MachineMemory(store),
        AccessMemory(store),
        KnownCallers(store, utc_now),
        Passwords(),
    )
    await machines.refresh()
    keys = SigningKeys(store, keyring.box, TokenMaker(f"limiquantix://{cluster.id}", config.identity.audience), utc_now)
    trail = Trail(store, keyring.chain_key, utc_now, timedelta(days=config.audit.retention_days))

    async def covers(first: Principal, second: Principal) -> bool:
        await access.refresh()  # rare, and of two seconds ago is not enough for who takes over whom
        return access.latest.covers(first, second)

    def may_manage(principal: Principal) -> bool:
        return Permission.USER_UPDATE in access.latest.permissions(principal, THE_CLUSTER)

    described = {REFLECTION: FOR_STRANGERS} if settings.open_reflection else {}
    authorizer = Authorizer(access, store, {**with_recorded(config.audit.recorded_reads), **described})
    limits, bodies = CallLimits(), OwnWords(store)
    floods = FloodWatch(book=FloodBook(is_shared=shared_with(config.http.trusted_proxies)))

    def guard_of(known: Authenticator, noted: CallsNoted | None = None) -> Guard:
        return Guard(known, authorizer, trail, limits, bodies, noted)

    return Security(
        settings=settings,
        keyring=keyring,
        cluster=cluster,
        own=own,
        https=ServerTls(files.cert_path, files.key_path),
        machines=machines,
        joining=JoiningService(store, cluster, settings.addresses or (config.grpc.listen_address,), utc_now),
        migrations=MigrationCertificates(store, MigrationAuthority(cluster), utc_now),
        access=access,
        trail=trail,
        passwords=passwords,
        callers=callers,
        sessions=SessionService(store, passwords, keys, callers, utc_now),
        users=UserService(store, passwords, callers, covers, utc_now),
        api_keys=ApiKeyService(store, callers, may_manage, covers, utc_now),
        issuers={each.name: IssuerTokens(each, IssuerKeys(each)) for each in config.identity.issuers},
        guard=guard_of(BearerAuthenticator(keys, callers, utc_now), floods),
        hosts_guard=guard_of(MachineAuthenticator(cluster.id, machines, utc_now)),
        floods=floods,
    )


def _brought(settings: SecuritySettings) -> Pair | None:
    if settings.authority_cert_path is None or settings.authority_key_path is None:
        return None
    return Pair(settings.authority_cert_path.read_bytes(), settings.authority_key_path.read_bytes())
