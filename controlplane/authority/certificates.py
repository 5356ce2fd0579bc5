"""Certificates of the cluster: made here, checked by TLS at both ends. Nothing is read or written.

What a host asks for is its key; every name in a certificate is the authority's own choice.

Source: RFC 5280; CA/Browser Forum baseline requirements 7.1 for serials, FIPS 186-5 for the curve.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from limiquantix.rpc.identity import MachineIdentity

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=7)
"""Long enough for a host that is off over a long weekend, short enough that nobody needs lists of revoked ones."""
BACKDATE: Final = timedelta(minutes=5)
"""By how much clocks of machines may differ."""
MAX_REQUEST_BYTES: Final = 16_384
_BOTH_DIRECTIONS: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class AuthorityUnusable(Exception):
    """An authority that was brought along cannot sign; the message says why."""


class RequestRefused(Exception):
    """A request for a certificate is not what it must be; the message says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate_pem: bytes
    key_pem: bytes


class Authority:
    """Signs.

    Args:
        pair: its own certificate and key.

    Raises:
        AuthorityUnusable: they cannot be read, do not belong together, or are none of an authority.
    """

    def __init__(self, pair: Pair) -> None:
        self.certificate_pem = pair.certificate_pem
        try:
            self._certificate = x509.load_pem_x509_certificate(pair.certificate_pem)
            key = serialization.load_pem_private_key(pair.key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise AuthorityUnusable(f"certificate or key cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityUnusable("the key must be of an elliptic curve (ECDSA)")
        if _public_bytes(key.public_key()) != _public_bytes(self._certificate.public_key()):
            raise AuthorityUnusable("the key is not that of the certificate")
        if not _is_authority(self._certificate):
            raise AuthorityUnusable("the certificate may not sign others: basicConstraints CA is not set")
        self._key = key

    @classmethod
    def make(cls, cluster_id: str, now: datetime) -> tuple[Authority, Pair]:
        """Make an authority, and return it with what has to be kept."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "LimiQuantix"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"LimiQuantix cluster {cluster_id}"),
            ]
        )
        certificate = (
            _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pair = Pair(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))
        return cls(pair), pair

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in hexadecimal: what join tokens pin."""
        return fingerprint_of(self.certificate_pem)

    @property
    def begins_at(self) -> datetime:
        """When its own certificate begins."""
        return self._certificate.not_valid_before_utc

    @property
    def ends_at(self) -> datetime:
        """When its own certificate ends."""
        return self._certificate.not_valid_after_utc

    def issue(self, identity: MachineIdentity, now: datetime, names: Sequence[str] = ()) -> Pair:
        """Make a key and a certificate for both directions.

        Args:
            names: host names and IP addresses by which the machine is called, beside those of its identity.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(identity, key.public_key(), now, names)
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))

    def certify(self, identity: MachineIdentity, request_pem: bytes, now: datetime) -> bytes:
        """Return a certificate for the key in a request; all else that the request says is ignored.

        Raises:
            RequestRefused: it is no PKCS #10 request that its own key signed, or the key is of another kind.
        """
        key = key_in(request_pem)
        return self._sign(identity, key, now, ()).public_bytes(serialization.Encoding.PEM)

    def derived_secret(self, purpose: bytes, size_bytes: int) -> bytes:
        """Derive a secret from its key: the same in every control plane, and no way back. Source: RFC 5869."""
        number = self._key.private_numbers().private_value
        material = number.to_bytes((self._key.key_size + 7) // 8, "big")
        return HKDF(hashes.SHA256(), size_bytes, salt=None, info=purpose).derive(material)

    def _sign(
        self, identity: MachineIdentity, key: ec.EllipticCurvePublicKey, now: datetime, names: Sequence[str]
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.role} {identity.id}"[:64])])
        own = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.server_name)]
        lifetime = min(LEAF_LIFETIME, self.ends_at - now)
        return (
            _builder(subject, self._certificate.subject, key, now, lifetime)
            .add_extension(x509.SubjectAlternativeName([*own, *map(general_name, names)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_BOTH_DIRECTIONS), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def fingerprint_of(certificate_pem: bytes) -> str:
    """Return the SHA-256 of a certificate's DER bytes, in hexadecimal; ValueError if it is none."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def issued_at(certificate_pem: bytes) -> datetime:
    """Say when a certificate of ours was signed."""
    return validity_of(certificate_pem)[0]


def validity_of(certificate_pem: bytes) -> tuple[datetime, datetime]:
    """Say when a certificate of ours was signed, and when it ends."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.not_valid_before_utc + BACKDATE, certificate.not_valid_after_utc


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def key_in(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a request for a certificate.

    Raises:
        RequestRefused: it is no PKCS #10 request that its own key signed, or the key is of another kind.
    """
    if len(request_pem) > MAX_REQUEST_BYTES:
        raise RequestRefused(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(request_pem)
        is_signed, key = request.is_signature_valid, request.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise RequestRefused("it is no PKCS #10 request") from error
    if not is_signed:
        raise RequestRefused("its own key did not sign it")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefused("the key must be of the curve P-256")
    return key


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def general_name(name: str) -> x509.GeneralName:
    """Write a host name or IP address as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
