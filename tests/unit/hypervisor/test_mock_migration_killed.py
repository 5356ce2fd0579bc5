"""A simulated VM that is killed while it is handed over is nowhere, like a real one whose process ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hypervisor.errors import MigrationFailed
from hypervisor.migration import Arrival, MigrationOptions, Places, Route
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig
from tests.support.builders import make_id


async def test_vm_killed_as_it_is_handed_over_runs_on_neither_host(tmp_path: Path) -> None:
    config = VmConfig(make_id(), "guest", CpuTopology(), memory_mib=64)

    async def sleep_and_kill(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if (await source.status(config.vm_id)).state is PowerState.PAUSED:
            assert source.processes is not None
            assert await source.processes.kill({config.vm_id}) == [config.vm_id]

    source = MockHypervisor(MockSettings(state_path=tmp_path / "a.json"), sleep=sleep_and_kill)
    target = MockHypervisor(MockSettings(state_path=tmp_path / "b.json"))
    await source.open()
    await target.open()
    assert source.migration is not None
    assert target.migration is not None
    await source.create(config)
    await source.start(config.vm_id)
    await target.migration.prepare(Arrival(config))
    await target.migration.admit(config.vm_id)

    route = Route(target.migration.peer_uri, Places(tmp_path, tmp_path), Places(tmp_path, tmp_path))
    with pytest.raises(MigrationFailed, match="became crashed meanwhile"):
        await source.migration.send(config.vm_id, MigrationOptions(route))

    assert (await source.status(config.vm_id)).state is PowerState.CRASHED
    assert await target.list() == []
    await source.close()
    await target.close()
