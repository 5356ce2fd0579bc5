"""How busy a simulated host is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor.base import Hypervisor
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, VmConfig
from nodedaemon.host_meter import HostMeter
from telemetry.host import UsageSampler
from tests.support.builders import make_id


class Clock:
    """Time that a test moves."""

    at_s = 1000.0

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def hypervisor(clock: Clock) -> MockHypervisor:
    made = MockHypervisor(MockSettings(vcpu_count=8, memory_mib=1024), now_s=clock)
    await made.open()
    return made


async def run(hypervisor: Hypervisor, vcpu_count: int) -> str:
    config = VmConfig(make_id(), f"vm-{vcpu_count}", CpuTopology(cores=vcpu_count), memory_mib=128)
    await hypervisor.create(config)
    await hypervisor.start(config.vm_id)
    return config.vm_id


async def test_simulated_host_is_as_busy_as_its_vms(hypervisor: MockHypervisor, clock: Clock, tmp_path: Path) -> None:
    meter = HostMeter(hypervisor, tmp_path)
    idle = await meter.sample()
    assert (idle.cpu_percent, idle.load_1m, idle.memory_used_bytes) == (0, 0, 0)
    assert idle.memory_total_bytes == idle.memory_available_bytes == 1024 * 2**20
    for vcpu_count in (1, 3):
        await hypervisor.set_load(await run(hypervisor, vcpu_count), 1.0)
    clock.at_s += 60
    busy = await meter.sample()
    assert busy.cpu_percent == pytest.approx(50)
    assert busy.load_1m == pytest.approx(4)
    assert 128 * 2**20 < busy.memory_used_bytes < 256 * 2**20
    assert busy.memory_available_bytes == 1024 * 2**20 - busy.memory_used_bytes


async def test_paused_vm_keeps_its_memory_and_no_processor(
    hypervisor: MockHypervisor, clock: Clock, tmp_path: Path
) -> None:
    meter = HostMeter(hypervisor, tmp_path)
    vm_id = await run(hypervisor, 2)
    await hypervisor.set_load(vm_id, 1.0)
    clock.at_s += 60
    await hypervisor.pause(vm_id)
    paused = await meter.sample()
    assert paused.cpu_percent == 0
    assert paused.memory_used_bytes > 64 * 2**20


async def test_more_than_all_processors_is_all_of_them(
    hypervisor: MockHypervisor, clock: Clock, tmp_path: Path
) -> None:
    for _ in range(3):
        await hypervisor.set_load(await run(hypervisor, 4), 1.0)
    clock.at_s += 60
    assert (await HostMeter(hypervisor, tmp_path).sample()).cpu_percent == 100


async def test_real_host_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    monkeypatch.setattr(MockHypervisor, "simulated_usage", None)
    measured = await HostMeter(hypervisor, tmp_path).sample()
    assert measured.memory_total_bytes == UsageSampler(tmp_path).sample().memory_total_bytes
