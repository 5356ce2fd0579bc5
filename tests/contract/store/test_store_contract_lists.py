"""Store contract: filters, pages, totals and snapshots."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from controlplane.domain.node import Node, Phase
from controlplane.domain.query import Cursor, NodeFilter, VmFilter
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import NodeRole, NodeSpec
from tests.support.builders import START_OF_TIME, make_id, make_node, make_vm
from tests.support.stores import add, vm_in, vm_page


async def every_vm(store: Store, wanted: VmFilter, page_size: int = 2) -> list[str]:
    """Page through the VMs of a filter; every page must tell the same total."""
    seen: list[str] = []
    after: Cursor | None = None
    while True:
        page = await vm_page(store, wanted, after, page_size)
        seen += [vm.id for vm in page.items]
        if page.next_cursor is None:
            assert page.total_count == len(seen)
            return seen
        assert len(page.items) == page_size
        after = page.next_cursor


async def test_vm_filters_give_exactly_what_matches_in_order(store: Store) -> None:
    nodes = [make_node(), make_node()]
    project = make_id()
    vms = [
        make_vm(
            node_id=("", nodes[0].id, nodes[1].id)[number % 3],
            labels={"app": f"app-{number % 2}", "env": "prod" if number < 6 else "dev"},
            power_state=(PowerState.STOPPED, PowerState.RUNNING, PowerState.CRASHED)[number // 4],
            project_id=project if number % 4 == 0 else DEFAULT_PROJECT_ID,
        )
        for number in range(12)
    ]
    await add(store, *nodes, *random.Random(7).sample(vms, len(vms)))

    cases: list[tuple[VmFilter, Callable[[Vm], bool]]] = [
        (VmFilter(), lambda vm: True),
        (VmFilter(project_id=project), lambda vm: vm.project_id == project),
        (VmFilter(node_id=nodes[0].id), lambda vm: vm.node_id == nodes[0].id),
        (VmFilter(labels={"app": "app-1"}), lambda vm: vm.labels["app"] == "app-1"),
        (
            VmFilter(labels={"app": "app-1", "env": "dev"}),
            lambda vm: vm.labels["app"] == "app-1" and vm.labels["env"] == "dev",
        ),
        (VmFilter(labels={"env": "app-1"}), lambda vm: False),
        (
            VmFilter(states=frozenset({PowerState.RUNNING, PowerState.CRASHED})),
            lambda vm: vm.power_state != PowerState.STOPPED,
        ),
        (
            VmFilter(project, nodes[1].id, {"env": "dev"}, frozenset({PowerState.CRASHED})),
            lambda vm: (
                vm.project_id == project
                and vm.node_id == nodes[1].id
                and vm.labels["env"] == "dev"
                and vm.power_state == PowerState.CRASHED
            ),
        ),
    ]
    for wanted, matches in cases:
        assert await every_vm(store, wanted) == [vm.id for vm in vms if matches(vm)], wanted


async def test_vms_of_a_page_have_their_own_labels(store: Store) -> None:
    vms = [make_vm(labels={"number": str(number)} if number else {}) for number in range(5)]
    await add(store, *vms)
    assert list((await vm_page(store, VmFilter(), None, 50)).items) == vms


async def test_node_filters_give_exactly_what_matches(store: Store) -> None:
    compute = make_node(labels={"zone": "a"})
    storage = make_node(spec=NodeSpec(role=NodeRole(storage=True)), phase=Phase.MAINTENANCE, labels={"zone": "b"})
    both = make_node(spec=NodeSpec(role=NodeRole(storage=True, compute=True, control_plane=True)), labels={"zone": "a"})
    await add(store, compute, storage, both)
    cases: list[tuple[NodeFilter, list[Node]]] = [
        (NodeFilter(), [compute, storage, both]),
        (NodeFilter(labels={"zone": "a"}), [compute, both]),
        (NodeFilter(phases=frozenset({Phase.MAINTENANCE, Phase.OFFLINE})), [storage]),
        (NodeFilter(compute_only=True), [compute, both]),
        (NodeFilter(compute_only=True, storage_only=True), [both]),
        (NodeFilter(control_plane_only=True, phases=frozenset({Phase.OFFLINE})), []),
    ]
    for wanted, expected in cases:
        page = await store.read(lambda tx, wanted=wanted: tx.list_nodes(wanted, None, 50))  # type: ignore[misc]
        assert (list(page.items), page.total_count, page.next_cursor) == (expected, len(expected), None)
    first = await store.read(lambda tx: tx.list_nodes(NodeFilter(), None, 2))
    rest = await store.read(lambda tx: tx.list_nodes(NodeFilter(), first.next_cursor, 2))
    assert ([*first.items, *rest.items], rest.next_cursor) == ([compute, storage, both], None)


async def test_page_of_no_rows_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="page of 0"):
        await vm_page(store, VmFilter(), None, 0)


async def test_vms_of_one_moment_are_paged_by_id(store: Store) -> None:
    vms = [make_vm(created_at=START_OF_TIME) for _ in range(7)]
    await add(store, *vms)
    assert await every_vm(store, VmFilter(), page_size=3) == sorted(vm.id for vm in vms)


async def test_paging_while_rows_come_and_go_neither_loses_nor_doubles_those_that_stay(store: Store) -> None:
    dice = random.Random(11)
    stay = [make_vm(created_at=START_OF_TIME + timedelta(seconds=dice.randrange(10))) for _ in range(30)]
    leave = [make_vm(created_at=START_OF_TIME + timedelta(seconds=dice.randrange(10))) for _ in range(30)]
    await add(store, *stay, *leave)
    seen: list[str] = []
    after: Cursor | None = None
    while True:
        page = await vm_page(store, VmFilter(), after, 4)
        seen += [vm.id for vm in page.items]
        if page.next_cursor is None:
            break
        after = page.next_cursor
        for gone in [leave.pop() for _ in range(min(2, len(leave)))]:
            await store.run(lambda tx, gone=gone: tx.delete_vm(gone.id))  # type: ignore[misc]
        await add(store, make_vm(created_at=START_OF_TIME + timedelta(seconds=dice.randrange(10))))
    staying = {vm.id for vm in stay}
    in_order = [vm.id for vm in sorted(stay, key=lambda vm: (vm.created_at, vm.id))]
    assert [vm_id for vm_id in seen if vm_id in staying] == in_order
    assert len(seen) == len(set(seen))


async def test_read_sees_one_snapshot_although_rows_are_added_meanwhile(store: Store) -> None:
    await add(store, make_vm())
    loop = asyncio.get_running_loop()

    async def work(tx: Transaction) -> tuple[int, int]:
        before = (await tx.list_vms(VmFilter(), None, 10)).total_count
        asyncio.run_coroutine_threadsafe(add(store, make_vm()), loop).result(60)
        return before, (await tx.list_vms(VmFilter(), None, 10)).total_count

    assert await store.read(work) == (1, 1)
    assert (await vm_page(store, VmFilter(), None, 10)).total_count == 2


async def test_placements_are_found_from_both_sides(store: Store) -> None:
    first, second, empty = make_node(), make_node(), make_node()
    on_first = [make_vm(node_id=first.id, labels={"a": "b"}), make_vm(node_id=first.id)]
    on_second, unplaced = make_vm(node_id=second.id), make_vm()
    await add(store, first, second, empty, *on_first, on_second, unplaced)

    async def work(tx: Transaction) -> None:
        assert list(await tx.vms_on_node(first.id)) == on_first
        assert await tx.nodes_of_vms([on_first[0].id, on_second.id, unplaced.id, "none"]) == {
            on_first[0].id: first.id,
            on_second.id: second.id,
        }
        assert await tx.vm_ids_by_node([first.id, empty.id]) == {
            first.id: [vm.id for vm in on_first],
            empty.id: [],
        }
        assert list(await tx.all_nodes()) == [first, second, empty]

    await store.read(work)


async def test_read_whose_work_writes_is_refused(store: Store) -> None:
    vm = make_vm()
    with pytest.raises(RuntimeError, match=r"use Store\.run"):
        await store.read(lambda tx: tx.insert_vm(vm))
    assert await vm_in(store, vm.id) is None
