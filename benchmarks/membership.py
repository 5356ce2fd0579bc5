"""Hosts that joined, thousands at once: what each would have after it joined, without a call by any of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc

from controlplane.authority.certificates import LEAF_LIFETIME
from controlplane.authority.cluster import Cluster, open_cluster
from controlplane.domain.machines import MachineRecord
from controlplane.domain.node import Node
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.settings import SecretSettings
from controlplane.state.factory import create_store
from controlplane.state.interface import Transaction
from controlplane.state.seals import Seals

_BATCH = 250


@dataclass(frozen=True, slots=True)
class HostPapers:
    """What a host has of its own, as PEM."""

    node_id: str
    certificate_pem: str
    key_pem: str

    def credentials(self, authority_pem: str) -> grpc.ChannelCredentials:
        """Make what its connections show, and whom they believe."""
        return grpc.ssl_channel_credentials(
            authority_pem.encode(), self.key_pem.encode(), self.certificate_pem.encode()
        )


@dataclass(frozen=True, slots=True)
class Members:
    """The authority's certificate (PEM), and all hosts that it certified."""

    authority_pem: str
    hosts: Sequence[HostPapers]

    @classmethod
    def read(cls, path: Path) -> Members:
        """Read what `write` wrote."""
        document = json.loads(path.read_text())
        return cls(document["authority_pem"], [HostPapers(**each) for each in document["hosts"]])

    def write(self, path: Path) -> None:
        """Write them down for another process."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))


async def admit_all_nodes(database: Path, key_file: Path) -> Members:
    """Certify every node of a database that no control plane has open, as if its host had joined.

    Args:
        key_file: of the control plane that will be started on it; made, as is the cluster's authority.
    """
    keyring = Keyring(SecretSettings(key_file=key_file), lambda: datetime.now(UTC))
    store = create_store(f"sqlite:///{database}", seals=Seals(keyring.box))
    await store.open()
    try:
        await keyring.unlock(store)
        now = datetime.now(UTC)
        cluster = await open_cluster(store, keyring.box, now)
        nodes = await store.read(lambda tx: tx.all_nodes())
        for first in range(0, len(nodes), _BATCH):
            await store.run(partial(_admit, nodes[first : first + _BATCH], now))
    finally:
        await store.close()
    hosts = await asyncio.to_thread(_certified, cluster, nodes, now)
    return Members(cluster.authority.certificate_pem.decode(), hosts)


async def _admit(nodes: Sequence[Node], now: datetime, tx: Transaction) -> None:
    for node in nodes:
        await tx.put_machine(MachineRecord(node.id, node.hostname, now, now, now + LEAF_LIFETIME))


def _certified(cluster: Cluster, nodes: Sequence[Node], now: datetime) -> list[HostPapers]:
    pairs = ((node.id, cluster.authority.issue(cluster.node(node.id), now)) for node in nodes)
    return [HostPapers(node_id, pair.certificate_pem.decode(), pair.key_pem.decode()) for node_id, pair in pairs]
