"""Lists: filters, stable pages, true totals, and tokens that fit one query only."""

from __future__ import annotations

import base64
import contextlib
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.node import Phase
from controlplane.domain.query import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Cursor
from controlplane.domain.vm import PowerState
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1.node_pb2 import NodeRole, NodeSpec
from limiquantix.compute.v1.node_service_pb2 import ListNodesRequest
from limiquantix.compute.v1.vm_service_pb2 import DeleteVMRequest, ListVMsRequest
from limiquantix.errors import InvalidArgument, Reason
from tests.support.builders import START_OF_TIME, make_id, make_vm
from tests.support.control_plane_world import World


async def fill(world: World, count: int, **fields: Any) -> list[str]:
    """Put VMs into the database; returns their ids, oldest first."""
    vms = [make_vm(**fields) for _ in range(count)]

    async def insert(tx):  # type: ignore[no-untyped-def]
        for vm in vms:
            await tx.insert_vm(vm)

    await world.store.run(insert)
    return [vm.id for vm in vms]


async def pages(world: World, **query: Any) -> list[list[str]]:
    """Read to the end."""
    found: list[list[str]] = []
    token = ""
    while True:
        request = ListVMsRequest(page_token=token, **query)
        page = await world.vms.list(request)
        found.append([vm.id for vm in page.items])
        token = encode_cursor(page.next_cursor, request)
        if not token:
            return found


async def ids(world: World, **query: Any) -> set[str]:
    return {vm.id for vm in (await world.vms.list(ListVMsRequest(**query))).items}


async def test_fault_21_pages_have_a_stable_order_and_the_true_total(world: World) -> None:
    made = await fill(world, 7)

    assert await pages(world, page_size=3) == [made[:3], made[3:6], made[6:]]
    assert (await world.vms.list(ListVMsRequest(page_size=3))).total_count == 7


async def test_fault_21_vms_made_at_the_same_moment_are_neither_skipped_nor_repeated(world: World) -> None:
    made = await fill(world, 20, created_at=START_OF_TIME)

    found = [vm_id for page in await pages(world, page_size=3) for vm_id in page]

    assert sorted(found) == sorted(made)


async def test_page_that_ends_with_the_last_vm_has_no_token(world: World) -> None:
    made = await fill(world, 6)

    assert await pages(world, page_size=3) == [made[:3], made[3:]]
    assert await pages(world, page_size=6) == [made]
    assert await pages(world, project_id=make_id()) == [[]]


async def test_pages_go_on_where_they_were_while_vms_come_and_go(world: World) -> None:
    made = await fill(world, 9)
    request = ListVMsRequest(page_size=3)
    first = await world.vms.list(request)
    token = encode_cursor(first.next_cursor, request)

    for vm_id in (made[0], made[2], made[4]):
        await world.vms.delete(DeleteVMRequest(id=vm_id, remove_from_inventory_only=True))
    (late,) = await fill(world, 1)
    second = await world.vms.list(ListVMsRequest(page_size=30, page_token=token))

    assert [vm.id for vm in second.items] == [made[3], *made[5:], late]
    assert second.total_count == 7


@pytest.mark.parametrize(
    ("asked", "given_"),
    [(0, DEFAULT_PAGE_SIZE), (1, 1), (1000, 1000), (1001, MAX_PAGE_SIZE), (2**31 - 1, MAX_PAGE_SIZE)],
)
def test_page_size_has_a_default_and_a_ceiling(asked: int, given_: int) -> None:
    assert page_limit(asked) == given_


async def test_page_without_a_size_has_the_documented_one(world: World) -> None:
    await fill(world, DEFAULT_PAGE_SIZE + 1)

    page = await world.vms.list(ListVMsRequest())

    assert (len(page.items), page.total_count) == (50, 51)


async def test_filters_all_hold_at_once(world: World) -> None:
    node, project = await world.add_node(), make_id()
    (wanted,) = await fill(
        world, 1, node_id=node.id, project_id=project, labels={"a": "1", "b": "2"}, power_state=PowerState.RUNNING
    )
    (stopped,) = await fill(world, 1, node_id=node.id, project_id=project, labels={"a": "1"})
    (elsewhere,) = await fill(world, 1, labels={"a": "2"})

    assert await ids(world) == {wanted, stopped, elsewhere}
    assert await ids(world, node_id=node.id) == {wanted, stopped}
    assert await ids(world, project_id=project) == {wanted, stopped}
    assert await ids(world, labels={"a": "1"}) == {wanted, stopped}
    assert await ids(world, labels={"a": "1", "b": "2"}) == {wanted}
    assert await ids(world, labels={"a": "2", "b": "2"}) == set()
    assert await ids(world, states=[PowerState.RUNNING]) == {wanted}
    assert await ids(world, states=[PowerState.RUNNING, PowerState.STOPPED]) == {wanted, stopped, elsewhere}
    assert await ids(world, node_id=node.id, states=[PowerState.STOPPED], labels={"a": "1"}) == {stopped}
    assert await ids(world, labels={"a' OR '1'='1": "1"}) == set()


