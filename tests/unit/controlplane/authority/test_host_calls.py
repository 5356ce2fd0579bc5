"""Calls of hosts: the table against the contract, and who is recognised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from controlplane.access.methods import METHODS, Audience
from controlplane.authority.certificates import LEAF_LIFETIME, Authority
from controlplane.authority.host_calls import OWN_FIELDS, MachineAuthenticator, OwnWords
from controlplane.authority.machine_memory import UNKNOWN_LOOK_EVERY_S, MachineMemory
from controlplane.domain.machines import MachineRecord
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.state.interface import Store
from limiquantix.compute.v1 import join_service_pb2, node_service_pb2
from limiquantix.errors import ApiError, PermissionDenied, Unauthenticated
from limiquantix.rpc.identity import CERTIFICATE_KEY, NAMES_KEY, MachineIdentity, Role
from tests.support.builders import START_OF_TIME, make_id
from tests.support.databases import fresh_sqlite
from tests.support.slow_store import SlowStore
from tests.support.stores import open_store

CLUSTER = make_id()
NODE = MachineIdentity(CLUSTER, Role.NODE, make_id())
PRINCIPAL = Principal(PrincipalKind.NODE, NODE.id, "host-1")
MODULES = (node_service_pb2, join_service_pb2)
ISSUED = START_OF_TIME + timedelta(days=1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(fresh_sqlite(tmp_path)) as opened:
        yield opened


class Origin:
    """A call over TLS, by whoever these names belong to."""

    def __init__(self, pem: bytes = b"", *names: str) -> None:
        self._context = {CERTIFICATE_KEY: [pem], NAMES_KEY: [name.encode() for name in names]} if pem else {}

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return ()

    def peer(self) -> str:
        return "ipv4:192.0.2.7:1"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._context


# -- the table


def test_every_method_of_hosts_is_in_the_table_with_a_field_of_its_request() -> None:
    assert set(OWN_FIELDS) == {method for method, rule in METHODS.items() if rule.audience is Audience.HOSTS}
    for method, field in OWN_FIELDS.items():
        service, _, name = method.strip("/").partition("/")
        request = Default().FindServiceByName(service).methods_by_name[name].input_type
        names = set(request.fields_by_name)
        assert field in names or field == "", method
        assert field or not names & {"node_id", "hostname", "id", "vm_id"}, f"{method} says whose word it is"


@pytest.mark.parametrize("method", OWN_FIELDS)
async def test_request_that_names_another_host_is_refused_and_ones_own_passes(store: Store, method: str) -> None:
    words, field = OwnWords(store), OWN_FIELDS[method]
    service, _, name = method.strip("/").partition("/")
    kind = GetMessageClass(Default().FindServiceByName(service).methods_by_name[name].input_type)
    own = "host-1" if field == "hostname" else NODE.id
    await words.require_own(PRINCIPAL, method, kind(**{field: own} if field else {}))
    if field:
        for other in (make_id(), "", "host-2"):
            with pytest.raises(PermissionDenied, match=name):
                await words.require_own(PRINCIPAL, method, kind(**{field: other}))
    with pytest.raises(PermissionDenied):
        await words.require_own(Principal(PrincipalKind.USER, NODE.id, "host-1"), method, kind())


async def test_method_that_is_not_for_hosts_is_refused(store: Store) -> None:
    method = "/limiquantix.compute.v1.NodeService/DecommissionNode"
    request = node_service_pb2.DecommissionNodeRequest(id=NODE.id)
    with pytest.raises(PermissionDenied):
        await OwnWords(store).require_own(PRINCIPAL, method, request)


# -- who calls


async def test_host_is_recognised_until_it_is_revoked_or_forgotten_or_its_certificate_ends(store: Store) -> None:
    authority, _ = Authority.make(CLUSTER, START_OF_TIME)
    pem = authority.issue(NODE, ISSUED).certificate_pem
    passed_s = 0.0
    memory = MachineMemory(store, lambda: passed_s)
    now = ISSUED
    authenticator = MachineAuthenticator(CLUSTER, memory, lambda: now)
    origin = Origin(pem, NODE.uri, NODE.server_name)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(origin)

    machine = MachineRecord(NODE.id, "host-1", ISSUED, ISSUED, ISSUED + timedelta(days=7))
    await store.run(lambda tx: tx.put_machine(machine))
    passed_s += UNKNOWN_LOOK_EVERY_S
    found = await authenticator.authenticate(origin)
    assert found is not None
    assert (found.text, found.name, found.origin) == (f"node:{NODE.id}", "host-1", origin.peer())

    await store.run(lambda tx: tx.refuse_certificates(NODE.id, ISSUED))
    await memory.refresh()
    assert await authenticator.authenticate(origin), "issued at that moment, and so after it"
    await store.run(lambda tx: tx.refuse_certificates(NODE.id, ISSUED + timedelta(seconds=1)))
    await memory.refresh()
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(origin)
    newer = authority.issue(NODE, ISSUED + timedelta(seconds=1)).certificate_pem
    assert await authenticator.authenticate(Origin(newer, NODE.uri))

    now = ISSUED + LEAF_LIFETIME + timedelta(seconds=1)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(Origin(newer, NODE.uri))
    now = ISSUED
    await store.run(lambda tx: tx.remove_machine(NODE.id, ISSUED))
    await memory.refresh()
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(Origin(newer, NODE.uri))


async def test_call_without_a_machines_certificate_is_for_others_to_recognise(store: Store) -> None:
    authenticator = MachineAuthenticator(CLUSTER, MachineMemory(store))
    assert await authenticator.authenticate(Origin()) is None


# -- what is remembered


async def test_memory_reads_machines_only_when_they_changed_and_not_for_renewals(store: Store) -> None:
    revision = await store.read(lambda tx: tx.machines_revision())
    machine = MachineRecord(NODE.id, "host-1", ISSUED, ISSUED, ISSUED)
    await store.run(lambda tx: tx.put_machine(machine))
    joined = await store.read(lambda tx: tx.machines_revision())
    assert joined > revision
    await store.run(lambda tx: tx.put_machine(machine))
    assert await store.read(lambda tx: tx.machines_revision()) == joined
    await store.run(lambda tx: tx.refuse_certificates(NODE.id, ISSUED))
    revoked = await store.read(lambda tx: tx.machines_revision())
    assert revoked > joined
    await store.run(lambda tx: tx.remove_machine(NODE.id, ISSUED))
    assert await store.read(lambda tx: tx.machines_revision()) > revoked


async def test_hosts_that_are_known_are_not_turned_away_while_the_database_is_gone(store: Store) -> None:
    machine = MachineRecord(NODE.id, "host-1", ISSUED, ISSUED, ISSUED)
    await store.run(lambda tx: tx.put_machine(machine))
    memory = MachineMemory(store)
    await memory.refresh()
    await store.close()
    with pytest.raises(ApiError):
        await memory.refresh()
    assert await memory.of(NODE.id) == machine
    with pytest.raises(ApiError):
        await memory.of(make_id())


async def test_host_that_is_not_known_is_looked_for_now_and_then_only(store: Store) -> None:
    slow, passed_s = SlowStore(store), 0.0
    memory = MachineMemory(slow, lambda: passed_s)
    for _ in range(100):
        assert await memory.of(NODE.id) is None
    assert slow.read_count == 1

    await store.run(lambda tx: tx.put_machine(MachineRecord(NODE.id, "host-1", ISSUED, ISSUED, ISSUED)))
    await memory.refresh()
    assert await memory.of(NODE.id) is not None


async def test_revocation_that_is_read_while_a_host_is_looked_for_stays(store: Store) -> None:
    """What was read before the revocation must not replace what was read after it."""
    await store.run(lambda tx: tx.put_machine(MachineRecord(NODE.id, "host-1", ISSUED, ISSUED, ISSUED)))
    slow, held = SlowStore(store), asyncio.Event()
    memory, slow.held = MachineMemory(slow), held
    looking = asyncio.create_task(memory.of(NODE.id))
    await asyncio.wait_for(slow.has_read.wait(), 30)
    await store.run(lambda tx: tx.refuse_certificates(NODE.id, ISSUED + timedelta(seconds=1)))
    slow.held = None
    await memory.refresh()
    held.set()

    for found in (await looking, await memory.of(NODE.id)):
        assert found is not None
        assert not found.accepts(ISSUED)
