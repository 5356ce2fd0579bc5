"""Secrets at rest on every kind of database: sealed, opened, sealed anew, and nowhere to be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from controlplane.domain.operation import Operation, StepRecord
from controlplane.domain.request_digest import digest_of, is_same_request
from controlplane.domain.vm import Vm
from controlplane.secrets.box import SecretUnreadable
from controlplane.secrets.keyring import ACTIVE_AFTER_S, Keyring, seal_everything
from controlplane.secrets.settings import SecretSettings
from controlplane.secrets.wrapping import KeysUnusable
from controlplane.state.factory import create_store, migration_engine
from controlplane.state.interface import Store
from controlplane.state.schema import operations, vms
from controlplane.state.schema_security import secrets
from controlplane.state.seals import Seals, is_sealed
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.compute.v1.vm_service_pb2 import SetGuestPasswordRequest
from tests.support.builders import START_OF_TIME, make_id, make_vm
from tests.support.control_plane_world import FakeClock
from tests.support.stores import PATIENT, add, open_store, vm_in

CANARY = "canary-4711-hush"


@asynccontextmanager
async def sealed_store(
    url: str, key_file: Path, clock: FakeClock | None = None
) -> AsyncIterator[tuple[Store, Keyring]]:
    keyring = Keyring(SecretSettings(key_file=key_file), clock or (lambda: datetime.now(UTC)))
    store = create_store(url, PATIENT, Seals(keyring.box))
    await store.open()
    try:
        await keyring.unlock(store)
        yield store, keyring
    finally:
        await store.close()


def secret_vm() -> Vm:
    spec = VmSpec()
    spec.display.password = CANARY[:8]
    spec.provisioning.cloud_init.user_data = f"#cloud-config\npassword: {CANARY}"
    vm = make_vm(spec=spec)
    vm.details.snapshots.snapshots.add(id=make_id(), name="s").spec.CopyFrom(spec)
    return vm


def secret_operation() -> Operation:
    return Operation(
        id=make_id(),
        kind="vm.update",
        resource_type="vm",
        resource_id=make_id(),
        project_id="p",
        principal="user:ann",
        created_at=START_OF_TIME,
        steps=(StepRecord("do"),),
        parameters={"request": {"spec": {"user_data": CANARY}}},
        request_id=make_id(),
        request_digest=digest_of("SetGuestPassword", PASSWORD_REQUEST),
    )


PASSWORD_REQUEST = SetGuestPasswordRequest(vm_id="v", user="root", password=CANARY)
PLAIN_DIGEST = digest_of("SetGuestPassword", PASSWORD_REQUEST).removeprefix("secret:")
"""With which anybody who reads the database could try passwords."""


def stored(url: str) -> bytes:
    """What the database holds of VMs, operations and secrets, as it lies there."""
    engine = migration_engine(url)
    try:
        with engine.connect() as connection:
            rows = [
                *connection.execute(select(vms.c.spec, vms.c.details)),
                *connection.execute(select(operations.c.parameters, operations.c.request_digest)),
                *connection.execute(select(secrets.c.sealed)),
            ]
            return b"\n".join(
                bytes(each) if isinstance(each, bytes) else repr(each).encode() for r in rows for each in r
            )
    finally:
        engine.dispose()


def contents_of(directory: Path) -> list[bytes]:
    """Bytes of each of SQLite's files."""
    return [path.read_bytes() for path in directory.glob("*.db*")]


async def test_secrets_are_sealed_and_come_back_as_they_were(url: str, tmp_path: Path) -> None:
    vm, operation = secret_vm(), secret_operation()
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await add(store, vm)
        await store.run(lambda tx: tx.insert_operation(operation))
        read = await vm_in(store, vm.id)
        assert read is not None
        assert (read.spec, read.details) == (vm.spec, vm.details)
        changed = await store.run(lambda tx: tx.update_vm(replace(read, description="new")))
        assert (await store.read(lambda tx: tx.vms_on_node(""))) == []
        assert changed.spec == vm.spec
        found = await store.read(lambda tx: tx.get_operation(operation.id))
        assert found == operation
    assert CANARY[:8].encode() not in stored(url)
    async with sealed_store(url, tmp_path / "key") as (store, _):
        again = await vm_in(store, vm.id)
        assert again is not None
        assert again.spec == vm.spec


async def test_nothing_of_a_secret_is_in_the_files_of_sqlite(url: str, tmp_path: Path) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("PostgreSQL's files are its own; what its rows hold is looked at above")
    async with sealed_store(url, tmp_path / "key") as (store, _):
        for _ in range(20):
            await add(store, secret_vm())
            await store.run(lambda tx: tx.insert_operation(secret_operation()))
        contents = contents_of(tmp_path)
        assert len(contents) >= 2, "its write-ahead log too"
        assert not [each for each in contents if CANARY.encode() in each]


async def test_digest_of_a_secret_is_sealed_and_still_tells_a_repeated_request(url: str, tmp_path: Path) -> None:
    operation = secret_operation()
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await store.run(lambda tx: tx.insert_operation(operation))
        found = await store.read(lambda tx: tx.operation_of_request("user:ann", operation.request_id))
    assert found is not None
    assert found.request_digest == operation.request_digest
    assert is_same_request(found.request_digest, digest_of("SetGuestPassword", PASSWORD_REQUEST))
    assert PLAIN_DIGEST.encode() not in stored(url)
    other = SetGuestPasswordRequest(vm_id="v", user="root", password="another")
    assert not is_same_request(found.request_digest, digest_of("SetGuestPassword", other))


