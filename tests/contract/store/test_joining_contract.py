"""Hosts join with a token that is good once, renew what they got, and lose it; on every database."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.authority.certificates import Authority, AuthorityUnusable, fingerprint_of, issued_at
from controlplane.authority.cluster import Cluster, open_cluster
from controlplane.authority.joining import JoiningService
from controlplane.secrets.box import SecretBox, SecretUnreadable
from controlplane.state.interface import Store
from limiquantix import join_token
from limiquantix.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Reason, Unauthenticated
from limiquantix.join_token import JoinTokenText
from tests.support.builders import START_OF_TIME, make_id, make_node
from tests.support.stores import add

BOX = SecretBox([bytes(32)])
NOW = START_OF_TIME.replace(microsecond=500_000)


def certificate_request() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


class Site:
    """A control plane's part in joining, whose clock is told."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self.now = NOW
        self.store = store
        self.service = JoiningService(store, cluster, ("cp-1:8081",), lambda: self.now)

    async def token(self, **fields: str) -> JoinTokenText:
        text, _ = await self.service.create_token("user:eve", **fields)  # type: ignore[arg-type]
        return join_token.decode(text.encode())

    async def join(self, token: JoinTokenText, hostname: str = "host-1", secret: str = "") -> str:
        joined = await self.service.join(token.id, secret or token.secret, hostname, certificate_request())
        return joined.node_id

    async def accepts(self, node_id: str, issued: datetime) -> bool:
        machine = await self.store.read(lambda tx: tx.get_machine(node_id))
        return machine is not None and machine.accepts(issued)


@pytest.fixture
async def site(store: Store) -> Site:
    return Site(store, await open_cluster(store, BOX, NOW))


# -- the authority


async def test_control_planes_that_begin_at_once_have_one_authority(store: Store) -> None:
    clusters = await asyncio.gather(*(open_cluster(store, BOX, NOW) for _ in range(4)))
    assert len({(each.id, each.authority.fingerprint) for each in clusters}) == 1
    again = await open_cluster(store, BOX, NOW)
    assert (again.id, again.authority.fingerprint) == (clusters[0].id, clusters[0].authority.fingerprint)


async def test_key_is_sealed_and_sealed_anew_when_secret_keys_change(store: Store) -> None:
    cluster = await open_cluster(store, BOX, NOW)
    stored = await store.read(lambda tx: tx.authority())
    assert stored is not None
    assert b"PRIVATE KEY" not in stored.sealed_key
    with pytest.raises(SecretUnreadable):
        await open_cluster(store, SecretBox([bytes([1] * 32)]), NOW)
    both = SecretBox([bytes([1] * 32), bytes(32)])
    assert (await open_cluster(store, both, NOW)).authority.fingerprint == cluster.authority.fingerprint
    alone = SecretBox([bytes([1] * 32)])
    assert (await open_cluster(store, alone, NOW)).authority.fingerprint == cluster.authority.fingerprint


async def test_authority_of_the_operator_is_taken_at_first_and_not_exchanged(store: Store) -> None:
    _, own = Authority.make(make_id(), NOW)
    _, other = Authority.make(make_id(), NOW)
    cluster = await open_cluster(store, BOX, NOW, own)
    assert cluster.authority.fingerprint == fingerprint_of(own.certificate_pem)
    assert (await open_cluster(store, BOX, NOW, own)).id == cluster.id
    with pytest.raises(AuthorityUnusable, match="has an authority already"):
        await open_cluster(store, BOX, NOW, other)


# -- joining


async def test_host_joins_and_its_certificate_says_so(site: Site) -> None:
    token = await site.token()
    assert token.addresses == ("cp-1:8081",)
    authority = x509.load_der_x509_certificate(token.authority_der)
    joined = await site.service.join(token.id, token.secret, "host-1", certificate_request())
    leaf = x509.load_pem_x509_certificate(joined.certificate_pem)
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert site.service.cluster.node(joined.node_id).uri in names.get_values_for_type(x509.UniformResourceIdentifier)
    (kept,) = await site.service.list_tokens()
    assert (kept.used_by, kept.used_at, kept.created_by) == (joined.node_id, NOW, "user:eve")
    assert token.secret not in repr(kept)


async def test_token_lets_in_one_of_many_that_come_at_once(site: Site) -> None:
    token = await site.token()
    joined = await asyncio.gather(*(site.join(token, f"host-{number}") for number in range(6)), return_exceptions=True)
    assert sum(isinstance(each, str) for each in joined) == 1
    refused = [each for each in joined if not isinstance(each, str)]
    assert all(isinstance(each, PermissionDenied) for each in refused), refused
    assert len(await site.store.read(lambda tx: tx.machines())) == 1


