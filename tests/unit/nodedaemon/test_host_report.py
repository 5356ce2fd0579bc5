"""What a host tells of itself."""

from __future__ import annotations

import errno
import hashlib
import uuid
from pathlib import Path

import psutil
import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.types import CpuTopology, PowerState, VmConfig, VmStatus
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.inventory import state_hash
from limiquantix.rpc.validation import violations_of
from nodedaemon import encode
from nodedaemon.change_count import Change, StateChanges
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.observer import GoneVm, ObservedVm, VmObserver
from nodedaemon.storage_domains import ID_FILE
from tests.support.node_daemon_parts import node_daemon_parts


async def test_full_state_names_the_count_before_which_nothing_is_missing(tmp_path: Path) -> None:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(hypervisor, observer, HostMeter(hypervisor, tmp_path), hostname="h1", labels={}, node_id="")
    old, new = (VmConfig(str(uuid.uuid4()), name, CpuTopology(), memory_mib=64) for name in ("old", "new"))
    await hypervisor.create(old)
    before = await observer.read(old.vm_id)
    inventory = await report.full_state()
    await hypervisor.create(new)
    after = await observer.read(new.vm_id)
    assert [vm.id for vm in inventory.vms] == [old.vm_id]
    assert isinstance(before, ObservedVm)
    assert before.change.count <= inventory.as_of_change_count < after.change.count


async def test_reports_carry_size_owner_and_generation_of_running_stopped_and_foreign_vms(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        running, stopped = await daemon.create(vcpu_count=4), await daemon.create(vcpu_count=2)
        await daemon.start(running)
        await daemon.generations.accept(running, 7)
        foreign = VmConfig(str(uuid.uuid4()), "legacy", CpuTopology(cores=3), memory_mib=96)
        await daemon.hypervisor.define_behind_our_back(foreign)
        inventory = await daemon.report.full_state()
    told = {vm.id: (vm.state, vm.vcpu_count, vm.memory_mib, vm.is_managed, vm.generation) for vm in inventory.vms}
    assert told == {
        running: (pb.VM_POWER_STATE_RUNNING, 4, 64, True, 7),
        stopped: (pb.VM_POWER_STATE_STOPPED, 2, 64, True, 0),
        foreign.vm_id: (pb.VM_POWER_STATE_STOPPED, 3, 96, False, 0),
    }


async def test_heartbeat_and_full_state_carry_the_digest_of_exactly_what_is_reported(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        empty = await daemon.report.heartbeat()
        for _ in range(3):
            await daemon.start(await daemon.create())
        await daemon.hypervisor.define_behind_our_back(VmConfig(str(uuid.uuid4()), "f", CpuTopology(), 64))
        inventory, beat = await daemon.report.full_state(), await daemon.report.heartbeat()
        await daemon.hypervisor.crash(inventory.vms[0].id if inventory.vms[0].is_managed else inventory.vms[1].id)
        later = await daemon.report.heartbeat()
    assert empty.state_hash == state_hash({}) == hashlib.sha256(b"").hexdigest()
    lines = "".join(f"{vm.id} {vm.state}\n" for vm in sorted(inventory.vms, key=lambda vm: vm.id))
    assert inventory.state_hash == hashlib.sha256(lines.encode()).hexdigest()
    assert beat.state_hash == inventory.state_hash
    assert later.state_hash != inventory.state_hash


async def test_heartbeat_keeps_to_the_last_count_of_vms_while_the_hypervisor_does_not_answer(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        await daemon.start(await daemon.create())
        before = await daemon.report.heartbeat()
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.LIST, Failure.UNAVAILABLE),)))
        during = await daemon.report.heartbeat()
    assert (before.running_vm_count, during.running_vm_count) == (1, 1), "none would prove that none runs"


