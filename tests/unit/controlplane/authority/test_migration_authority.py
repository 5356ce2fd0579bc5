"""What the authority of hypervisors signs, and whom it lists as revoked; libvirt is asked in tests/integration."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from controlplane.authority.certificates import Authority, RequestRefused
from controlplane.authority.cluster import Cluster
from controlplane.authority.migration_authority import LIFETIME, SLOT, MigrationAuthority, wait_s
from controlplane.domain.machines import MachineRecord, Revocation
from nodedaemon.identity.requests import new_request

NOW = datetime(2026, 5, 4, 12, 0, 3, 500_000, tzinfo=UTC)
NODE, OTHER = str(uuid.UUID(int=9)), str(uuid.UUID(int=10))
AUTHORITY, _ = Authority.make(str(uuid.UUID(int=7)), NOW)
CLUSTER = Cluster(str(uuid.UUID(int=7)), AUTHORITY)
MIGRATION = MigrationAuthority(CLUSTER)
REQUEST = new_request()[1]


def issued(at: datetime = NOW, node_id: str = NODE) -> x509.Certificate:
    pem = MIGRATION.certify(node_id, ["host-1", "192.0.2.7", "2001:db8::1"], REQUEST, at)
    return x509.load_pem_x509_certificate(pem)


def machine(revoked_at: datetime | None, node_id: str = NODE) -> MachineRecord:
    return MachineRecord(node_id, "host-1", NOW, NOW, NOW, refused_before=revoked_at)


def revoked_numbers(machines: Sequence[MachineRecord], at: datetime) -> set[int]:
    revoked = [Revocation(each.node_id, each.refused_before) for each in machines if each.refused_before is not None]
    found = x509.load_pem_x509_crl(MIGRATION.revocation_list(revoked, at))
    ca = x509.load_pem_x509_certificate(MIGRATION.certificate_pem)
    assert found.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert found.next_update_utc == ca.not_valid_after_utc
    return {each.serial_number for each in found}


def test_certificate_names_the_host_and_serves_both_directions() -> None:
    leaf = issued()

    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(MIGRATION.certificate_pem))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"host-1", "192.0.2.7", "2001:db8::1"}
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert NODE in leaf.subject.rfc4514_string()
    assert leaf.not_valid_after_utc == (NOW + LIFETIME).replace(microsecond=0)


def test_authority_is_the_same_everywhere_and_another_in_each_cluster() -> None:
    other = MigrationAuthority(Cluster(str(uuid.UUID(int=8)), AUTHORITY))

    assert MigrationAuthority(CLUSTER).certificate_pem == MIGRATION.certificate_pem
    with pytest.raises((InvalidSignature, ValueError)):
        issued().verify_directly_issued_by(x509.load_pem_x509_certificate(other.certificate_pem))


def test_neither_authority_vouches_for_what_the_other_issued() -> None:
    daemon = x509.load_pem_x509_certificate(AUTHORITY.issue(CLUSTER.node(NODE), NOW).certificate_pem)
    ours = x509.load_pem_x509_certificate(AUTHORITY.certificate_pem)
    hypervisors = x509.load_pem_x509_certificate(MIGRATION.certificate_pem)

    assert ours.public_key() != hypervisors.public_key()
    for leaf, ca in ((daemon, hypervisors), (issued(), ours)):
        with pytest.raises((InvalidSignature, ValueError)):
            leaf.verify_directly_issued_by(ca)


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(RequestRefused):
        MIGRATION.certify(NODE, ["host-1"], b"nothing", NOW)


@given(age_s=st.floats(0, LIFETIME.total_seconds()), look_s=st.floats(0, LIFETIME.total_seconds()))
def test_everything_that_a_revoked_host_holds_is_listed_until_it_ends(age_s: float, look_s: float) -> None:
    leaf = issued(NOW - timedelta(seconds=age_s))
    at = NOW + timedelta(seconds=look_s)

    if leaf.not_valid_after_utc > at:
        assert leaf.serial_number in revoked_numbers([machine(NOW)], at)


def test_others_and_nobody_for_ever_are_listed() -> None:
    assert issued(node_id=OTHER).serial_number not in revoked_numbers([machine(NOW), machine(None, OTHER)], NOW)
    assert revoked_numbers([machine(NOW)], NOW + LIFETIME + 3 * SLOT) == set()
    assert len(revoked_numbers([machine(NOW)], NOW)) <= LIFETIME / SLOT + 3


@given(after_s=st.floats(0, 60))
def test_what_is_issued_after_the_wait_is_good(after_s: float) -> None:
    revoked = machine(NOW)
    at = NOW + timedelta(seconds=after_s)
    is_listed = issued(at).serial_number in revoked_numbers([revoked], at)

    assert is_listed == (wait_s(revoked, at) > 0)
    assert wait_s(revoked, at) <= 2 * SLOT.total_seconds()
    assert wait_s(machine(None), at) == 0