@pytest.mark.parametrize("fault", ["unknown", "secret", "used", "revoked", "expired", "future", "hostname"])
async def test_whatever_is_wrong_with_a_token_gets_one_answer(site: Site, fault: str) -> None:
    token = await site.token(hostname="host-9" if fault == "hostname" else "")
    match fault:
        case "unknown":
            token = replace(token, id=str(uuid.uuid4()))
        case "used":
            await site.join(token, "host-2")
        case "revoked":
            await site.service.revoke_token(token.id)
        case "expired":
            site.now += timedelta(hours=1)
        case "future":
            site.now -= timedelta(seconds=1)
    with pytest.raises(PermissionDenied) as refused:
        await site.join(token, secret="x" * 43 if fault == "secret" else "")
    assert refused.value.reason == Reason.JOIN_REFUSED
    assert refused.value.message.startswith("the join token is not good")
    assert refused.value.metadata == {}
    if fault not in ("used",):
        assert await site.store.read(lambda tx: tx.machines()) == []


async def test_request_that_cannot_be_signed_does_not_use_the_token_up(site: Site) -> None:
    token = await site.token()
    with pytest.raises(InvalidArgument, match="certificate_request"):
        await site.service.join(token.id, token.secret, "host-1", b"rubbish")
    assert await site.join(token)


async def test_name_of_another_host_cannot_be_taken(site: Site) -> None:
    await site.join(await site.token())
    token = await site.token()
    with pytest.raises(AlreadyExists, match="host-1 joined already"):
        await site.join(token)
    assert await site.join(token, "host-2")


async def test_node_that_was_there_before_certificates_joins_by_a_token_of_its_own(site: Site) -> None:
    node = make_node(hostname="host-1")
    await add(site.store, node)
    token = await site.token()
    with pytest.raises(AlreadyExists, match="--node host-1"):
        await site.join(token)
    assert await site.join(await site.token(node_id=node.id)) == node.id


async def test_labels_of_the_token_are_kept_for_the_node_also_when_its_host_joins_again(site: Site) -> None:
    text, _ = await site.service.create_token("user:eve", hostname="Host-1", labels={"zone": "a"})
    node_id = await site.join(text)
    await site.join(await site.token(node_id=node_id))
    machine = await site.store.read(lambda tx: tx.get_machine(node_id))
    assert machine is not None
    assert machine.labels == {"zone": "a"}


async def test_unknown_and_used_tokens_cannot_be_revoked(site: Site) -> None:
    token = await site.token()
    await site.join(token)
    for token_id in (token.id, make_id()):
        with pytest.raises(NotFound):
            await site.service.revoke_token(token_id)


# -- afterwards


async def test_revoked_host_joins_again_as_the_node_that_it_was(site: Site) -> None:
    node_id = await site.join(await site.token())
    old = await site.service.renew(node_id, certificate_request())
    assert await site.accepts(node_id, issued_at(old))

    site.now += timedelta(milliseconds=100)
    await site.service.revoke_certificate(node_id)
    assert not await site.accepts(node_id, issued_at(old))

    token = await site.token(node_id=node_id)
    with pytest.raises(PermissionDenied):
        await site.join(token, "host-2")
    joined = await site.service.join(token.id, token.secret, "host-1", certificate_request())
    assert joined.node_id == node_id
    assert await site.accepts(node_id, issued_at(joined.certificate_pem)), "within the second of the revocation"
    assert not await site.accepts(node_id, issued_at(old))


async def test_host_that_was_forgotten_comes_back_as_itself_without_its_old_certificates(site: Site) -> None:
    node_id = await site.join(await site.token())
    old = await site.service.renew(node_id, certificate_request())
    token = await site.token(node_id=node_id)

    site.now += timedelta(milliseconds=100)
    await site.store.run(lambda tx: tx.remove_machine(node_id, site.now))
    assert not await site.accepts(node_id, issued_at(old))

    joined = await site.service.join(token.id, token.secret, "host-1", certificate_request())
    assert joined.node_id == node_id
    assert await site.accepts(node_id, issued_at(joined.certificate_pem)), "within the second of the departure"
    assert not await site.accepts(node_id, issued_at(old))


async def test_who_never_joined_has_nothing_to_lose_or_renew(site: Site) -> None:
    with pytest.raises(NotFound):
        await site.service.revoke_certificate(make_id())
    with pytest.raises(NotFound):
        await site.token(node_id=make_id())
    with pytest.raises(Unauthenticated) as refused:
        await site.service.renew(make_id(), certificate_request())
    assert refused.value.reason == Reason.CERTIFICATE_REFUSED
