"""The authority by which hypervisors of the cluster's hosts know each other when VMs move between them.

It is one of its own, and issues nothing else. So neither libvirt nor QEMU needs a list of names, and cannot be shown
what is good elsewhere: a daemon's certificate opens no hypervisor. Nor the reverse: what QEMU's user can read opens no
port of ours, and is nobody's to browsers, also where a control plane has the same address.

Its key is derived from that of the cluster's authority, and the cluster's id: every control plane has it, nothing is
stored, and two clusters under one authority of their operator's do not let in each other's hosts.

A revoked host is named in a list (CRL) by the numbers of its certificates. Those are computed from node and time, so
that the list can be made without having kept what was issued. RFC 5280 wants each number once; here a host that asks
twice within `SLOT` gets it twice, both times for itself, and nobody but GnuTLS, which looks numbers up, reads them.

Source: RFC 5280; FIPS 186-5, A.2.1 for the key, RFC 6979 for signatures that are the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.authority.certificates import BACKDATE, general_name, key_in
from controlplane.authority.cluster import Cluster
from controlplane.domain.machines import MachineRecord, Revocation

LIFETIME: Final = timedelta(minutes=30)
"""VMs move only while a control plane is there to say so, and then it can issue new ones, too."""
SLOT: Final = timedelta(seconds=10)
"""A revoked host is in the list with `LIFETIME` / `SLOT` numbers."""
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_KEY_BYTES: Final = 40
"""64 bits more than the order has, so that no key is likelier than another."""
_MARGIN_COUNT: Final = 1
"""Slots after a revocation that are refused too, for control planes whose clocks differ."""


class MigrationAuthority:
    """Signs certificates of hypervisors, and the list of those that are good no more."""

    def __init__(self, cluster: Cluster) -> None:
        authority = cluster.authority
        secret = authority.derived_secret(f"limiquantix migration authority {cluster.id}".encode(), _KEY_BYTES)
        self._key = ec.derive_private_key(int.from_bytes(secret, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "LimiQuantix"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Hosts of cluster {cluster.id}"),
            ]
        )
        self._ends_at = authority.ends_at
        certificate = (
            x509.CertificateBuilder(self._name, self._name, self._key.public_key(), _number(cluster.id, 0))
            .not_valid_before(authority.begins_at)
            .not_valid_after(authority.ends_at)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)

    def certify(self, node_id: str, names: Sequence[str], request_pem: bytes, now: datetime) -> bytes:
        """Return a certificate for the key in a request; all else that the request says is ignored.

        Args:
            names: host names and IP addresses by which other hosts call this one.

        Raises:
            RequestRefused: it is no PKCS #10 request that its own key signed, or the key is of another kind.
        """
        key = key_in(request_pem)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "LimiQuantix"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name(node_id)),
            ]
        )
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            x509.CertificateBuilder(self._name, subject, key, _number(node_id, _slot(now)))
            .not_valid_before(max(now - BACKDATE, datetime.fromtimestamp(0, UTC)))
            .not_valid_after(min(now + LIFETIME, self._ends_at))
            .add_extension(x509.SubjectAlternativeName(map(general_name, names)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def revocation_list(self, revocations: Iterable[Revocation], now: datetime) -> bytes:
        """Sign the list of certificates that must not be let in: what has not ended by itself of what was revoked.

        It names no end of its own but the authority's: old ones are replaced, and one that ended would keep all out.
        """
        revoked = [
            (_number(each.node_id, slot), each.refused_before)
            for each in revocations
            if now < each.refused_before + LIFETIME + 2 * SLOT
            for slot in range(_slot(each.refused_before - LIFETIME), _slot(each.refused_before) + _MARGIN_COUNT + 1)
        ]
        return (
            x509.CertificateRevocationListBuilder(
                self._name,
                now - BACKDATE,
                self._ends_at,
                revoked_certificates=[
                    x509.RevokedCertificateBuilder(number, at.replace(microsecond=0)).build() for number, at in revoked
                ],
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def common_name(node_id: str) -> str:
    """Return what certificates of a host's hypervisor call it."""
    return f"hypervisor of node {node_id}"


def wait_s(machine: MachineRecord, now: datetime) -> float:
    """Say how long no certificate of a machine can be told from those that were revoked; 0 mostly."""
    if machine.refused_before is None:
        return 0.0
    next_slot = _slot(machine.refused_before) + _MARGIN_COUNT + 1
    return max(0.0, next_slot * SLOT.total_seconds() - now.timestamp())


def _slot(at: datetime) -> int:
    return int(at.timestamp() // SLOT.total_seconds())


def _number(who: str, slot: int) -> int:
    """Return a serial number: positive, at most 16 bytes."""
    digest = hashlib.sha256(f"limiquantix migration certificate {who} {slot}".encode()).digest()
    return int.from_bytes(digest[:16], "big") >> 1 or 1


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    """Return what the key is for. libvirt and QEMU ask for `key_encipherment`, of which such a key has no use."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_encipherment=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
