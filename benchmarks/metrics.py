"""What measuring costs: a reading of many VMs, against libvirt's bulk call alone, and a daemon that has nothing to do.

A reading is everything that a stream of metrics sends: all VMs' counters and rates, the host's, as a message. The
simulated host has no call to compare with; its reading is compared with ten VMs' worth, which shows what a VM costs.
The idle daemon's share of a processor is set against what the libvirt daemon uses meanwhile.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.cluster import Measured, cpu_time_us, running_cluster, tell
from benchmarks.libvirt_host import why_no_libvirt
from benchmarks.measurement import Limit, Pair, Row, Section, compare
from controlplane.cli.dev.stack import HypervisorChoice
from hypervisor.base import Hypervisor
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, DiskConfig, NicConfig, VmConfig
from limiquantix.compute.v1 import node_service_pb2 as node_pb
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from nodedaemon.encode_metrics import to_node_metrics
from nodedaemon.host_meter import HostMeter
from nodedaemon.metrics_sampler import MetricsSampler
from nodedaemon.usage_rates import SHORTEST_S

TITLE = "reading what VMs use, and a daemon at rest; lower is better"
IDLE_LIMIT = Limit(1.0)
_STATISTICS_GROUPS = 1 | 2 | 4 | 8 | 16 | 32
"""libvirt's state, cpu-total, balloon, vcpu, interface and block. Source: virDomainStatsTypes."""
_ACTIVE_NOWAIT = (1 << 0) | (1 << 29)
"""Source: virConnectGetAllDomainStatsFlags."""
_CALL_TIMEOUT_S = 60.0
_SETTLE_S = 3.0
_VM_MEMORY_MIB = 16


@dataclass(frozen=True, slots=True)
class MetricsEffort:
    """How much is measured; `idle_s` is how long daemons are watched doing nothing."""

    round_count: int
    mock_vm_count: int
    real_vm_count: int
    idle_vm_count: int
    idle_s: float


async def measure_metrics(effort: MetricsEffort) -> Section:
    """Run this part; what needs libvirt is left out where there is none."""
    rows = [await _mock_reading(effort)]
    notes: list[str] = []
    if reason := await why_no_libvirt():
        notes.append(f"real VMs left out: {reason}")
        return Section("metrics", TITLE, tuple(rows), tuple(notes))
    async with running_cluster(HypervisorChoice.LIBVIRT) as measured:
        tell(f"starting {effort.real_vm_count} VMs")
        await _start_vms(measured, 0, effort.real_vm_count)
        rows += await _real_reading(measured, effort)
        tell(f"starting {effort.idle_vm_count - effort.real_vm_count} more")
        await _start_vms(measured, effort.real_vm_count, effort.idle_vm_count)
        rows += await _idle_shares(measured, effort)
    return Section("metrics", TITLE, tuple(rows), tuple(notes))


async def _mock_reading(effort: MetricsEffort) -> Row:
    many, few = await _simulated(effort.mock_vm_count), await _simulated(10)
    pairs = await _pairs(effort.round_count, _reading(many), _reading(few))
    for hypervisor in (many, few):
        await hypervisor.close()
    return compare(f"reading of {effort.mock_vm_count} simulated VMs, against 10", pairs, "ms")


async def _simulated(vm_count: int) -> MockHypervisor:
    hypervisor = MockHypervisor(MockSettings(vcpu_count=4 * vm_count, memory_mib=2**20))
    await hypervisor.open()
    for number in range(vm_count):
        vm_id = str(uuid.uuid4())
        disks = tuple(DiskConfig(f"{number}-{disk}", Path("/d")) for disk in range(2))
        nic = NicConfig(f"n{number}", f"52:54:00:00:00:{number % 256:02x}", bridge="br0")
        await hypervisor.create(VmConfig(vm_id, f"vm-{number}", CpuTopology(cores=2), 512, disks=disks, nics=(nic,)))
        await hypervisor.start(vm_id)
    return hypervisor


async def _real_reading(measured: Measured, effort: MetricsEffort) -> list[Row]:
    import libvirt  # noqa: PLC0415 - an optional dependency, asked for before

    uri = measured.cluster.libvirt_uri
    assert uri is not None
    hypervisor = LibvirtHypervisor(uri, measured.data_dir / "bench-console")
    await hypervisor.open()
    connection = await asyncio.to_thread(libvirt.open, uri)
    try:
        direct = _direct(connection)
        pairs = await _pairs(effort.round_count, _reading(hypervisor), direct)
        alone = await _pairs(effort.round_count, _bulk_call(hypervisor), direct)
        async with measured.open_channel() as channel:
            through_api = await _pairs(effort.round_count, await _api_call(measured, channel), direct)
    finally:
        await asyncio.to_thread(connection.close)
        await hypervisor.close()
    count = effort.real_vm_count
    return [
        compare(f"statistics of {count} real VMs, against libvirt's call", alone, "ms"),
        compare(f"reading of {count} real VMs with the host, against libvirt's call", pairs, "ms"),
        compare(
            f"GetNodeMetrics with {count} real VMs, from the last reading, against libvirt's call", through_api, "ms"
        ),
    ]


