"""A cluster of the tests' own: identities for daemons that have no control plane but the test, or one that is faked."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import grpc

from controlplane.authority.certificates import Authority
from controlplane.authority.cluster import Cluster
from limiquantix.rpc.credentials import MachineCertificate, MachineCredentials
from limiquantix.rpc.identity import MachineIdentity, node_server_name
from nodedaemon.identity.files import IdentityFile, NodeIdentity

_NAMES = ("localhost", "127.0.0.1")


@cache
def own_cluster() -> Cluster:
    """Return the cluster; one for the whole process."""
    cluster_id = str(uuid.uuid4())
    authority, _ = Authority.make(cluster_id, datetime.now(UTC))
    return Cluster(cluster_id, authority)


@cache
def control_plane_credentials() -> MachineCredentials:
    """Return what a control plane of that cluster shows."""
    return credentials_of(own_cluster().control_plane("cp-1"))


@cache
def node_credentials() -> MachineCredentials:
    """Return what a node of that cluster shows."""
    return credentials_of(own_cluster().node(str(uuid.uuid4())))


def credentials_of(
    machine: MachineIdentity, authority: Authority | None = None, at: datetime | None = None
) -> MachineCredentials:
    """Make what a machine shows.

    Args:
        authority: another than that of the cluster.
        at: when the certificate was issued, if not now.
    """
    authority = authority or own_cluster().authority
    pair = authority.issue(machine, at or datetime.now(UTC), _NAMES)
    return MachineCredentials(MachineCertificate(pair.certificate_pem, pair.key_pem, authority.certificate_pem))


def admit(data_dir: Path, addresses: tuple[str, ...] = (), node_id: str = "", at: datetime | None = None) -> str:
    """Give a host an identity whose daemon keeps its data there, unless it has one; returns its node's id.

    Args:
        addresses: of the control planes' ports for hosts.
        at: when the certificate was issued, if not now.
    """
    file = IdentityFile.under(data_dir)
    if (known := file.load()) is not None:
        return known.machine.id
    machine = own_cluster().node(node_id or str(uuid.uuid4()))
    file.save(NodeIdentity.read(credentials_of(machine, at=at).current, addresses))
    return machine.id


def daemon_channel(address: str, node_id: str) -> grpc.aio.Channel:
    """Open a channel by which a control plane of that cluster commands a host."""
    return grpc.aio.secure_channel(
        address,
        control_plane_credentials().channel(),
        options=[("grpc.ssl_target_name_override", node_server_name(node_id))],
    )