async def test_digests_of_older_versions_still_tell_a_repeated_request(url: str, tmp_path: Path) -> None:
    async with sealed_store(url, tmp_path / "key") as (store, _):
        older = replace(secret_operation(), request_digest=PLAIN_DIGEST)
        await store.run(lambda tx: tx.insert_operation(older))
        found = await store.read(lambda tx: tx.operation_of_request("user:ann", older.request_id))
    assert found is not None
    assert is_same_request(found.request_digest, digest_of("SetGuestPassword", PASSWORD_REQUEST))


async def test_vm_without_secrets_is_stored_as_it_is(url: str, tmp_path: Path) -> None:
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await add(store, make_vm())
    engine = migration_engine(url)
    with engine.connect() as connection:
        assert not is_sealed(bytes(connection.execute(select(vms.c.spec)).scalar_one()))
    engine.dispose()


async def test_what_was_stored_before_is_sealed_at_start_and_once(url: str, tmp_path: Path) -> None:
    vm, operation = secret_vm(), secret_operation()
    async with open_store(url) as plain:
        await add(plain, vm, make_vm())
        await plain.run(lambda tx: tx.insert_operation(operation))
    assert CANARY.encode() in stored(url)
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await seal_everything(store)
        once = stored(url)
        await seal_everything(store)
        assert stored(url) == once
        read = await vm_in(store, vm.id)
        assert read is not None
        assert (read.spec, read.version) == (vm.spec, vm.version)
        assert await store.read(lambda tx: tx.get_operation(operation.id)) == operation
    assert CANARY.encode() not in once


async def test_store_without_keys_opens_nothing(url: str, tmp_path: Path) -> None:
    vm = secret_vm()
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await add(store, vm)
    async with open_store(url) as plain:
        with pytest.raises(SecretUnreadable):
            await vm_in(plain, vm.id)


async def test_value_moved_to_another_row_does_not_open(url: str, tmp_path: Path) -> None:
    first, second = secret_vm(), secret_vm()
    async with sealed_store(url, tmp_path / "key") as (store, _):
        await add(store, first, second)
        engine = migration_engine(url)
        with engine.begin() as connection:
            spec = connection.execute(select(vms.c.spec).where(vms.c.id == first.id)).scalar_one()
            connection.execute(vms.update().where(vms.c.id == second.id).values(spec=spec))
        engine.dispose()
        with pytest.raises(SecretUnreadable, match="belongs to something else"):
            await vm_in(store, second.id)


async def test_processes_that_start_at_once_share_one_key(url: str, tmp_path: Path) -> None:
    rings = [Keyring(SecretSettings(key_file=tmp_path / "key"), lambda: datetime.now(UTC)) for _ in range(4)]
    async with open_store(url) as store:
        await asyncio.gather(*(ring.unlock(store) for ring in rings))
        assert list(await store.read(lambda tx: tx.sealed_secrets("data-key"))) == ["1"]
    sealed = rings[0].box.seal(b"x", "p", "o")
    assert [ring.box.open(sealed, "p", "o") for ring in rings] == [b"x"] * 4


async def test_new_key_is_used_when_everybody_has_it_and_everything_is_sealed_anew(url: str, tmp_path: Path) -> None:
    clock, vm = FakeClock(), secret_vm()
    async with sealed_store(url, tmp_path / "key", clock) as (store, ring):
        await add(store, vm)
        operation = secret_operation()
        await store.run(lambda tx: tx.insert_operation(operation))
        before = ring.box.seal(b"x", "p", "o")
        other = Keyring(SecretSettings(key_file=tmp_path / "key"), clock)
        await other.unlock(store)
        assert await ring.add_key(store) == "2"
        assert ring.box.is_current(before), "others do not know it yet"
        await other.look(store)
        clock.advance(ACTIVE_AFTER_S)
        for each in (ring, other):
            await each.look(store)
            assert not each.box.is_current(before)
            assert each.box.open(before, "p", "o") == b"x"
        old = stored(url)
        await seal_everything(store)
        assert stored(url) != old
        assert other.box.open(ring.box.seal(b"y", "p", "o"), "p", "o") == b"y"
        read = await vm_in(store, vm.id)
        assert read is not None
        assert read.spec == vm.spec
        again = await store.read(lambda tx: tx.get_operation(operation.id))
        assert again is not None
        assert (again.parameters, again.request_digest) == (operation.parameters, operation.request_digest)
        settled = stored(url)
        await seal_everything(store)
        assert stored(url) == settled, "nothing is left that was sealed with the older key"


async def test_lost_key_file_is_told_and_not_replaced(url: str, tmp_path: Path) -> None:
    async with sealed_store(url, tmp_path / "key"):
        pass
    (tmp_path / "key").unlink()
    with pytest.raises(KeysUnusable, match="put it back"):
        async with sealed_store(url, tmp_path / "key"):
            pass
    assert not (tmp_path / "key").exists()
