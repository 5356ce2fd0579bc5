"""Measures and events of a host on the mock: one reading for all, real numbers, and readers that are too slow."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.statistics import VmStatistics
from hypervisor.types import CpuTopology, DiskConfig, NicConfig, VmConfig
from limiquantix.errors import ResourceExhausted
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.event_stream import EventStreams
from nodedaemon.host_meter import HostMeter
from nodedaemon.load_watch import LoadWatch, LoadWatchConfig
from nodedaemon.metrics_sampler import MetricsSampler
from nodedaemon.usage_rates import SHORTEST_S
from telemetry.counters import read_disks, read_nics
from telemetry.host import HostUsage, UsageSampler
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 60.0


@pytest.fixture
async def hypervisor() -> AsyncIterator[MockHypervisor]:
    mock = MockHypervisor()
    await mock.open()
    yield mock
    await mock.close()


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts


async def start(hypervisor: MockHypervisor, *, load: float = 0.5) -> VmConfig:
    vm_id = str(uuid.uuid4())
    config = VmConfig(
        vm_id,
        "web",
        CpuTopology(cores=2),
        64,
        disks=(DiskConfig("d1", Path("/d1")), DiskConfig("d2", Path("/d2"), readonly=True)),
        nics=(NicConfig("n1", "52:54:00:00:00:01", bridge="br0"),),
    )
    await hypervisor.create(config)
    await hypervisor.start(vm_id)
    await hypervisor.set_load(vm_id, load)
    return config


async def counters_of(hypervisor: MockHypervisor, vm_id: str) -> VmStatistics:
    return next(vm for vm in await hypervisor.statistics.read_all() if vm.vm_id == vm_id)  # type: ignore[union-attr]


async def test_fault_23_mock_counters_move_with_the_guest_and_stand_still_with_it(hypervisor: MockHypervisor) -> None:
    config = await start(hypervisor)
    first = await counters_of(hypervisor, config.vm_id)

    async def moved() -> VmStatistics | None:
        counters = await counters_of(hypervisor, config.vm_id)
        return counters if counters.disks[0].write_bytes > first.disks[0].write_bytes else None

    second = await eventually(moved, "a write", DEADLINE_S)
    assert second.cpu_time_ns > first.cpu_time_ns
    assert second.disks[0].read_bytes > first.disks[0].read_bytes
    assert second.nics[0].rx_bytes > first.nics[0].rx_bytes
    assert second.disks[1].write_bytes == 0
    assert {(disk.disk_id, disk.target) for disk in second.disks} == {("d1", "vda"), ("d2", "vdb")}
    await hypervisor.pause(config.vm_id)
    assert await counters_of(hypervisor, config.vm_id) == await counters_of(hypervisor, config.vm_id)
    await hypervisor.resume(config.vm_id)
    await hypervisor.reboot(config.vm_id)
    after = await counters_of(hypervisor, config.vm_id)
    assert after.disks[0].write_bytes >= second.disks[0].write_bytes


def is_exact(metrics: pb.NodeMetrics) -> bool:
    """Whether a host with one VM, all of whose processors are busy, is told of as it is."""
    (vm,) = metrics.vms
    is_busy = vm.cpu_usage_percent == pytest.approx(100, abs=5)
    return bool(is_busy and metrics.memory_used_bytes == pytest.approx(vm.memory_used_bytes, rel=0.05))


async def test_stream_begins_with_real_percentages(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create(vcpu_count=2, disk_count=1)
    await daemon.start(vm_id)
    await daemon.hypervisor.set_load(vm_id, 1.0)
    async with (
        asyncio.timeout(DEADLINE_S),
        aclosing(
            daemon.servicer.StreamMetrics(pb.StreamMetricsRequest(interval_seconds=1), None)  # type: ignore[type-var]
        ) as stream,
    ):
        metrics = await anext(stream)
        (vm,) = metrics.vms
        assert (vm.vm_id, vm.name) == (vm_id, "web")
        assert vm.cpu_usage_percent == pytest.approx(100, abs=50)
        assert vm.usage.disk_write_bytes == vm.disk_write_bytes == vm.usage.disks[0].write_bytes > 0
        assert vm.usage.disk_write_bytes_per_sec > 0
        assert vm.usage.cpu_time_ns > 0
        assert metrics.memory_total_bytes == (await daemon.hypervisor.capabilities()).max_memory_bytes
        assert metrics.storage_total_bytes >= metrics.storage_used_bytes > 0
        following = await anext(stream)
        assert following.timestamp.ToNanoseconds() > metrics.timestamp.ToNanoseconds()
        while not is_exact(following):  # what is read one after the other is apart by what else the machine does
            following = await anext(stream)


async def test_host_counters_are_those_of_this_machine(daemon: NodeDaemonParts) -> None:
    async with aclosing(daemon.servicer.StreamMetrics(pb.StreamMetricsRequest(), None)) as stream:  # type: ignore[type-var]
        metrics = await anext(stream)
    assert {nic.interface for nic in metrics.networks} == {nic.name for nic in read_nics()}
    assert {disk.device for disk in metrics.disks} == {disk.device for disk in read_disks()}
    assert 0 <= metrics.cpu_usage_percent <= 100
    assert all(0 <= disk.utilization_percent <= 100 for disk in metrics.disks)


async def test_any_number_of_streams_share_one_reading(hypervisor: MockHypervisor, tmp_path: Path) -> None:
    await start(hypervisor)
    sampler = MetricsSampler(hypervisor, HostMeter(hypervisor, tmp_path))
    samples = await asyncio.gather(*(sampler.sample(1.0) for _ in range(50)))
    assert len({id(sample) for sample in samples}) == 1


async def test_fault_16_status_shows_device_counters_without_waiting_for_them(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create(disk_count=1)
    await daemon.start(vm_id)
    await daemon.hypervisor.set_load(vm_id, 1.0)

    async def told() -> pb.VMStatusResponse | None:
        status = await daemon.status(vm_id)
        return status if status.resource_usage.disks else None

    status = await eventually(told, "a reading", DEADLINE_S)
    assert status.resource_usage.disk_write_bytes == status.resource_usage.disks[0].write_bytes
    await daemon.hypervisor.force_stop(vm_id)
    off = (await daemon.status(vm_id)).resource_usage
    assert off == pb.ResourceUsage()


async def test_backend_that_hangs_leaves_what_can_be_told(hypervisor: MockHypervisor, tmp_path: Path) -> None:
    config = await start(hypervisor)
    sampler = MetricsSampler(hypervisor, HostMeter(hypervisor, tmp_path))
    before = await sampler.sample(0)
    hypervisor.set_faults(MockFaults((Fault(Operation.READ_STATISTICS, Failure.UNAVAILABLE),)))
    await asyncio.sleep(SHORTEST_S)
    sample = await sampler.sample(0)
    assert sample.vms_error == "disks and network cards are as of before: simulated fault"
    (usage,) = sample.vms
    assert usage.counters.disks == before.vms[0].counters.disks
    assert usage.counters.vm_id == config.vm_id
    hypervisor.set_faults(MockFaults(tuple(Fault(o, Failure.UNAVAILABLE) for o in Operation)))
    await asyncio.sleep(SHORTEST_S)
    assert dataclasses.astuple(await sampler.sample(0))[-2:] == ((), "simulated fault")


async def test_fault_17_events_are_the_hypervisors_own_and_nothing_else(daemon: NodeDaemonParts) -> None:
    stream = daemon.servicer.StreamEvents(Empty(), None)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    vm_id = await daemon.create()
    await daemon.start(vm_id)
    await daemon.hypervisor.pause(vm_id)
    await daemon.hypervisor.crash(vm_id)
    daemon.hypervisor.lose_events()
    async with asyncio.timeout(DEADLINE_S):
        events = [await first, *[await anext(stream) for _ in range(4)]]
    assert [event.type for event in events] == [
        pb.EVENT_TYPE_VM_DEFINED,
        pb.EVENT_TYPE_VM_STARTED,
        pb.EVENT_TYPE_VM_PAUSED,
        pb.EVENT_TYPE_VM_CRASHED,
        pb.EVENT_TYPE_EVENTS_MISSED,
    ]
    assert [event.vm_id for event in events] == [vm_id] * 4 + [""]
    assert [event.metadata.get("state") for event in events] == ["stopped", "running", "paused", "crashed", None]
    assert len({event.id for event in events}) == 5
    quiet = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([quiet], timeout=0.2)
    assert not done
    quiet.cancel()


class Loads:
    """A host whose processors are busy as the test says, one measure after another, the last one for ever."""

    def __init__(self, *cpu_percents: float) -> None:
        self._cpu_percents = list(cpu_percents)
        self.usage = UsageSampler(Path("/")).sample()

    async def sample(self) -> HostUsage:
        percent = self._cpu_percents.pop(0) if len(self._cpu_percents) > 1 else self._cpu_percents[0]
        return dataclasses.replace(self.usage, cpu_percent=percent, memory_used_bytes=0)


async def test_host_that_is_overloaded_and_recovers_tells_so_once_among_the_events(hypervisor: MockHypervisor) -> None:
    loads = Loads(99, 99, 99, 99, 85, 85, 85, 10, 10, 10)
    config = LoadWatchConfig(interval_s=0.001)
    stream = EventStreams(hypervisor, watch_load=lambda: LoadWatch(loads, config)).events()
    async with asyncio.timeout(DEADLINE_S):
        overloaded, recovered = await anext(stream), await anext(stream)
    assert (overloaded.type, recovered.type) == (pb.EVENT_TYPE_NODE_OVERLOADED, pb.EVENT_TYPE_NODE_RECOVERED)
    assert overloaded.message == "CPU at 99 % (limit 90 %)"
    assert (overloaded.vm_id, overloaded.metadata["cpu_percent"]) == ("", "99.0")
    await stream.aclose()


async def test_reader_of_events_that_falls_behind_is_cut_off(hypervisor: MockHypervisor) -> None:
    stream = EventStreams(hypervisor, max_waiting=10).events()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for _ in range(12):
        hypervisor.lose_events()
    with pytest.raises(ResourceExhausted) as caught:
        await first
    assert caught.value.reason == "WATCH_TOO_SLOW"


async def test_event_streams_beyond_the_bound_are_refused_and_leave_their_place(hypervisor: MockHypervisor) -> None:
    streams = EventStreams(hypervisor)
    open_streams = [streams.events() for _ in range(64)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in open_streams]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted):
        await anext(streams.events())
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    again = asyncio.ensure_future(anext(streams.events()))
    await asyncio.sleep(0)
    hypervisor.lose_events()
    assert (await again).type == pb.EVENT_TYPE_EVENTS_MISSED
