"""The cluster's authority as a control plane has it: made at the first start of the first one, the same for all.

Its key is in memory while the process lives, and in the database sealed.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from controlplane.authority.certificates import Authority, AuthorityUnusable, Pair
from controlplane.domain.machines import StoredAuthority
from controlplane.secrets.box import SecretBox
from controlplane.state.interface import Store
from limiquantix.rpc.identity import MachineIdentity, Role

KEY_PURPOSE: Final = "authority.key"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who signs, and for which cluster."""

    id: str
    authority: Authority

    def node(self, node_id: str) -> MachineIdentity:
        """Name a node."""
        return MachineIdentity(self.id, Role.NODE, node_id)

    def control_plane(self, name: str) -> MachineIdentity:
        """Name a control plane."""
        return MachineIdentity(self.id, Role.CONTROL_PLANE, name)


async def open_cluster(store: Store, box: SecretBox, now: datetime, brought: Pair | None = None) -> Cluster:
    """Read the authority, or make it if there is none; of several processes that begin at once, all get the same.

    Args:
        brought: an authority of the operator's own, taken in at the first start.

    Raises:
        AuthorityUnusable: what was brought along cannot sign, or differs from the authority that the cluster has.
        SecretUnreadable: the key in the database was sealed with another secret key.
        ApiError: the database does not answer.
    """
    stored = await store.read(lambda tx: tx.authority())
    if stored is None:
        stored = await _kept(store, box, now, brought)
    plain = box.open(stored.sealed_key, KEY_PURPOSE, stored.cluster_id)
    if not box.is_current(stored.sealed_key):
        sealed = box.seal(plain, KEY_PURPOSE, stored.cluster_id)
        await store.run(lambda tx: tx.update_authority_key(sealed))
    authority = Authority(Pair(stored.certificate_pem.encode(), plain))
    if brought is not None and Authority(brought).fingerprint != authority.fingerprint:
        raise AuthorityUnusable(
            f"the cluster has an authority already, of fingerprint {authority.fingerprint}; another one cannot take "
            "its place while hosts hold certificates of it"
        )
    return Cluster(stored.cluster_id, authority)


async def _kept(store: Store, box: SecretBox, now: datetime, brought: Pair | None) -> StoredAuthority:
    """Make one and keep it, unless another process was faster; returns the one that is kept."""
    cluster_id = str(uuid.uuid4())
    authority, pair = (Authority(brought), brought) if brought is not None else Authority.make(cluster_id, now)
    sealed = box.seal(pair.key_pem, KEY_PURPOSE, cluster_id)
    made = StoredAuthority(cluster_id, pair.certificate_pem.decode(), sealed, now)
    if await store.run(lambda tx: tx.insert_authority(made)):
        _log.info("authority_made", cluster_id=cluster_id, fingerprint=authority.fingerprint)
        return made
    found = await store.read(lambda tx: tx.authority())
    assert found is not None  # noqa: S101 - it is never removed
    return found