async def test_nodes_are_filtered_and_paged_with_their_vms(world: World) -> None:
    compute = await world.add_node(labels={"zone": "a"})
    storage = await world.add_node(spec=NodeSpec(role=NodeRole(storage=True)), phase=Phase.MAINTENANCE)
    brain = await world.add_node(spec=NodeSpec(role=NodeRole(compute=True, control_plane=True)))
    (vm_id,) = await fill(world, 1, node_id=brain.id)

    async def found(**query: Any) -> list[str]:
        return [node.id for node in (await world.nodes.list(ListNodesRequest(**query))).nodes]

    assert await found() == [compute.id, storage.id, brain.id]
    assert await found(labels={"zone": "a"}) == [compute.id]
    assert await found(phases=[Phase.MAINTENANCE]) == [storage.id]
    assert await found(compute_only=True) == [compute.id, brain.id]
    assert await found(storage_only=True) == [storage.id]
    assert await found(compute_only=True, control_plane_only=True) == [brain.id]
    request = ListNodesRequest(page_size=2)
    first = await world.nodes.list(request)
    assert first.total_count == 3
    token = encode_cursor(first.next_cursor, request)
    last = await world.nodes.list(ListNodesRequest(page_size=2, page_token=token))
    assert [node.id for node in last.nodes] == [brain.id]
    assert last.vm_ids == {brain.id: [vm_id]}
    assert last.next_cursor is None


# -- tokens

CURSORS = st.builds(
    Cursor,
    created_at=st.datetimes(timezones=st.just(UTC)),
    id=st.uuids().map(str),
)


@given(CURSORS, st.integers(0, 1000))
def test_token_leads_back_to_its_position_whatever_the_page_size(cursor: Cursor, page_size: int) -> None:
    token = encode_cursor(cursor, ListVMsRequest(project_id="p", page_size=3))

    assert decode_cursor(token, ListVMsRequest(project_id="p", page_size=page_size, page_token="x")) == cursor


@given(CURSORS)
def test_token_of_another_query_is_refused(cursor: Cursor) -> None:
    token = encode_cursor(cursor, ListVMsRequest(project_id="p", labels={"a": "1", "b": "2"}))

    assert decode_cursor(token, ListVMsRequest(project_id="p", labels={"b": "2", "a": "1"})) == cursor
    for other in (ListVMsRequest(), ListVMsRequest(project_id="q"), ListVMsRequest(project_id="p", labels={"a": "1"})):
        with pytest.raises(InvalidArgument) as caught:
            decode_cursor(token, other)
        assert caught.value.reason == Reason.PAGE_TOKEN_INVALID
        assert [violation.field for violation in caught.value.violations] == ["page_token"]


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _aimed(position: bytes) -> str:
    """A token that names the right query, with any position."""
    real = encode_cursor(Cursor(START_OF_TIME, make_id()), ListVMsRequest())
    return _encoded(base64.urlsafe_b64decode(real + "==")[:9] + position)


@given(
    st.one_of(
        st.text(min_size=1),
        st.binary(min_size=1).map(_encoded),
        st.binary(min_size=33, max_size=33).map(_encoded),
        st.binary(min_size=24, max_size=24).map(_aimed),
    )
)
def test_hostile_token_is_refused_or_a_position_nothing_else(token: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert decode_cursor(token, ListVMsRequest()) is not None


async def test_position_beyond_all_time_is_an_empty_page_or_refused(world: World) -> None:
    await fill(world, 1)
    for year_edge in (b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\x00" * 7, b"\x00\xdc\xbf\xfa\x00\x00\x00\x00"):
        with contextlib.suppress(InvalidArgument):
            page = await world.vms.list(ListVMsRequest(page_token=_aimed(year_edge + b"\xff" * 16)))
            assert len(page.items) <= 1
