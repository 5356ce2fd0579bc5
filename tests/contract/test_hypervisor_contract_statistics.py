"""The contract of statistics: who is in them, and that they move with the guest."""

from __future__ import annotations

import asyncio

import pytest

from hypervisor.base import Hypervisor
from hypervisor.statistics import VmStatistics
from tests.contract.conftest import BackendHost
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 60.0


async def read(backend: Hypervisor) -> dict[str, VmStatistics]:
    assert backend.statistics is not None
    found = await backend.statistics.read_all()
    assert len({vm.vm_id for vm in found}) == len(found)
    return {vm.vm_id: vm for vm in found}


async def test_fault_16_statistics_are_of_vms_in_memory_with_what_they_have(
    backend: Hypervisor, host: BackendHost
) -> None:
    off, running, paused = host.config(), host.config(deaf=True), host.config(deaf=True)
    for config in (off, running, paused):
        await backend.create(config)
    for config in (running, paused):
        await backend.start(config.vm_id)
    await backend.pause(paused.vm_id)

    found = await read(backend)

    assert found.keys() == {running.vm_id, paused.vm_id}
    vm = found[running.vm_id]
    assert (vm.name, vm.vcpu_count, vm.is_complete) == (running.name, running.cpu.vcpu_count, True)
    assert vm.memory_total_bytes == running.memory_mib * 2**20
    assert vm.memory_used_bytes > 0
    assert [disk.disk_id for disk in vm.disks] == [disk.disk_id for disk in running.disks]
    assert len({disk.target for disk in vm.disks}) == len(running.disks)


async def test_fault_16_cpu_time_grows_while_a_guest_runs(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config(deaf=True)
    await backend.create(config)
    await backend.start(config.vm_id)
    before = (await read(backend))[config.vm_id].cpu_time_ns

    async def look() -> bool | None:
        return (await read(backend))[config.vm_id].cpu_time_ns > before or None

    await eventually(look, "more CPU time", DEADLINE_S)


async def test_statistics_of_a_vm_that_stopped_are_gone(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config(deaf=True)
    await backend.create(config)
    await backend.start(config.vm_id)
    assert config.vm_id in await read(backend)
    await backend.force_stop(config.vm_id)
    assert config.vm_id not in await read(backend)


@pytest.mark.parametrize("count", [0, 3])
async def test_statistics_of_any_number_of_vms_are_read_at_once(
    backend: Hypervisor, host: BackendHost, count: int
) -> None:
    configs = [host.config(deaf=True) for _ in range(count)]
    for config in configs:
        await backend.create(config)
        await backend.start(config.vm_id)
    readings = await asyncio.gather(*(read(backend) for _ in range(3)))
    assert [set(reading) for reading in readings] == [{config.vm_id for config in configs}] * 3
