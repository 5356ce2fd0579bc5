"""Measures from a host to a caller, on both wires."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import ResourceUsage
from limiquantix.errors import Code
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.fake_daemons import unreachable
from tests.support.private_libvirt_host import eventually
from tests.support.running_control_plane import (
    DEADLINE_S,
    NODE_SERVICE,
    RunningControlPlane,
    error_of,
    running_control_plane,
    sound_body,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABSENT = "99999999-9999-4999-8999-999999999999"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    async with running_control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def plane(shared: RunningControlPlane) -> AsyncIterator[RunningControlPlane]:
    shared.daemon.metrics_second_s = 0.05
    yield shared
    await shared.clear()

    async def look() -> bool | None:
        return not shared.daemon.metrics_streams or None

    await eventually(look, "the end of all streams to the host", DEADLINE_S)


async def running_vm(plane: RunningControlPlane, name: str = "m") -> str:
    created = await plane.post("CreateVM", sound_body(name=name, startOnCreate=True))
    return str(created.document["id"])


def measured(vm_id: str) -> node_v1.NodeMetrics:
    usage = node_v1.ResourceUsage(
        cpu_usage_percent=12.5,
        memory_used_bytes=2**20,
        memory_total_bytes=2**27,
        disk_read_bytes=300,
        disk_write_bytes=400,
        disk_read_count=3,
        disk_write_count=4,
        network_rx_packets=7,
        disk_write_bytes_per_sec=40.5,
        disks=[node_v1.DiskUsage(disk_id="d", target="vda", read_bytes=300, write_bytes=400)],
        nics=[node_v1.NicUsage(nic_id="n", mac_address="m", rx_packets=7)],
    )
    nics = [
        node_v1.NetworkMetrics(interface="eth0", rx_bytes=100, tx_bytes=200, rx_errors=1, is_physical=True),
        node_v1.NetworkMetrics(interface="br0", rx_bytes=100, tx_bytes=200, rx_errors=1),
    ]
    return node_v1.NodeMetrics(
        cpu_usage_percent=50,
        memory_used_bytes=2**30,
        memory_total_bytes=2**34,
        networks=nics,
        load_1m=0.5,
        vms=[node_v1.VMMetrics(vm_id=vm_id, name="m", usage=usage)],
    )


async def first_of(plane: RunningControlPlane, vm_id: str, interval_s: int = 1) -> ResourceUsage:
    call = plane.vms.StreamMetrics(
        vm_api.StreamMetricsRequest(vm_id=vm_id, interval_sec=interval_s), timeout=DEADLINE_S
    )
    async for usage in call:
        call.cancel()
        return usage
    raise AssertionError("the stream ended")


async def test_fault_16_vm_is_measured_disk_by_disk(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.measures = measured(vm_id)
    usage = await first_of(plane, vm_id)
    assert (usage.cpu_usage_percent, usage.memory_used_bytes) == (12.5, 2**20)
    assert usage.memory_allocated_bytes == 128 * 2**20
    assert (usage.disk_read_iops, usage.disk_write_iops, usage.network_rx_packets) == (3, 4, 7)
    assert usage.disk_write_bytes_per_sec == 40.5
    assert [(disk.disk_id, disk.target, disk.write_bytes) for disk in usage.disks] == [("d", "vda", 400)]
    assert [nic.nic_id for nic in usage.nics] == ["n"]
    assert usage.HasField("sampled_at")


async def test_vm_that_its_host_does_not_measure_uses_nothing(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.measures = node_v1.NodeMetrics()
    usage = await first_of(plane, vm_id)
    usage.ClearField("sampled_at")
    assert usage == ResourceUsage(memory_allocated_bytes=128 * 2**20)


async def test_stream_of_a_vm_ends_when_it_is_deleted(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.measures = node_v1.NodeMetrics()
    call = plane.vms.StreamMetrics(vm_api.StreamMetricsRequest(vm_id=vm_id, interval_sec=1), timeout=DEADLINE_S)
    await call.read()
    await plane.post("DeleteVM", {"id": vm_id, "force": True})

    async def read_on() -> None:
        while await call.read():
            continue

    assert (await error_of(read_on())).code is Code.NOT_FOUND


async def test_node_is_measured_beside_what_is_promised_on_it(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.measures = measured(vm_id)
    request = node_api.GetNodeMetricsRequest(id=plane.node_id)
    metrics = await plane.nodes.GetNodeMetrics(request, timeout=DEADLINE_S)
    assert metrics.node_id == plane.node_id
    assert (metrics.cpu_usage_percent, metrics.load_1m) == (50, 0.5)
    assert (metrics.cpu_cores_allocated, metrics.memory_allocated_bytes) == (1, 128 * 2**20)
    assert (metrics.network_rx_bytes, metrics.network_tx_bytes, metrics.network_rx_errors) == (100, 200, 1)
    assert (metrics.vm_count, metrics.vm_running_count) == (1, 1)
    assert [(vm.vm_id, vm.usage.cpu_usage_percent) for vm in metrics.vms] == [(vm_id, 12.5)]
    stream = plane.nodes.StreamNodeMetrics(
        node_api.StreamNodeMetricsRequest(node_id=plane.node_id, interval_sec=1), timeout=DEADLINE_S
    )
    readings = [await stream.read() for _ in range(3)]
    stream.cancel()
    assert all(isinstance(reading, node_api.NodeMetrics) and reading.vms == metrics.vms for reading in readings)


async def test_measures_over_json(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.measures = measured(vm_id)
    answer = await plane.post("GetNodeMetrics", {"id": plane.node_id}, NODE_SERVICE)
    assert answer.document["vms"][0]["usage"]["cpuUsagePercent"] == 12.5
    body = json.dumps({"vmId": vm_id, "intervalSec": 1}).encode()
    async with plane.http.stream(
        "POST",
        "/limiquantix.compute.v1.VMService/StreamMetrics",
        content=struct.pack(">BI", 0, len(body)) + body,
        headers={"content-type": "application/connect+json"},
    ) as response:
        async for piece in response.aiter_bytes():
            (size_bytes,) = struct.unpack(">I", piece[1:5])  # two may come at once
            assert json.loads(piece[5 : 5 + size_bytes])["diskWriteBytes"] == "400"
            break


async def test_fault_02_node_that_cannot_be_reached_is_unavailable(plane: RunningControlPlane) -> None:
    vm_id = await running_vm(plane)
    plane.daemon.fail("*", unreachable())
    error, _ = await plane.refused("GetNodeMetrics", {"id": plane.node_id}, NODE_SERVICE)
    assert error.code is Code.UNAVAILABLE
    assert (await error_of(first_of(plane, vm_id))).code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("method", "body"), [("GetNodeMetrics", {"id": ABSENT}), ("GetNodeMetrics", {"id": "x"})], ids=["absent", "bad"]
)
async def test_measures_of_a_node_that_is_not_there_are_refused(
    plane: RunningControlPlane, method: str, body: dict[str, str]
) -> None:
    error, _ = await plane.refused(method, body, NODE_SERVICE)
    assert error.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)


async def test_measures_of_a_vm_that_is_not_there_or_too_seldom_are_refused(plane: RunningControlPlane) -> None:
    assert (await error_of(first_of(plane, ABSENT))).code is Code.NOT_FOUND
    assert (await error_of(first_of(plane, "x"))).code is Code.INVALID_ARGUMENT
    assert (await error_of(first_of(plane, ABSENT, 3601))).code is Code.INVALID_ARGUMENT
