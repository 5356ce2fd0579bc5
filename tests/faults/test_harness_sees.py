"""The harness finds what it is there to find: each check, on what must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.domain.event import VM, Change, Event, EventType, LoggedEvent
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState, Vm
from hypervisor import types as hv
from hypervisor.hardware import PLAIN
from hypervisor.mock.store import MockMachine, MockVm
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VmSpec, VmStatus
from tests.support.builders import GIB, START_OF_TIME, make_id, make_node, make_vm
from tests.support.databases import fresh_sqlite
from tests.support.failure_harness_cases import CASES
from tests.support.failure_harness_checks import Everything, faults_of
from tests.support.failure_harness_databases import database_pool
from tests.support.failure_harness_faults import Fault, Place, Strike
from tests.support.failure_harness_scene import run_once
from tests.support.failure_harness_table import Cell, lines_of

NODE = make_node(allocated=Capacity(1, 128 * 2**20))
DISK = hv.DiskConfig(disk_id=make_id(), path=Path("/images/a.qcow2"), format=hv.DiskFormat.QCOW2)
SPEC = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), disks=[DiskDevice(id=DISK.disk_id)])
ROW = make_vm(node_id=NODE.id, spec=SPEC)
DOMAIN = MockVm(hv.VmConfig(ROW.id, ROW.name, hv.CpuTopology(), 128, disks=(DISK,)))


def logged(vm: Vm, change: Change, version: int = 1) -> LoggedEvent:
    event = Event(EventType.VM_CREATED)
    return LoggedEvent(make_id(), 1, START_OF_TIME, VM, vm.id, version, vm.project_id, vm.node_id, change, event)


WHOLE = Everything(
    nodes=[NODE],
    rows={ROW.id: ROW},
    domains={ROW.id: DOMAIN},
    images={ROW.id: ["a.qcow2"]},
    departed={},
    operations=[],
    events=[logged(ROW, Change.ADDED)],
    asks_for_full_sync=False,
)


def _running(machine: MockMachine) -> Everything:
    """The world in which the VM runs with this, and its row knows nothing of it."""
    domain = MockVm(DOMAIN.config, state=hv.PowerState.RUNNING, running=machine)
    return replace(WHOLE, rows={ROW.id: replace(ROW, power_state=PowerState.RUNNING)}, domains={ROW.id: domain})


def _with_domain(config: hv.VmConfig) -> Everything:
    """The world in which the host has the VM like this."""
    return replace(WHOLE, domains={ROW.id: MockVm(config)})


def test_whole_world_has_no_faults() -> None:
    assert list(faults_of(WHOLE)) == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (replace(WHOLE, domains={}, images={}), "a row has no domain"),
        (replace(WHOLE, domains={}), "images have no domain"),
        (replace(WHOLE, images={}), "a domain's images are"),
        (replace(WHOLE, images={ROW.id: ["a.qcow2", ".b.qcow2.part"]}), "a domain's images are"),
        (replace(WHOLE, rows={}), "a domain has no row"),
        (replace(WHOLE, nodes=[replace(NODE, allocated=Capacity(0, 0))]), "claims are"),
        (replace(WHOLE, nodes=[replace(NODE, allocated=Capacity(1, GIB))]), "claims are"),
        (replace(WHOLE, rows={ROW.id: replace(ROW, power_state=PowerState.RUNNING)}), "the state is"),
        (replace(WHOLE, events=[]), "a VM was created 0 times"),
        (replace(WHOLE, events=[logged(ROW, Change.ADDED)] * 2), "a VM was created 2 times"),
        (
            replace(WHOLE, events=[logged(ROW, Change.ADDED), logged(ROW, Change.DELETED, 2)]),
            "a VM was deleted 1 times",
        ),
        (replace(WHOLE, asks_for_full_sync=True), "digest"),
        (
            replace(WHOLE, rows={ROW.id: replace(ROW, details=VmStatus(pending_changes=["spec.boot"]))}),
            "changes wait for the next start of a VM that is off",
        ),
        (
            replace(WHOLE, rows={ROW.id: replace(ROW, details=VmStatus(devices_in_doubt=[DISK.disk_id]))}),
            "devices are in doubt",
        ),
        (_with_domain(replace(DOMAIN.config, disks=())), "the disks are"),
        (_with_domain(replace(DOMAIN.config, nics=(hv.NicConfig("n", "52:54:00:00:00:01"),))), "the network cards are"),
        (_with_domain(replace(DOMAIN.config, cdroms=(hv.CdromConfig("c"),))), "the drives are"),
        (_running(MockMachine(hv.CpuTopology(3), 128, PLAIN)), "more than is claimed"),
        (_running(MockMachine(hv.CpuTopology(), 64, PLAIN)), "nothing shows it"),
    ],
)
def test_world_that_is_not_whole_is_seen(broken: Everything, words: str) -> None:
    assert any(words in fault for fault in faults_of(broken))


def test_operation_without_an_end_is_seen() -> None:
    left = Operation(
        make_id(), "vm.start", "vm", ROW.id, "", "", START_OF_TIME + timedelta(), (), state=OperationState.RUNNING
    )

    assert [fault for fault in faults_of(replace(WHOLE, operations=[left])) if "did not end" in fault]


async def test_run_that_is_struck_tells_where_and_a_wrong_effect_is_seen(tmp_path: Path) -> None:
    wrong = replace(CASES[0], is_there=lambda end: end.row is None)
    async with database_pool(fresh_sqlite, tmp_path, 1) as databases, databases.one() as database:
        struck = await run_once(wrong, database, tmp_path / "a", Strike(3, Fault.KILL_DAEMON))

    assert struck.has_struck
    assert [boundary.place for boundary in struck.boundaries][:1] == [Place.BEFORE_COMMIT]
    assert ["its effect is not there" in fault for fault in struck.faults] == [True]


def test_table_has_a_line_for_each_boundary_and_says_what_failed() -> None:
    def cell(boundary: str, fault: Fault, *, is_ok: bool) -> Cell:
        return Cell.from_words(Cell("sqlite", "create", boundary, fault, is_ok).as_words())

    lines: Sequence[str] = lines_of([cell("0 a", Fault.FAIL, is_ok=True), cell("1 b", Fault.TWICE, is_ok=False)])

    assert [line.split() for line in lines if line] == [
        ["create", "(sqlite)", "fail", "twice"],
        ["0", "a", "ok"],
        ["1", "b", "FAIL"],
        ["2", "runs:", "1", "ok,", "1", "FAIL"],
    ]
