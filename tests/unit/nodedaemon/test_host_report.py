"""What a host tells of itself."""

from __future__ import annotations

import uuid
from pathlib import Path

from hypervisor.mock import MockHypervisor
from hypervisor.types import CpuTopology, VmConfig
from nodedaemon.change_count import StateChanges
from nodedaemon.host_report import HostReport
from nodedaemon.observer import ObservedVm, VmObserver
from telemetry.host import UsageSampler


async def test_full_state_names_the_count_before_which_nothing_is_missing(tmp_path: Path) -> None:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(hypervisor, observer, UsageSampler(tmp_path), hostname="h1", labels={}, node_id="")
    old, new = (VmConfig(str(uuid.uuid4()), name, CpuTopology(), memory_mib=64) for name in ("old", "new"))
    await hypervisor.create(old)
    before = await observer.read(old.vm_id)
    inventory = await report.full_state()
    await hypervisor.create(new)
    after = await observer.read(new.vm_id)
    assert [vm.id for vm in inventory.vms] == [old.vm_id]
    assert isinstance(before, ObservedVm)
    assert before.change.count <= inventory.as_of_change_count < after.change.count
