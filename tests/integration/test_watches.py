"""Watches over real wires: clients that stop reading, clients that vanish, and servers that stop, on gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from controlplane.domain.vm import PowerState, Vm
from controlplane.events.hub import HubConfig
from controlplane.events.subscription import QueueLimits
from limiquantix.compute.v1.node_service_pb2 import ListNodeEventsRequest, StreamEventsRequest, WatchNodesRequest
from limiquantix.compute.v1.vm_service_pb2 import (
    ListVMEventsRequest,
    PauseVMRequest,
    VMUpdate,
    WatchVMRequest,
    WatchVMsRequest,
)
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.status import from_rpc_error
from tests.support.builders import make_id, make_node, make_vm
from tests.support.control_plane_world import create_request
from tests.support.databases import fresh_sqlite
from tests.support.running_control_plane import running_control_plane
from tests.support.stores import add, open_store
from tests.support.watch_server import WatchServer, watch_server
from tests.support.watching import DEADLINE_S, change, told, until

WATCH_VMS = "/limiquantix.compute.v1.VMService/WatchVMs"
END_OF_STREAM = 0x02
LARGE = "x" * 32_000
SMALL_QUEUE = HubConfig(queue=QueueLimits(entry_count=50), patience_with_message_s=0.02)


@asynccontextmanager
async def serving(tmp_path: Path, hub: HubConfig | None = None) -> AsyncIterator[WatchServer]:
    """Serve on a fresh database."""
    async with open_store(fresh_sqlite(tmp_path)) as store, watch_server(store, hub) as server:
        yield server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[WatchServer]:
    """A server with small queues."""
    async with serving(tmp_path, SMALL_QUEUE) as started:
        yield started


async def taken(call: Any, count: int) -> list[Any]:
    """Read that many messages."""
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(aiter(call)) for _ in range(count)]


async def rest_of(call: Any) -> tuple[list[Any], ApiError | None]:
    """Read to the end, and the error that it ends with."""
    messages: list[Any] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for message in call:
                messages.append(message)  # noqa: PERF401 - those before the error count too
    except grpc.aio.AioRpcError as error:
        return messages, from_rpc_error(error, peer="the server")
    return messages, None


def tasks() -> set[asyncio.Task[Any]]:
    """What runs, but for the server's task that takes the next call, of which there is another one after each call."""
    return {task for task in asyncio.all_tasks() if "_request_registered_call" not in repr(task)}


async def overwhelm(server: WatchServer, vm: Vm, stop_at: int) -> None:
    """Change the VM until at most so many watches go on.

    A few changes at a time, each of which everybody who takes messages has got before the next: else one look at the
    log may find more of them than a queue holds, and end a watch that is not slow at all.
    """
    hub = server.watching.hub
    async with asyncio.timeout(DEADLINE_S):
        while hub.going_on_count > stop_at:
            for _ in range(5):
                await change(server.store, vm.id, description=LARGE)
            revision = await hub.settled()
            for watcher in server.watching.watchers:
                await watcher.until(lambda updates, revision=revision: updates[-1].revision >= revision)  # type: ignore[misc]
            await asyncio.sleep(0.02)  # for those who do not take messages, until they could have been sent these


# -- gRPC


async def test_grpc_client_that_stops_reading_is_ended_while_others_hear_everything(server: WatchServer) -> None:
    vm = make_vm(description=LARGE)
    await add(server.store, vm)
    slow = server.vms.WatchVMs(WatchVMsRequest())
    fast = server.watching.start(_read_all(server.vms.WatchVMs(WatchVMsRequest())))
    [first] = await taken(slow, 1)
    await fast.count(1)
    memory_bytes = psutil.Process().memory_info().rss

    await overwhelm(server, vm, stop_at=1)

    end = (await server.watching.inner_store.run(lambda tx: tx.sequence_events())).revision
    await fast.until(lambda updates: updates[-1].revision == end)
    assert [update.revision for update in fast.messages] == list(range(1, end + 1))
    assert psutil.Process().memory_info().rss - memory_bytes < 64 * 2**20
    updates, error = await rest_of(slow)
    assert error is not None
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.WATCH_TOO_SLOW)
    told_revision = int(error.metadata["from_revision"])
    revisions = [update.revision for update in [first, *updates]]
    assert revisions == list(range(1, told_revision + 1))
    again = server.vms.WatchVMs(WatchVMsRequest(from_revision=told_revision))
    missed = await taken(again, end - told_revision)
    assert [update.revision for update in missed] == list(range(told_revision + 1, end + 1))
    again.cancel()


async def _read_all(call: Any) -> Any:
    try:
        async for message in call:
            yield message
    finally:
        call.cancel()


