"""Who gets a certificate for moving VMs, and with which names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from controlplane.authority.certificates import RequestRefused
from controlplane.authority.migration_authority import MigrationAuthority, common_name, wait_s
from controlplane.domain import machine_errors
from controlplane.domain.node import Node
from controlplane.state.interface import Store, Transaction

TRUSTED_FOR: Final = timedelta(seconds=2)
"""How old may be what is known of the addresses of others: all hosts ask within seconds when one is revoked."""
ENDED_FOR: Final = timedelta(days=1)
"""How long hosts are told to end what a revoked one has open: longer than any is likely to be out of reach."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MigrationCertificate:
    """What a host's hypervisor shows, whom it believes, and whom not any more; PEM, and by common name since when."""

    certificate_pem: bytes
    authority_pem: bytes
    revocation_list_pem: bytes
    newest_revocation: datetime | None
    revoked_at: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class _Claims:
    """Which nodes say that an address is theirs, id and host name, by address."""

    read_at: datetime
    by_address: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Revoked:
    """Who is, as of a revision of the machines, and the list that says so."""

    revision: int
    made_at: datetime
    list_pem: bytes
    newest: datetime | None
    revoked_at: Mapping[str, datetime]


class MigrationCertificates:
    """Issues them. Nothing of them is kept: a host may ask as often as it likes."""

    def __init__(self, store: Store, authority: MigrationAuthority, now: Callable[[], datetime]) -> None:
        self._store = store
        self._authority = authority
        self._now = now
        self._claims: _Claims | None = None
        self._revoked: _Revoked | None = None

    async def issue(self, node_id: str, request_pem: bytes) -> MigrationCertificate:
        """Issue one, for the address that the host registered with.

        Raises:
            Unauthenticated: the host was forgotten.
            NotFound: it did not register yet.
            AlreadyExists: another node has its address, too.
            Unavailable: it was revoked and joined again within seconds; the message says how long to wait.
            InvalidArgument: the request cannot be signed.
        """
        now = self._now()

        async def read(tx: Transaction) -> tuple[Sequence[str], _Revoked]:
            machine = await tx.get_machine(node_id)
            if machine is None:
                raise machine_errors.certificate_refused(node_id)
            if (seconds := wait_s(machine, now)) > 0:
                raise machine_errors.revoked_just_now(node_id, seconds)
            node = await tx.get_node(node_id)
            if node is None:
                raise machine_errors.not_registered(node_id)
            return await self._names(tx, node, now), await self._newest_revoked(tx, now)

        names, revoked = await self._store.read(read)
        try:
            certificate_pem = self._authority.certify(node_id, names, request_pem, now)
        except RequestRefused as error:
            raise machine_errors.request_refused(str(error)) from error
        _log.info("migration_certificate_issued", node_id=node_id, names=names)
        return MigrationCertificate(
            certificate_pem, self._authority.certificate_pem, revoked.list_pem, revoked.newest, revoked.revoked_at
        )

    async def _names(self, tx: Transaction, node: Node, now: datetime) -> Sequence[str]:
        """Say by which names other hosts call this one, all of which are nobody else's."""
        address = _address(node)
        if address.lower() == node.hostname.lower():  # which is its own, as it joined with it
            return (node.hostname,)
        known = self._claims
        if known is None or not known.read_at <= now < known.read_at + TRUSTED_FOR:
            self._claims = known = _Claims(now, _claims_of(await tx.all_nodes()))
        others = {id_: name for id_, name in known.by_address.get(address.lower(), {}).items() if id_ != node.id}
        if others:
            raise machine_errors.address_taken(address, min(others.values()))
        return (node.hostname, address)

    async def _newest_revoked(self, tx: Transaction, now: datetime) -> _Revoked:
        """Return the list as it is now: whoever heard of a revocation and asks gets one that has it."""
        revision, known = await tx.machines_revision(), self._revoked
        if known is None or known.revision != revision or not known.made_at <= now < known.made_at + TRUSTED_FOR:
            revocations = await tx.revocations()
            list_pem = self._authority.revocation_list(revocations, now)
            newest = max((each.refused_before for each in revocations), default=None)
            revoked_at = {
                common_name(each.node_id): each.refused_before
                for each in revocations
                if now < each.refused_before + ENDED_FOR
            }
            self._revoked = known = _Revoked(revision, now, list_pem, newest, revoked_at)
        return known


def _claims_of(nodes: Sequence[Node]) -> Mapping[str, Mapping[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for node in nodes:
        cards = (address for card in node.spec.network for address in card.config.ip_addresses)
        for address in {node.hostname, node.management_ip, _address(node), *cards}:
            found.setdefault(address.lower(), {})[node.id] = node.hostname
    return found


def _address(node: Node) -> str:
    return node.spec.migration_address or node.management_ip or node.hostname
