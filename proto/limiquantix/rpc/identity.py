"""Which machine is at the other end, as its certificate says: both daemons read it the same way.

A certificate of the cluster's authority names its machine in a URI, `limiquantix://<cluster>/<role>/<id>`. Next to it
stands a DNS name, since that is what TLS libraries compare when they connect.

Source: RFC 5280, 4.2.1.6 (subject alternative names).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "limiquantix"
DOMAIN: Final = "limiquantix.internal"
NAMES_KEY: Final = "x509_subject_alternative_name"
"""Where gRPC keeps a peer's names. Source: gRPC's `auth_context` and GRPC_X509_SAN_PROPERTY_NAME."""
CERTIFICATE_KEY: Final = "x509_pem_cert"
"""Where it keeps the certificate itself, as PEM. Source: GRPC_X509_PEM_CERT_PROPERTY_NAME."""

_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_URI: Final = re.compile(rf"{SCHEME}://(?P<cluster>{_UUID})/(?P<role>[a-z]+)/(?P<id>[A-Za-z0-9][A-Za-z0-9.-]{{0,252}})")


class Role(enum.StrEnum):
    """What a machine is to the cluster."""

    NODE = "node"
    CONTROL_PLANE = "controlplane"


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """A machine of a cluster; `id` is a node's UUID, or the name of a control plane."""

    cluster_id: str
    role: Role
    id: str

    @property
    def uri(self) -> str:
        """The name that says all of it."""
        return f"{SCHEME}://{self.cluster_id}/{self.role}/{self.id}"

    @property
    def server_name(self) -> str:
        """The DNS name that whoever connects to it has TLS compare; control planes share one."""
        return node_server_name(self.id) if self.role is Role.NODE else CONTROL_PLANE_SERVER_NAME


_ROLES: Final = frozenset(role.value for role in Role)
CONTROL_PLANE_SERVER_NAME: Final = f"controlplane.{DOMAIN}"


def node_server_name(node_id: str) -> str:
    """Return the DNS name in the certificate of a node."""
    return f"{node_id.lower()}.node.{DOMAIN}"


def identity_of(uri: str) -> MachineIdentity | None:
    """Read a URI name; None if it is none of ours, to the letter."""
    found = _URI.fullmatch(uri)
    if found is None or found["role"] not in _ROLES:
        return None
    identity = MachineIdentity(found["cluster"], Role(found["role"]), found["id"])
    if identity.role is Role.NODE and re.fullmatch(_UUID, identity.id) is None:
        return None
    return identity


def identity_of_peer(auth_context: Mapping[str, Iterable[bytes]]) -> MachineIdentity | None:
    """Say which machine calls; None for one without a certificate, or with names that leave any doubt."""
    names = [name.decode("ascii", "replace") for name in auth_context.get(NAMES_KEY, ())]
    uris = [name for name in names if "://" in name]
    return identity_of(uris[0]) if len(uris) == 1 else None
