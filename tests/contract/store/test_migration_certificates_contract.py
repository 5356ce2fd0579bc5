"""Hosts get certificates for moving VMs, for their own address only; on every database."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from controlplane.authority.cluster import open_cluster
from controlplane.authority.joining import JoiningService
from controlplane.authority.machine_memory import MachineMemory
from controlplane.authority.migration_authority import SLOT, MigrationAuthority
from controlplane.authority.migration_certificates import ENDED_FOR, MigrationCertificate, MigrationCertificates
from controlplane.domain.node import CapacityPolicy
from controlplane.secrets.box import SecretBox
from controlplane.services.nodes import NodeService
from controlplane.state.interface import Store
from limiquantix import join_token
from limiquantix.compute.v1.node_pb2 import NetworkDevice, NetworkDeviceConfig
from limiquantix.errors import AlreadyExists, InvalidArgument, NotFound, Unauthenticated, Unavailable
from nodedaemon.identity.requests import new_request
from tests.support.builders import START_OF_TIME, make_id
from tests.support.control_plane_world import register_request

_, REQUEST = new_request()


class Site:
    """A control plane, whose clock is told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = START_OF_TIME

    async def open(self) -> None:
        cluster = await open_cluster(self.store, SecretBox([bytes(32)]), self.now)
        self.joining = JoiningService(self.store, cluster, ("cp-1:8081",), lambda: self.now)
        self.certificates = MigrationCertificates(self.store, MigrationAuthority(cluster), lambda: self.now)
        self.nodes = NodeService(self.store, CapacityPolicy(), lambda: self.now)
        self.known = MachineMemory(self.store)

    async def join(self, hostname: str) -> str:
        text, _ = await self.joining.create_token("user:eve")
        token = join_token.decode(text.encode())
        return (await self.joining.join(token.id, token.secret, hostname, REQUEST)).node_id

    async def register(self, node_id: str, hostname: str, ip: str, migration: str = "", card: str = "") -> None:
        request = register_request(hostname, management_ip=ip, migration_address=migration)
        if card:
            request.network_devices.append(NetworkDevice(name="eth1", config=NetworkDeviceConfig(ip_addresses=[card])))
        await self.nodes.register(request, node_id)

    async def host(self, hostname: str, ip: str, migration: str = "", card: str = "") -> str:
        node_id = await self.join(hostname)
        await self.register(node_id, hostname, ip, migration, card)
        return node_id

    async def issue(self, node_id: str) -> MigrationCertificate:
        return await self.certificates.issue(node_id, REQUEST)

    async def told_that_it_is_refused(self, held: x509.Certificate, other: str) -> MigrationCertificate:
        """Have another host ask, and check that it hears of a certificate that is good no more since this moment."""
        told = await self.issue(other)
        await self.known.refresh()
        assert told.newest_revocation == self.known.newest_revocation == self.now
        (name,) = held.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert told.revoked_at == {name.value: self.now}
        listed = x509.load_pem_x509_crl(told.revocation_list_pem)
        assert listed.get_revoked_certificate_by_serial_number(held.serial_number) is not None
        return told

    async def names(self, node_id: str) -> set[str]:
        leaf = x509.load_pem_x509_certificate((await self.issue(node_id)).certificate_pem)
        return {str(n.value) for n in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


@pytest.fixture
async def site(store: Store) -> Site:
    made = Site(store)
    await made.open()
    return made


async def test_names_are_what_the_host_joined_as_and_registered_with(site: Site) -> None:
    first = await site.host("host-1", "192.0.2.1")
    second = await site.host("host-2", "192.0.2.2", migration="2001:db8::2")

    assert await site.names(first) == {"host-1", "192.0.2.1"}
    assert await site.names(second) == {"host-2", "2001:db8::2"}
    assert (await site.issue(first)).authority_pem == (await site.issue(second)).authority_pem


@pytest.mark.parametrize("wanted", ["192.0.2.1", "HOST-1", "198.51.100.1", "10.9.9.9"])
async def test_address_of_another_host_is_not_given_away(site: Site, wanted: str) -> None:
    await site.host("host-1", "192.0.2.1", migration="198.51.100.1", card="10.9.9.9")
    thief = await site.host("host-2", "192.0.2.2", migration=wanted)

    with pytest.raises(AlreadyExists, match="host-1"):
        await site.issue(thief)


async def test_host_that_moves_vms_by_its_name_is_not_kept_from_it(site: Site) -> None:
    first = await site.host("host-1", "192.0.2.1", migration="host-1")
    await site.host("host-2", "192.0.2.2", migration="host-1")

    assert await site.names(first) == {"host-1"}


async def test_host_that_is_not_registered_or_not_joined_gets_none(site: Site) -> None:
    with pytest.raises(NotFound, match="did not register yet"):
        await site.issue(await site.join("host-1"))
    with pytest.raises(Unauthenticated):
        await site.issue(make_id())


async def test_what_is_no_request_is_refused(site: Site) -> None:
    node_id = await site.host("host-1", "192.0.2.1")

    with pytest.raises(InvalidArgument):
        await site.certificates.issue(node_id, b"nothing")


async def test_revoked_host_is_listed_to_all_and_gets_another_after_seconds(site: Site) -> None:
    doomed, other = await site.host("host-1", "192.0.2.1"), await site.host("host-2", "192.0.2.2")
    held = x509.load_pem_x509_certificate((await site.issue(doomed)).certificate_pem)
    assert (await site.issue(other)).newest_revocation is None
    await site.known.refresh()
    assert site.known.newest_revocation is None

    site.now += timedelta(minutes=5)
    await site.joining.revoke_certificate(doomed)

    told = await site.told_that_it_is_refused(held, other)
    listed = x509.load_pem_x509_crl(told.revocation_list_pem)
    good = x509.load_pem_x509_certificate(told.certificate_pem)
    assert listed.get_revoked_certificate_by_serial_number(good.serial_number) is None
    with pytest.raises(Unavailable, match=r"in [0-9]+ s"):
        await site.issue(doomed)
    site.now += 2 * SLOT
    again = x509.load_pem_x509_certificate((await site.issue(doomed)).certificate_pem)
    listed = x509.load_pem_x509_crl((await site.issue(other)).revocation_list_pem)
    assert listed.get_revoked_certificate_by_serial_number(again.serial_number) is None
    assert listed.get_revoked_certificate_by_serial_number(held.serial_number) is not None


async def test_host_that_was_forgotten_is_listed_to_all(site: Site) -> None:
    doomed, other = await site.host("host-1", "192.0.2.1"), await site.host("host-2", "192.0.2.2")
    held = x509.load_pem_x509_certificate((await site.issue(doomed)).certificate_pem)
    assert (await site.issue(other)).newest_revocation is None

    site.now += timedelta(minutes=5)
    assert await site.store.run(lambda tx: tx.remove_machine(doomed, site.now))

    await site.told_that_it_is_refused(held, other)
    with pytest.raises(Unauthenticated):
        await site.issue(doomed)
    site.now += ENDED_FOR
    assert (await site.issue(other)).revoked_at == {}
