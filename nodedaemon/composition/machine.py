"""Who this host is to others: what it was given when it joined."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from limiquantix.rpc.credentials import MachineCredentials
from limiquantix.rpc.pipeline import CallGuard
from nodedaemon.config import NodeConfig
from nodedaemon.identity.door import ControlPlanesOnly
from nodedaemon.identity.files import IdentityFile, IdentityUnusable, NodeIdentity
from nodedaemon.identity.renewal import GrpcRenewer, Renewal


@dataclass(frozen=True, slots=True)
class Machine:
    """The identity of this host, and what it shows.

    Attributes:
        identity: None for one among parts of a single process, which nobody calls over a network.
        credentials: of the identity, as they are now; None without one.
    """

    config: NodeConfig
    file: IdentityFile
    identity: NodeIdentity | None
    credentials: MachineCredentials | None

    @property
    def node_id(self) -> str:
        """Id of this node; "" without an identity, and the control plane then assigns one."""
        return self.identity.machine.id if self.identity is not None else ""

    @property
    def control_planes(self) -> tuple[str, ...]:
        """Where control planes take the calls of hosts."""
        return self.config.control_plane.addresses or (self.identity.addresses if self.identity is not None else ())

    @property
    def listening(self) -> grpc.ServerCredentials | None:
        """What the daemon's port is served with; None without an identity."""
        return self.credentials.server(asks_for_certificate=True) if self.credentials is not None else None

    @property
    def guard(self) -> CallGuard | None:
        """Who may command this host; None without an identity."""
        return ControlPlanesOnly(self.identity.machine.cluster_id) if self.identity is not None else None

    def renewal(self) -> tuple[Renewal, GrpcRenewer] | None:
        """Make what keeps the certificate good, and the connections that it asks over; None without one."""
        if self.identity is None or self.credentials is None:
            return None
        renewer = GrpcRenewer(self.control_planes, self.credentials)
        return Renewal(self.identity, self.file, self.credentials, renewer), renewer


def open_machine(config: NodeConfig) -> Machine:
    """Read the identity of this host. Blocks.

    Raises:
        IdentityUnusable: there is none, or it cannot be used.
    """
    file = IdentityFile.under(config.node.data_dir)
    identity = file.load()
    if identity is None:
        raise IdentityUnusable(
            f"this host has joined no cluster ({file.path} is not there): make a token with `limiquantix node token "
            "create`, and join with `limiquantix-node join TOKEN`"
        )
    return Machine(config, file, identity, MachineCredentials(identity.certificate))
