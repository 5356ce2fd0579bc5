"""What real guests use, as their host measures it: a busy processor, the right disk, a guest that hangs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.libvirt.qemu_process import find_processes
from hypervisor.types import Accelerator, CpuTopology, DiskBus, DiskConfig, DiskFormat, VmConfig
from nodedaemon.host_meter import HostMeter
from nodedaemon.metrics_sampler import MetricsSampler, Sample
from nodedaemon.usage_rates import SHORTEST_S, VmUsage
from tests.support import serial_guests
from tests.support.private_libvirt_host import eventually, private_libvirt, skip_unless_private_libvirt, virsh

DEADLINE_S = 60.0
WRITES = 8
WRITTEN_BYTES = WRITES * 64 * 512

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Guests:
    """Guests on a private libvirt daemon, and what samples them."""

    uri: str
    directory: Path
    backend: LibvirtHypervisor
    sampler: MetricsSampler

    async def start(self, code: bytes, *disks: DiskConfig) -> VmConfig:
        vm_id = str(uuid.uuid4())
        boot = DiskConfig(
            str(uuid.uuid4()),
            serial_guests.write_disk(self.directory / f"{vm_id}.raw", code),
            DiskFormat.RAW,
            boot_index=1,
        )
        config = VmConfig(vm_id, f"vm-{vm_id[:8]}", CpuTopology(), 16, disks=(boot, *disks))
        await self.backend.create(config)
        await self.backend.start(vm_id)
        return config

    def empty_disk(self, disk_id: str, bus: DiskBus = DiskBus.VIRTIO) -> DiskConfig:
        path = self.directory / f"{uuid.uuid4()}.raw"
        path.write_bytes(bytes(2**20))
        return DiskConfig(disk_id, path, DiskFormat.RAW, bus)

    async def heard(self, vm_id: str, words: bytes) -> None:
        async def look() -> bool | None:
            return words in (await self.backend.read_console_log(vm_id, 0, 1000)).data or None

        await eventually(look, "the guest's words", DEADLINE_S)

    async def sample(self) -> Sample:
        """Read anew."""
        await asyncio.sleep(SHORTEST_S)  # the sampler reads no sooner
        return await self.sampler.sample(0)

    async def sampled(self, *, with_error: bool) -> Sample:
        """Sample until there is an error, or none."""

        async def look() -> Sample | None:
            sample = await self.sample()
            return sample if bool(sample.vms_error) == with_error else None

        return await eventually(look, "a reading with" if with_error else "a reading without error", DEADLINE_S)


def of(sample: Sample, vm_id: str) -> VmUsage:
    return next(usage for usage in sample.vms if usage.counters.vm_id == vm_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guests]:
    directory = tmp_path_factory.mktemp("libvirt")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory) as libvirt:
        backend = LibvirtHypervisor(libvirt.uri, directory / "console", Accelerator.TCG)
        await backend.open()
        yield Guests(libvirt.uri, directory, backend, MetricsSampler(backend, HostMeter(backend, directory)))
        for vm in await backend.list():
            await backend.force_stop(vm.vm_id)
            await backend.delete(vm.vm_id)
        await backend.close()


async def test_fault_16_busy_guest_shows_its_cpu_and_one_that_sleeps_does_not(guests: Guests) -> None:
    busy, idle = await guests.start(serial_guests.BUSY), await guests.start(serial_guests.IDLE)
    for config in (busy, idle):
        await guests.heard(config.vm_id, b"R")
    process = psutil.Process(find_processes([busy.vm_id])[busy.vm_id].pid)

    async def sampled() -> tuple[float, Sample, float]:
        """Sample, and say what the process had used before and after: how long that takes is up to the machine."""
        before_s = sum(process.cpu_times()[:2])
        sample = await guests.sample()
        return before_s, sample, sum(process.cpu_times()[:2])

    before_first_s, first, after_first_s = await sampled()
    await asyncio.sleep(1.0)  # what is measured is a time
    before_second_s, second, after_second_s = await sampled()

    busy_percent, elapsed_s = of(second, busy.vm_id).rates.cpu_percent, second.at_s - first.at_s
    least_percent = 100 * (before_second_s - after_first_s) / elapsed_s
    most_percent = 100 * (after_second_s - before_first_s) / elapsed_s
    assert 0.9 * min(100.0, least_percent) <= busy_percent <= 1.1 * most_percent
    assert busy_percent > 3 * of(second, idle.vm_id).rates.cpu_percent
    assert second.vms_error == ""
    await guests.backend.force_stop(busy.vm_id)


async def test_fault_16_writes_are_counted_at_the_disk_they_went_to(guests: Guests) -> None:
    written, other = guests.empty_disk(str(uuid.uuid4())), guests.empty_disk(str(uuid.uuid4()), DiskBus.SATA)
    config = await guests.start(serial_guests.second_disk_writer(WRITES), written, other)
    ids = [written.disk_id, other.disk_id, config.disks[0].disk_id]
    await guests.heard(config.vm_id, b"W")

    usage = of(await guests.sample(), config.vm_id)

    disks = {disk.disk_id: disk for disk in usage.counters.disks}
    assert set(disks) == set(ids)
    assert disks[ids[0]].write_bytes == WRITTEN_BYTES
    assert disks[ids[0]].write_count >= WRITES
    assert (disks[ids[1]].write_bytes, disks[ids[2]].write_bytes) == (0, 0)
    assert disks[ids[2]].read_bytes >= 512
    assert [disks[name].target for name in (ids[2], ids[0], ids[1])] == ["vda", "vdb", "sda"]


async def test_guest_that_hangs_hides_no_other_and_what_it_uses_is_still_told(guests: Guests) -> None:
    hung, other = await guests.start(serial_guests.IDLE), await guests.start(serial_guests.IDLE)
    await guests.sampler.sample(0)
    process = psutil.Process(find_processes([hung.vm_id])[hung.vm_id].pid)
    process.suspend()
    sample = await guests.sampled(with_error=True)
    assert {hung.vm_id, other.vm_id} <= {usage.counters.vm_id for usage in sample.vms}
    assert "as of before" in sample.vms_error
    assert of(sample, other.vm_id).counters.disks
    assert of(sample, other.vm_id).counters.memory_total_bytes == 16 * 2**20
    process.resume()
    await guests.sampled(with_error=False)


async def test_statistics_of_a_domain_of_another_tool_are_told_without_ids_of_ours(guests: Guests) -> None:
    vm_id, disk = str(uuid.uuid4()), guests.empty_disk("x")
    document = guests.directory / f"{vm_id}.xml"
    document.write_text(
        f"<domain type='qemu'><name>foreign</name><uuid>{vm_id}</uuid><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='raw'/><source file='{disk.path}'/><target dev='sdb' bus='sata'/></disk>"
        "</devices></domain>"
    )
    await virsh(guests.uri, "define", str(document))
    await guests.backend.start(vm_id)
    counters = of(await guests.sampled(with_error=False), vm_id).counters
    assert counters.name == "foreign"
    assert [(disk.disk_id, disk.target) for disk in counters.disks] == [("", "sdb")]
