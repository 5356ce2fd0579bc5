"""The benchmark's processes: they do as they are told, measure what happens, and are gone afterwards."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.empty_pb2 import Empty

from benchmarks.bare_server import SERVICE, running_bare_server
from benchmarks.calling import open_as
from benchmarks.closed_server import DATABASE, KEY_FILE, running_doors
from benchmarks.membership import admit_all_nodes
from benchmarks.records import insert_nodes, insert_records
from benchmarks.workers import Worker, ask_all, running_workers
from limiquantix.compute.v1.node_service_pb2 import ListNodesRequest, UpdateHeartbeatRequest
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.vm_service_pb2 import GetVMRequest, VMUpdate, WatchVMsRequest
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from tests.support.processes import start_control_plane


def processes_of(module: str) -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if f"benchmarks.{module}" in words_of(each)]


def words_of(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:  # another test's, which ended just now
        return []
    return words


async def all_heard(worker: Worker) -> dict[str, Any]:
    """Wait until each host was answered once more."""
    now_s = time.monotonic()
    async with asyncio.timeout(60):
        while (found := await worker.ask(do="recall", at_s=now_s))["missing"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    return found


async def test_watchers_tell_how_late_each_message_was(tmp_path: Path) -> None:
    async with (
        running_bare_server(tmp_path / "bare", {}) as address,
        open_channel(address) as channel,
        running_workers("watch_worker", 2) as workers,
    ):
        publish = channel.unary_unary(f"/{SERVICE}/Publish", VMUpdate.SerializeToString, Empty.FromString)
        await ask_all(workers, do="open", address=address, method=f"/{SERVICE}/Watch", count=3)
        message = VMUpdate(type=VMUpdate.MODIFIED)
        for _ in range(4):
            message.vm.description = str(time.monotonic_ns() - 1_000_000_000)  # a second ago
            await publish(message, timeout=30)
        answers = await ask_all(workers, do="collect", count=12)
        assert len(processes_of("watch_worker")) == 2
    assert [len(answer["late_ms"]) for answer in answers] == [12, 12]
    assert all(1_000 <= late_ms < 10_000 for answer in answers for late_ms in answer["late_ms"])
    assert processes_of("watch_worker") == []


async def test_hosts_that_joined_in_bulk_beat_over_connections_of_their_own(tmp_path: Path) -> None:
    database, directory, members_path = tmp_path / "limiquantix.db", tmp_path / "plane", tmp_path / "members"
    node_ids = await insert_nodes(database, 3)
    members = await admit_all_nodes(database, tmp_path / "secret.key")
    members.write(members_path)
    with start_control_plane(directory, f"sqlite:///{database}") as plane:
        async with running_workers("heartbeat_worker", 1) as (worker,):
            cpus = sorted(os.sched_getaffinity(0))
            await worker.ask(do="connect", address=plane.hosts_address, members_path=str(members_path), cpus=cpus)
            await worker.ask(do="begin", interval_s=1)
            await all_heard(worker)
            found = await all_heard(worker)
            got = await worker.ask(do="end")
            connections = psutil.Process(processes_of("heartbeat_worker")[0].pid).net_connections("tcp")
        token, authority = plane.entry.token, plane.entry.authority
        async with open_as([token], plane.grpc_address, authority) as channel:
            nodes = await NodeServiceStub(channel).ListNodes(ListNodesRequest(), timeout=30)
            watch = VMServiceStub(channel).WatchVMs(WatchVMsRequest(send_bookmarks=True))
            assert await watch.read() is not None
            watch.cancel()
    assert got["count"] >= 6, got
    assert set(got["faults"]) <= {"DEADLINE_EXCEEDED"}, got  # of a machine too busy to answer within two seconds
    assert 0.5 < found["silent_s"] < 60
    hosts_port = int(plane.hosts_address.rpartition(":")[2])
    assert len([each for each in connections if each.raddr and each.raddr.port == hosts_port]) == 3
    assert sorted(node.id for node in nodes.nodes) == sorted(node_ids)
    assert all(node.status.HasField("last_heartbeat") for node in nodes.nodes)


async def test_worker_that_fails_is_told_and_gone() -> None:
    async with running_workers("watch_worker", 1) as workers:
        with pytest.raises(RuntimeError, match="ended early"):
            await workers[0].ask(do="nothing it knows")
    assert processes_of("watch_worker") == []


async def test_bare_doors_let_everybody_in_and_those_beside_them_nobody(tmp_path: Path) -> None:
    """What is compared differs in nothing but what stands at the door."""
    (vm_id,) = await insert_records(tmp_path / DATABASE, 1)
    members = await admit_all_nodes(tmp_path / DATABASE, tmp_path / KEY_FILE)
    trust = grpc.ssl_channel_credentials(members.authority_pem.encode())
    request, beat = GetVMRequest(id=vm_id), UpdateHeartbeatRequest(node_id=members.hosts[0].node_id)
    async with (
        running_doors(tmp_path, min(os.sched_getaffinity(0))) as doors,
        open_channel(doors.bare) as bare,
        open_channel(doors.encrypted, trust) as encrypted,
        open_channel(doors.people, trust) as people,
        open_channel(
            doors.hosts, members.hosts[0].credentials(members.authority_pem), CONTROL_PLANE_SERVER_NAME
        ) as hosts,
    ):
        for channel in (bare, encrypted):
            assert (await VMServiceStub(channel).GetVM(request, timeout=30)).id == vm_id
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await VMServiceStub(people).GetVM(request, timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for token in doors.tokens:
            metadata = (("authorization", f"Bearer {token}"),)
            assert (await VMServiceStub(people).GetVM(request, metadata=metadata, timeout=30)).id == vm_id
        for channel in (bare, hosts):
            await NodeServiceStub(channel).UpdateHeartbeat(beat, timeout=30)
    assert processes_of("closed_server") == []
