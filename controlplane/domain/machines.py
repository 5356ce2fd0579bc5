"""Records of who is which machine: the cluster's authority, tokens to join by, and the certificates of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

REFUSALS_KEPT: Final = timedelta(days=30)
"""How long it is remembered that a host was forgotten; no certificate is good for as long."""


@dataclass(frozen=True, slots=True)
class StoredAuthority:
    """The authority of the cluster, with its key sealed.

    Attributes:
        cluster_id: a UUID, made with it.
    """

    cluster_id: str
    certificate_pem: str
    sealed_key: bytes
    made_at: datetime


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A permission to join, once.

    Attributes:
        digest: of its secret part; the secret itself is kept nowhere.
        hostname: the only host that it is for; "" for any.
        node_id: of a node that joins again; "" for a new one.
        labels: that its node gets when it registers first.
        used_by: node that joined with it; "" while none did.
    """

    id: str
    digest: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    hostname: str = ""
    node_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    used_at: datetime | None = None
    used_by: str = ""
    revoked_at: datetime | None = None

    def is_good(self, now: datetime) -> bool:
        """Whether a host may still join with it."""
        return self.used_at is None and self.revoked_at is None and self.created_at <= now < self.expires_at


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A host that joined; there before its node is, which comes with its first registration.

    Attributes:
        hostname: what it said when it joined, the only one that it may register as.
        refused_before: certificates that were issued before this are not good any more.
        issued_at: of the newest certificate.
        ends_at: of the newest certificate.
    """

    node_id: str
    hostname: str
    joined_at: datetime
    issued_at: datetime
    ends_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)
    refused_before: datetime | None = None

    def accepts(self, issued_at: datetime) -> bool:
        """Whether a certificate of this age is good."""
        return self.refused_before is None or issued_at >= self.refused_before


@dataclass(frozen=True, slots=True)
class Revocation:
    """That certificates of a host which were issued before then are good no more, whether or not it is forgotten."""

    node_id: str
    refused_before: datetime