@pytest.mark.parametrize("is_blocked", [False, True], ids=["waiting", "in the middle of a message"])
async def test_grpc_client_that_goes_away_leaves_nothing_behind(server: WatchServer, is_blocked: bool) -> None:
    vm = make_vm(description=LARGE)
    await add(server.store, vm)
    before = tasks()
    async with open_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        calls: list[Any] = [
            channel.unary_stream(
                WATCH_VMS, request_serializer=WatchVMsRequest.SerializeToString, response_deserializer=bytes
            )(WatchVMsRequest())
            for _ in range(5)
        ]
        for call in calls:
            await taken(call, 1)
        assert server.watching.hub.subscription_count == 5
        if is_blocked:
            await overwhelm(server, vm, stop_at=0)
            assert server.watching.hub.subscription_count == 5
        for call in calls[:3]:
            call.cancel()
        await until(lambda: server.watching.hub.subscription_count == 2)
    await until(lambda: server.watching.hub.subscription_count == 0)
    await until(lambda: tasks() <= before)


async def test_grpc_server_that_stops_ends_watches_with_where_to_continue(server: WatchServer) -> None:
    await add(server.store, make_vm())
    vms = server.vms.WatchVMs(WatchVMsRequest())
    nodes = server.nodes.WatchNodes(WatchNodesRequest(send_bookmarks=True))
    await taken(vms, 1)
    await taken(nodes, 1)
    server.watching.hub.stop()
    stopping = asyncio.create_task(server.rpc.stop(2 * DEADLINE_S))
    for call in (vms, nodes):
        messages, error = await rest_of(call)
        assert messages == []
        assert error is not None
        assert (error.code, error.metadata["from_revision"], error.retry_after_s) == (Code.UNAVAILABLE, "1", 1.0)
    await asyncio.wait_for(stopping, DEADLINE_S)  # nobody had to be cut off after the grace


async def test_grpc_refusals_of_watches_carry_their_reason(server: WatchServer) -> None:
    _, missing = await rest_of(server.vms.WatchVM(WatchVMRequest(vm_id=make_id())))
    _, ahead = await rest_of(server.nodes.StreamEvents(StreamEventsRequest(from_revision=5)))
    _, wrong = await rest_of(server.vms.WatchVMs(WatchVMsRequest(node_id="x")))
    assert missing is not None
    assert ahead is not None
    assert wrong is not None
    assert (missing.code, missing.reason) == (Code.NOT_FOUND, Reason.VM_NOT_FOUND)
    assert (ahead.code, ahead.reason) == (Code.OUT_OF_RANGE, Reason.REVISION_UNAVAILABLE)
    assert wrong.code == Code.INVALID_ARGUMENT


async def test_grpc_watch_of_a_vm_ends_well_when_it_is_deleted(server: WatchServer) -> None:
    vm = make_vm()
    await add(server.store, vm)
    call = server.vms.WatchVM(WatchVMRequest(vm_id=vm.id))
    await taken(call, 1)
    await server.store.run(lambda tx: tx.delete_vm(vm.id))
    messages, error = await rest_of(call)
    assert (len(messages), error, await call.code()) == (1, None, grpc.StatusCode.OK)


async def test_past_and_present_events_agree_over_grpc(server: WatchServer) -> None:
    node, vm = make_node(), make_vm()
    await add(server.store, node, vm)
    await server.store.run(lambda tx: tx.sequence_events())
    of_vm = await server.vms.ListVMEvents(ListVMEventsRequest(vm_id=vm.id), timeout=DEADLINE_S)
    of_node = await server.nodes.ListNodeEvents(ListNodeEventsRequest(node_id=node.id), timeout=DEADLINE_S)
    stream = server.nodes.StreamEvents(StreamEventsRequest(from_revision=1))
    await change(server.store, vm.id)
    [event] = await taken(stream, 1)
    assert (event.id, event.revision) == (of_vm.events[0].id, of_vm.events[0].revision)
    assert [each.reason for each in of_node.events] == ["node.registered"]
    stream.cancel()


# -- HTTP


@asynccontextmanager
async def json_watch(server: WatchServer, **request: Any) -> AsyncIterator[AsyncIterator[tuple[int, Any]]]:
    """Watch VMs with Connect's JSON stream; gives flags and documents of envelopes."""
    body = json.dumps(request).encode()
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=DEADLINE_S) as client,
        client.stream(
            "POST",
            WATCH_VMS,
            content=struct.pack(">BI", 0, len(body)) + body,
            headers={"content-type": "application/connect+json"},
        ) as response,
    ):
        yield _envelopes(response)