async def test_registration_tells_storage_networks_and_bridges(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        daemon.report.serve_at("127.0.0.1:0", 9090, "")
        request = await daemon.report.registration()
        again = await daemon.report.registration()
    (domain,) = request.storage_domains
    assert domain.path == str(tmp_path)
    assert domain.id == again.storage_domains[0].id == (tmp_path / ID_FILE).read_text().strip()
    assert 0 < domain.free_bytes <= domain.total_bytes
    assert (list(request.bridges), list(request.host_networks)) == (["br0", "br1", "virbr0"], ["default"])
    assert violations_of(request) == []


async def test_registration_tells_no_storage_whose_id_is_damaged(tmp_path: Path) -> None:
    (tmp_path / ID_FILE).write_text("nonsense")
    async with node_daemon_parts(tmp_path) as daemon:
        daemon.report.serve_at("127.0.0.1:0", 9090, "")
        assert list((await daemon.report.registration()).storage_domains) == []


async def test_state_reads_the_same_in_the_digest_as_in_the_report() -> None:
    for state in PowerState:
        vm = ObservedVm(VmStatus(str(uuid.uuid4()), "v", state), Change(1, state, None), 0.0)
        report = encode.to_report(vm)
        assert encode.inventory_hash([vm]) == state_hash({report.id: report.state})


async def test_report_of_a_vm_beyond_the_contracts_bounds_is_still_valid() -> None:
    status = VmStatus(str(uuid.uuid4()), "v" * 300, PowerState.STOPPED, False, vcpu_count=2**20, memory_mib=2**50)
    report = encode.to_report(ObservedVm(status, Change(1, status.state, None), 0.0, generation=2**63 - 1))
    assert violations_of(pb.SyncFullStateRequest(node_id=str(uuid.uuid4()), vms=[report])) == []


async def test_report_of_a_vm_that_is_gone_names_the_generation_that_removed_it(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = await daemon.create()
        await daemon.generations.accept(vm_id, 9)
        await daemon.hypervisor.delete(vm_id)
        observer = VmObserver(daemon.hypervisor, StateChanges(2), daemon.generations.newest)
        gone = await observer.read_or_gone(vm_id)
    assert isinstance(gone, GoneVm)
    report = encode.to_notification(str(uuid.uuid4()), gone, 0.0)
    assert (report.event_type, report.vm.id, report.vm.generation) == (pb.VM_CHANGE_DELETED, vm_id, 9)


async def test_storage_that_is_lost_is_told_as_it_was_and_not_looked_at_again(tmp_path: Path) -> None:
    """Each look at one that hangs would keep a thread; and without its id nobody would know what is lost."""
    async with node_daemon_parts(tmp_path) as daemon:
        lost: list[str] = []
        looks: list[str] = []

        async def find() -> list[str]:
            looks.append("templates")
            return []

        daemon.report.serve_at("127.0.0.1:9090", 9090, "")
        daemon.report.tell_lost_storage(lambda: lost)
        daemon.report.tell_templates(find)
        (before,) = (await daemon.report.registration()).storage_domains
        await daemon.report.full_state()
        lost.append(before.id)
        (tmp_path / ID_FILE).write_text(str(uuid.uuid4()))  # which a look would see
        assert list((await daemon.report.registration()).storage_domains) == [before]
        await daemon.report.full_state()
        assert looks == ["templates"]
        lost.clear()
        assert (await daemon.report.registration()).storage_domains[0].id != before.id


async def test_registration_names_the_storage_that_fails_just_now_and_none_that_was_never_read(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        daemon.report.serve_at("127.0.0.1:9090", 9090, "")
        (tmp_path / ID_FILE).write_text("damaged")
        assert list((await daemon.report.registration()).storage_domains) == []
        (tmp_path / ID_FILE).unlink()
        (domain,) = (await daemon.report.registration()).storage_domains
        (tmp_path / ID_FILE).write_text("damaged")
        assert list((await daemon.report.registration()).storage_domains) == [domain]


async def test_heartbeat_goes_out_though_the_machine_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the daemon would end with its storage, and the lease of all its VMs with it."""

    def fail() -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async with node_daemon_parts(tmp_path) as daemon:
        await daemon.create()
        monkeypatch.setattr(psutil, "virtual_memory", fail)
        beat = await daemon.report.heartbeat()
        assert (beat.memory_total_mib, beat.state_hash != "") == (0, True)
