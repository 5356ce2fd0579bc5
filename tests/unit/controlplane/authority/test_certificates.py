"""What the authority signs, and what it refuses; TLS itself is tried in tests/integration."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.authority.certificates import (
    BACKDATE,
    LEAF_LIFETIME,
    MAX_REQUEST_BYTES,
    Authority,
    AuthorityUnusable,
    Pair,
    RequestRefused,
    fingerprint_of,
    issued_at,
)
from limiquantix.rpc.identity import MachineIdentity, Role

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
CLUSTER = str(uuid.UUID(int=7))
NODE = MachineIdentity(CLUSTER, Role.NODE, str(uuid.UUID(int=9)))
PLANE = MachineIdentity(CLUSTER, Role.CONTROL_PLANE, "cp-1")
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def made() -> tuple[Authority, Pair]:
    return Authority.make(CLUSTER, NOW)


@pytest.fixture(scope="module")
def authority(made: tuple[Authority, Pair]) -> Authority:
    return made[0]


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, name: str = "root", ca: bool = False) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(PLANE.uri)]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


def names_in(pem: bytes) -> set[str]:
    found = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_authority_signs_leaves_and_no_other_authority(authority: Authority) -> None:
    own = x509.load_pem_x509_certificate(authority.certificate_pem)
    basic = own.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert own.not_valid_after_utc - NOW > timedelta(days=3600)
    assert len(authority.fingerprint) == 64
    assert authority.fingerprint == fingerprint_of(authority.certificate_pem)


def test_certificate_says_which_machine_it_is_for_and_is_good_in_both_directions(authority: Authority) -> None:
    pair = authority.issue(PLANE, NOW, ["cp-1.example", "192.0.2.7", "[2001:db8::1]"])
    leaf = x509.load_pem_x509_certificate(pair.certificate_pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))
    assert names_in(pair.certificate_pem) == {
        *(PLANE.uri, "controlplane.limiquantix.internal", "cp-1.example", "192.0.2.7", "2001:db8::1")
    }
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW - BACKDATE, NOW + LEAF_LIFETIME)
    assert issued_at(pair.certificate_pem) == NOW
    key = serialization.load_pem_private_key(pair.key_pem, None)
    assert key.public_key() == leaf.public_key()


def test_request_gives_its_key_and_nothing_else(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.certify(NODE, request_of(key, name="controlplane cp-1", ca=True), NOW)
    leaf = x509.load_pem_x509_certificate(pem)
    assert leaf.public_key() == key.public_key()
    assert names_in(pem) == {NODE.uri, f"{NODE.id}.node.limiquantix.internal"}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.subject.rfc4514_string() == f"CN=node {NODE.id}"


def test_no_two_certificates_have_one_serial(authority: Authority) -> None:
    pems = [authority.issue(NODE, NOW).certificate_pem for _ in range(20)]
    assert len({x509.load_pem_x509_certificate(pem).serial_number for pem in pems}) == 20


@pytest.mark.parametrize(
    ("request_pem", "words"),
    [
        (b"", "no PKCS #10 request"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "no PKCS #10 request"),
        (b"x" * (MAX_REQUEST_BYTES + 1), "at most"),
        (request_of(ec.generate_private_key(ec.SECP384R1())), "curve P-256"),
        (request_of(rsa.generate_private_key(65537, 2048)), "curve P-256"),
    ],
    ids=["empty", "rubbish", "long", "other curve", "rsa"],
)
def test_what_is_no_request_of_a_good_key_is_refused(authority: Authority, request_pem: bytes, words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        authority.certify(NODE, request_pem, NOW)


def test_request_that_its_key_did_not_sign_is_refused(authority: Authority) -> None:
    request = x509.load_pem_x509_csr(request_of(ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    try:
        forged = x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)
    except ValueError:
        pytest.fail("the last byte is of the signature, whose form is left as it was")
    with pytest.raises(RequestRefused, match=r"did not sign it|no PKCS"):
        authority.certify(NODE, forged, NOW)


def test_certificate_does_not_outlive_its_authority(authority: Authority) -> None:
    late = authority.ends_at - timedelta(days=2)
    leaf = x509.load_pem_x509_certificate(authority.issue(NODE, late).certificate_pem)
    assert leaf.not_valid_after_utc == authority.ends_at


def test_authority_that_was_brought_along_must_be_one(made: tuple[Authority, Pair]) -> None:
    authority, pair = made
    assert Authority(pair).fingerprint == authority.fingerprint
    leaf = authority.issue(NODE, NOW)
    with pytest.raises(AuthorityUnusable, match="may not sign"):
        Authority(leaf)
    with pytest.raises(AuthorityUnusable, match="not that of the certificate"):
        Authority(Pair(pair.certificate_pem, leaf.key_pem))
    with pytest.raises(AuthorityUnusable, match="cannot be read"):
        Authority(Pair(b"nothing", pair.key_pem))
    rsa_pem = rsa.generate_private_key(65537, 2048).private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(AuthorityUnusable, match="elliptic curve"):
        Authority(Pair(pair.certificate_pem, rsa_pem))