def _direct(connection: Any) -> Callable[[], Awaitable[object]]:
    return lambda: asyncio.to_thread(connection.getAllDomainStats, _STATISTICS_GROUPS, _ACTIVE_NOWAIT)


def _bulk_call(hypervisor: Hypervisor) -> Callable[[], Awaitable[object]]:
    statistics = hypervisor.statistics
    assert statistics is not None
    return statistics.read_all


def _reading(hypervisor: Hypervisor) -> Callable[[], Awaitable[object]]:
    sampler = MetricsSampler(hypervisor, HostMeter(hypervisor, Path("/")))

    async def read() -> object:
        return to_node_metrics(await sampler.sample(0))

    return read


async def _api_call(measured: Measured, channel: grpc.aio.Channel) -> Callable[[], Awaitable[object]]:
    """Make a call that goes all the way; the daemon answers most from a reading that is at most 2.5 s old."""
    stub = NodeServiceStub(channel)
    request = node_pb.GetNodeMetricsRequest(id=measured.cluster.first_node["id"])

    async def call() -> object:
        return await stub.GetNodeMetrics(request, timeout=_CALL_TIMEOUT_S)

    await call()
    return call


async def _pairs(
    round_count: int, ours: Callable[[], Awaitable[object]], reference: Callable[[], Awaitable[object]]
) -> Sequence[Pair]:
    """Time both in turn, after one round that does not count."""
    pairs = []
    for _ in range(round_count + 1):
        await asyncio.sleep(SHORTEST_S)  # below this a sampler answers from its last reading
        pairs.append(Pair(await _ms(ours), await _ms(reference)))
    return pairs[1:]


async def _ms(call: Callable[[], Awaitable[object]]) -> float:
    began_s = time.perf_counter()
    await call()
    return (time.perf_counter() - began_s) * 1000


async def _start_vms(measured: Measured, first: int, end: int) -> None:
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=_VM_MEMORY_MIB), disks=[DiskDevice(size_gib=1)])
    async with measured.open_channel() as channel:
        stub = VMServiceStub(channel)
        for number in range(first, end):
            request = pb.CreateVMRequest(name=f"vm-{number}", spec=spec, start_on_create=True)
            await stub.CreateVM(request, timeout=_CALL_TIMEOUT_S)


async def _idle_shares(measured: Measured, effort: MetricsEffort) -> list[Row]:
    """Watch the daemon do nothing, and then serve one watcher of its measures."""
    libvirtd = _libvirt_daemon()
    await asyncio.sleep(_SETTLE_S)
    name = f"node daemon with {effort.idle_vm_count} VMs"
    rows = [await _share(f"{name}, at rest", measured.node_daemon, libvirtd, effort.idle_s, IDLE_LIMIT)]
    async with measured.open_channel() as channel:
        request = node_pb.StreamNodeMetricsRequest(node_id=measured.cluster.first_node["id"], interval_sec=5)
        stream = NodeServiceStub(channel).StreamNodeMetrics(request)
        await stream.read()
        rows.append(await _share(f"{name}, measures watched", measured.node_daemon, libvirtd, effort.idle_s, None))
        rows.append(
            await _share("control plane, measures watched", measured.control_plane, libvirtd, effort.idle_s, None)
        )
        stream.cancel()
    return rows


async def _share(
    name: str, process: psutil.Process, reference: psutil.Process, length_s: float, limit: Limit | None
) -> Row:
    """Return how much of one processor a process uses, in percent, beside the libvirt daemon."""
    began_s = time.perf_counter()
    before_us, reference_before_us = await cpu_time_us(process), await cpu_time_us(reference)
    await asyncio.sleep(length_s)
    elapsed_us = (time.perf_counter() - began_s) * 1e6
    ours = 100 * (await cpu_time_us(process) - before_us) / elapsed_us
    theirs = 100 * (await cpu_time_us(reference) - reference_before_us) / elapsed_us
    return compare(f"{name}, against libvirt's daemon", [Pair(ours, max(theirs, 0.001))], "% of a CPU", limit=limit)


def _libvirt_daemon() -> psutil.Process:
    """Find the daemon of the cluster's private libvirt, or the system's."""
    names = ("libvirtd", "virtqemud")
    below = [each for each in psutil.Process().children(recursive=True) if each.name() in names]
    found = below or [each for each in psutil.process_iter() if each.name() in names]
    if not found:
        raise LookupError("no libvirt daemon runs")
    return found[0]