async def _envelopes(response: httpx.Response) -> AsyncIterator[tuple[int, Any]]:
    data = b""
    async for chunk in response.aiter_raw():
        data += chunk
        while len(data) >= 5 and len(data) >= 5 + struct.unpack(">I", data[1:5])[0]:
            flags, size = struct.unpack(">BI", data[:5])
            yield flags, json.loads(data[5 : 5 + size] or b"{}")
            data = data[5 + size :]


async def test_json_stream_gives_the_state_and_changes_and_says_where_to_continue(server: WatchServer) -> None:
    vm = make_vm(name="a")
    await add(server.store, vm)
    async with json_watch(server, sendBookmarks=True) as stream:
        first = [await anext(stream), await anext(stream)]
        await change(server.store, vm.id, name="b")
        changed = await anext(stream)
        server.watching.hub.stop()
        end = await anext(stream)
    assert [(flags, each["revision"], each.get("type")) for flags, each in first] == [
        (0, "1", None),
        (0, "1", "BOOKMARK"),
    ]
    assert (changed[1]["type"], changed[1]["vm"]["name"], changed[1]["revision"]) == ("MODIFIED", "b", "2")
    assert (end[0], end[1]["error"]["code"]) == (END_OF_STREAM, "unavailable")
    assert "from_revision 2" in end[1]["error"]["message"]


async def test_json_stream_whose_client_goes_away_leaves_nothing_behind(server: WatchServer) -> None:
    await add(server.store, make_vm())
    before = tasks()
    for _ in range(3):
        async with json_watch(server) as stream:
            await anext(stream)
            assert server.watching.hub.subscription_count == 1
        await until(lambda: server.watching.hub.subscription_count == 0)
    await until(lambda: tasks() <= before)


async def test_http_client_that_stops_reading_is_ended_while_others_hear_everything(server: WatchServer) -> None:
    vm = make_vm(description=LARGE)
    await add(server.store, vm)
    fast = server.watching.start(_read_all(server.vms.WatchVMs(WatchVMsRequest())))
    await fast.count(1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        client.connect(("127.0.0.1", server.http_port))
        client.sendall(
            f"POST {WATCH_VMS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/connect+json\r\n"
            "content-length: 7\r\n\r\n".encode()
            + struct.pack(">BI", 0, 2)
            + b"{}"
        )
        await until(lambda: server.watching.hub.subscription_count == 2)
        memory_bytes = psutil.Process().memory_info().rss
        await overwhelm(server, vm, stop_at=1)
        assert psutil.Process().memory_info().rss - memory_bytes < 64 * 2**20
        client.settimeout(DEADLINE_S)
        read = await asyncio.to_thread(_read_until, client, b'"error"')
    assert b'"resource_exhausted"' in read
    assert b"continue with from_revision" in read
    end = (await server.watching.inner_store.run(lambda tx: tx.sequence_events())).revision
    await fast.until(lambda updates: updates[-1].revision == end)
    assert [update.revision for update in fast.messages] == list(range(1, end + 1))
    assert told(fast.messages[:1]) == [("ADDED", vm.name)]
    assert fast.messages[0].type == VMUpdate.ADDED
    await until(lambda: server.watching.hub.subscription_count == 1)


def _read_until(client: socket.socket, text: bytes) -> bytes:
    data = b""
    while text not in data:
        piece = client.recv(65_536)
        assert piece, data[-500:]
        data = (data + piece)[-100_000:]
    return data


# -- the whole control plane


async def test_what_a_caller_does_is_told_and_a_control_plane_that_stops_says_where_to_continue(tmp_path: Path) -> None:
    async with running_control_plane(tmp_path) as plane:
        created = await plane.vms.CreateVM(create_request("told", start=True), timeout=DEADLINE_S)
        vms = plane.vms.WatchVMs(WatchVMsRequest(send_bookmarks=True))
        await taken(vms, 2)
        await plane.vms.PauseVM(PauseVMRequest(id=created.id), timeout=DEADLINE_S)
        paused = await anext(aiter(vms))
        while paused.vm.status.state != PowerState.PAUSED:
            paused = await anext(aiter(vms))
        events = await plane.vms.ListVMEvents(ListVMEventsRequest(vm_id=created.id, type="vm.paused"))
        silent = plane.nodes.StreamEvents(StreamEventsRequest(from_revision=paused.revision))
        stopping = asyncio.create_task(plane.plane.stop())
        _, error = await rest_of(vms)
        _, other_error = await rest_of(silent)
        await asyncio.wait_for(stopping, DEADLINE_S)
    assert [event.revision <= paused.revision for event in events.events] == [True]
    assert error is not None
    assert other_error is not None
    assert (error.code, error.reason) == (other_error.code, other_error.reason) == (Code.UNAVAILABLE, Reason.STOPPING)
    assert int(error.metadata["from_revision"]) >= paused.revision
