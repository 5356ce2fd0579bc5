"""Store contract: a MAC address belongs to one VM, from when that is written until it is written otherwise."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from controlplane.domain.vm import Vm
from controlplane.state.factory import migrate, migration_engine
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import NetworkInterface, VmSpec
from limiquantix.errors import AlreadyExists, ApiError, Reason
from tests.support.builders import make_node, make_vm
from tests.support.databases import EMPTY_DATABASES, alembic_config
from tests.support.stores import add, open_store, vm_in

FIRST, SECOND, THIRD = (f"52:54:00:00:00:0{n}" for n in (1, 2, 3))


def with_macs(vm: Vm, *addresses: str) -> Vm:
    spec = VmSpec()
    spec.CopyFrom(vm.spec)
    del spec.nics[:]
    spec.nics.extend(NetworkInterface(mac_address=address) for address in addresses)
    return dataclasses.replace(vm, spec=spec)


async def holders(store: Store, *addresses: str) -> dict[str, str]:
    return dict(await store.read(lambda tx: tx.mac_holders(addresses)))


async def test_addresses_follow_the_specs_of_their_vms(store: Store) -> None:
    vm = with_macs(make_vm(), FIRST.upper(), SECOND)
    await add(store, vm)
    assert await holders(store, FIRST, SECOND, THIRD) == {FIRST: vm.id, SECOND: vm.id}
    await store.run(lambda tx: change(tx, vm.id, SECOND, THIRD))
    assert await holders(store, FIRST, SECOND, THIRD) == {SECOND: vm.id, THIRD: vm.id}
    await store.run(lambda tx: tx.delete_vm(vm.id))
    assert await holders(store, FIRST, SECOND, THIRD) == {}
    assert await holders(store) == {}


async def change(tx: object, vm_id: str, *addresses: str) -> Vm:
    vm = await tx.get_vm(vm_id)  # type: ignore[attr-defined]
    changed: Vm = await tx.update_vm(with_macs(vm, *addresses))  # type: ignore[attr-defined]
    return changed


async def test_address_of_another_vm_is_refused_and_nothing_is_written(store: Store) -> None:
    holder, other = with_macs(make_vm(), FIRST), with_macs(make_vm(), SECOND)
    await add(store, holder, other)
    newcomer = with_macs(make_vm(), THIRD, FIRST)
    with pytest.raises(AlreadyExists) as inserted:
        await add(store, newcomer)
    with pytest.raises(AlreadyExists) as updated:
        await store.run(lambda tx: change(tx, other.id, FIRST))
    for caught in (inserted, updated):
        assert (caught.value.reason, caught.value.metadata["vm_id"]) == (Reason.MAC_TAKEN, holder.id)
    assert await vm_in(store, newcomer.id) is None
    assert await holders(store, FIRST, SECOND, THIRD) == {FIRST: holder.id, SECOND: other.id}


async def test_vm_written_by_another_way_of_reading_keeps_its_addresses(store: Store) -> None:
    node = make_node()
    vm = with_macs(make_vm(node_id=node.id), FIRST)
    await add(store, node, vm)

    async def touch(tx: object) -> None:
        (found,) = await tx.vms_on_node(node.id)  # type: ignore[attr-defined]
        await tx.update_vm(dataclasses.replace(found, description="new"))  # type: ignore[attr-defined]

    await store.run(touch)
    assert await holders(store, FIRST) == {FIRST: vm.id}


async def test_address_asked_for_by_many_at_once_goes_to_one(store: Store) -> None:
    vms = [with_macs(make_vm(name=f"vm-{number}"), FIRST) for number in range(8)]
    answers = await asyncio.gather(*(add(store, vm) for vm in vms), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ApiError)]
    assert len(refused) == len(vms) - 1
    assert {error.reason for error in refused} <= {Reason.MAC_TAKEN, Reason.STATE_UNAVAILABLE}
    assert len(await holders(store, FIRST)) == 1


@pytest.mark.parametrize("make", list(EMPTY_DATABASES.values()), ids=list(EMPTY_DATABASES))
async def test_vms_from_before_there_was_a_table_of_addresses_have_theirs(make: object, tmp_path: Path) -> None:
    url: str = make(tmp_path)  # type: ignore[operator]
    await asyncio.to_thread(migrate, url)
    older, younger = with_macs(make_vm(name="older"), FIRST, SECOND), with_macs(make_vm(name="younger"), THIRD)
    async with open_store(url) as store:
        await add(store, older, younger)
    twice = with_macs(younger, FIRST, THIRD).spec.SerializeToString()

    def migrate_anew() -> None:
        with migration_engine(url).begin() as connection:
            command.downgrade(alembic_config(connection), "0006")
            statement = text("UPDATE vms SET spec = :spec, created_at = created_at + 1 WHERE id = :id")
            connection.execute(statement, {"spec": twice, "id": younger.id})
        migrate(url)

    await asyncio.to_thread(migrate_anew)
    async with open_store(url) as store:
        assert await holders(store, FIRST, SECOND, THIRD) == {FIRST: older.id, SECOND: older.id, THIRD: younger.id}
