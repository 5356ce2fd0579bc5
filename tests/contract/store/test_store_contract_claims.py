"""Store contract: a node is never over-committed, and a claim lives and dies with its VM."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Capacity
from controlplane.domain.vm import Vm
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import CpuConfig, VmSpec
from limiquantix.errors import AlreadyExists
from tests.support.builders import GIB, make_node, make_vm
from tests.support.databases import MakeDatabase
from tests.support.stores import CLAIM_OF_ONE, add, node_in, open_store, place, vm_in


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        (Capacity(4, 4 * GIB), True),
        (Capacity(5, 0), False),
        (Capacity(0, 4 * GIB + 1), False),
        (Capacity(5, -1), False),
        (Capacity(-1, 4 * GIB + 1), False),
        (Capacity(-4, 4 * GIB), True),
        (Capacity(0, 0), True),
        (Capacity(2**62, 0), False),
    ],
)
async def test_claim_checks_only_what_grows(store: Store, size: Capacity, fits: bool) -> None:
    before = Capacity(4, 4 * GIB)
    node = make_node(vcpus=8, memory_bytes=8 * GIB, allocated=before)
    await add(store, node)
    assert await store.run(lambda tx: tx.claim(node.id, size)) is fits
    after = Capacity(before.vcpus + size.vcpus, before.memory_bytes + size.memory_bytes) if fits else before
    assert (await node_in(store, node.id)).allocated == after


async def test_claim_on_a_node_that_shrank_below_its_claims_may_only_give_back(store: Store) -> None:
    node = make_node(vcpus=2, allocated=Capacity(4, GIB))
    await add(store, node)
    assert not await store.run(lambda tx: tx.claim(node.id, Capacity(1, 0)))
    assert await store.run(lambda tx: tx.claim(node.id, Capacity(-1, 1)))
    assert (await node_in(store, node.id)).allocated == Capacity(3, GIB + 1)


async def test_release_never_goes_below_zero_and_ignores_a_node_that_is_gone(store: Store) -> None:
    node = make_node(allocated=Capacity(2, GIB))
    await add(store, node)
    await store.run(lambda tx: tx.release(node.id, Capacity(3, 2 * GIB)))
    await store.run(lambda tx: tx.release("none", CLAIM_OF_ONE))
    assert (await node_in(store, node.id)).allocated == Capacity(0, 0)
    assert not await store.run(lambda tx: tx.claim("none", CLAIM_OF_ONE))
    with pytest.raises(ValueError, match="use claim"):
        await store.run(lambda tx: tx.release(node.id, Capacity(-1, 0)))


async def test_32_claims_at_once_for_room_of_16_give_exactly_16(store: Store, url: str) -> None:
    node = make_node(vcpus=16)
    await add(store, node)
    async with open_store(url) as replica:
        placed = await asyncio.gather(
            *(place(each, make_vm(node_id=node.id)) for each in itertools.islice(itertools.cycle([store, replica]), 32))
        )
    assert sum(placed) == 16
    assert (await node_in(store, node.id)).allocated == Capacity(16, 16 * CLAIM_OF_ONE.memory_bytes)
    assert len(await store.read(lambda tx: tx.vms_on_node(node.id))) == 16


class _Deliberate(Exception):
    """What a test's work raises."""


@pytest.mark.parametrize("failure", [_Deliberate("on purpose"), TimeoutError("of the work itself")])
async def test_work_that_fails_leaves_neither_row_nor_claim(store: Store, failure: Exception) -> None:
    node = make_node()
    await add(store, node)
    vm = make_vm(node_id=node.id, labels={"a": "b"})

    async def work(tx: Transaction) -> None:
        assert await tx.claim(node.id, CLAIM_OF_ONE)
        await tx.insert_vm(vm)
        assert await tx.get_vm(vm.id) == vm
        raise failure

    with pytest.raises(type(failure), match=str(failure)):
        await store.run(work)
    assert await vm_in(store, vm.id) is None
    assert (await node_in(store, node.id)).allocated == Capacity(0, 0)
    assert await place(store, vm)


async def test_claim_before_a_refused_insert_is_taken_back(store: Store) -> None:
    node = make_node()
    await add(store, node, make_vm(name="taken"))
    with pytest.raises(AlreadyExists):
        await place(store, make_vm(node_id=node.id, name="taken"))
    assert (await node_in(store, node.id)).allocated == Capacity(0, 0)


_Step = tuple[str, int, int]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["place", "place and fail", "resize", "remove", "remove at once"]),
        st.integers(0, 9),
        st.integers(1, 6),
    ),
    max_size=15,
)


async def take_step(store: Store, node_id: str, vms: dict[int, Vm], step: _Step) -> None:
    """Do one step with the VM of that number as a service would, and keep the books of what was done."""
    action, number, cores = step
    vm = vms.get(number)
    if action.startswith("place") and vm is None:
        new = make_vm(node_id=node_id, cores=cores)

        async def place_and_fail(tx: Transaction) -> None:
            await tx.claim(node_id, Capacity(cores, new.memory_bytes))
            await tx.insert_vm(new)
            raise _Deliberate

        if action == "place and fail":
            with pytest.raises(_Deliberate):
                await store.run(place_and_fail)
        elif await place(store, new):
            vms[number] = new
    elif action == "resize" and vm is not None:
        wanted = dataclasses.replace(vm, spec=VmSpec(cpu=CpuConfig(cores=cores), memory=vm.spec.memory))

        async def resize(tx: Transaction) -> Vm | None:
            if not await tx.claim(node_id, Capacity(wanted.vcpu_count - vm.vcpu_count, 0)):
                return None
            return await tx.update_vm(wanted)

        resized = await store.run(resize)
        vms[number] = vm if resized is None else resized
    elif action.startswith("remove") and vm is not None:

        async def remove(tx: Transaction) -> None:
            if await tx.delete_vm(vm.id):
                await tx.release(node_id, Capacity(vm.vcpu_count, vm.memory_bytes))

        await asyncio.gather(*(store.run(remove) for _ in range(2 if action == "remove at once" else 1)))
        del vms[number]


@given(steps=_STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_allocated_is_the_sum_of_claims_after_any_steps(make_database: MakeDatabase, steps: list[_Step]) -> None:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        store = await stack.enter_async_context(open_store(make_database(Path(directory))))
        node = make_node(vcpus=12, memory_bytes=GIB)
        await add(store, node)
        vms: dict[int, Vm] = {}
        for step in steps:
            await take_step(store, node.id, vms, step)
        stored = await store.read(lambda tx: tx.vms_on_node(node.id))
        assert {vm.id: vm for vm in stored} == {vm.id: vm for vm in vms.values()}
        claimed = Capacity(sum(vm.vcpu_count for vm in stored), sum(vm.memory_bytes for vm in stored))
        assert (await node_in(store, node.id)).allocated == claimed
        assert claimed.vcpus <= node.capacity.vcpus
