"""A simulated host sees what arrives from another process, whenever it is told to let it in."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import pytest

from hypervisor.mock import store as mock_store
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.dock import Dock, dock_beside
from hypervisor.mock.host import MockSettings
from hypervisor.mock.store import MockVm
from hypervisor.types import CpuTopology, PowerState, VmConfig
from tests.support.builders import make_id

DEADLINE_S = 60.0


async def test_vm_is_taken_in_though_the_dock_was_looked_at_just_before_its_door_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_path = tmp_path / "mock-vms.json"
    hypervisor = MockHypervisor(MockSettings(state_path=state_path))
    await hypervisor.open()
    open_door = Dock.open_door

    def open_late(self: Dock, vm_id: str) -> None:
        time.sleep(0.3)  # whoever was told that there is news looks meanwhile
        open_door(self, vm_id)

    monkeypatch.setattr(Dock, "open_door", open_late)
    config = VmConfig(make_id(), "guest", CpuTopology(), memory_mib=64)
    assert hypervisor.migration is not None
    await hypervisor.migration.admit(config.vm_id)

    dock, journey = Dock(dock_beside(state_path)), "a" * 32
    assert dock.enter(config.vm_id, json.dumps(mock_store.encode(config)))
    dock.land(config.vm_id, journey, json.dumps(mock_store.encode(MockVm(config, state=PowerState.RUNNING))))
    async with asyncio.timeout(DEADLINE_S):
        for pause_s in itertools.repeat(0.05):
            if dock.was_taken(config.vm_id, journey):
                break
            await asyncio.sleep(pause_s)
    assert (await hypervisor.status(config.vm_id)).state is PowerState.RUNNING
    await hypervisor.close()
