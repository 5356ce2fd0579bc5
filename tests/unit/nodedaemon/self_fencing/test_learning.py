"""A daemon whose files were lost under running VMs: what is protected stays so, or it is said that it is not known."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import Unavailable
from nodedaemon.self_fencing.guard_link import GuardLink
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.learning import learn_protected, learn_until_sure, remember_orders
from nodedaemon.self_fencing.lease import Known, boottime_ns
from nodedaemon.self_fencing.memory import FILE_NAME, open_memory
from nodedaemon.self_fencing.orders import ORDERS_NAME, Orders, read_orders, write_file
from nodedaemon.vm_protection import VmProtection

BOOT_ID = "boot-1"
KNOWN = Known(epoch=3, fence_token=7, ha_version=2, is_armed=True)


@dataclass
class Host:
    """A host's files and hypervisor, which outlive its daemons."""

    directory: Path
    hypervisor: MockHypervisor

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def guard_dir(self) -> Path:
        return self.directory / "guard"

    def orders(self) -> Orders | None:
        return read_orders(str(self.guard_dir))

    @asynccontextmanager
    async def daemon(self, obstacle: str = "", *, is_blank: bool = False) -> AsyncIterator[SelfFencing]:
        """Begin one, as the composition root does, and let it learn nothing yet of VMs."""
        memory = open_memory(self.data_dir)
        guard = GuardLink(self.guard_dir, self.directory / "boot-id", starts=False)
        await remember_orders(memory, guard.last_orders(BOOT_ID))
        try:
            yield SelfFencing(
                memory, self.hypervisor.processes, guard, boot_id=BOOT_ID, obstacle=obstacle, is_blank=is_blank
            )
        finally:
            memory.close()

    async def learn(self, fencing: SelfFencing) -> None:
        await learn_protected(
            self.hypervisor, lambda vm_id: fencing.protect(vm_id, is_protected=True), lambda: fencing.protected
        )

    async def vm(self, fencing: SelfFencing, *, is_protected: bool) -> str:
        vm_id = str(uuid.uuid4())
        await self.hypervisor.create(VmConfig(vm_id, "web", CpuTopology(), 64))
        await VmProtection(self.hypervisor, fencing).set(vm_id, is_protected=is_protected)
        await self.hypervisor.start(vm_id)
        return vm_id

    async def is_noted(self, vm_id: str) -> bool:
        return (await self.hypervisor.status(vm_id)).notes.is_protected


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    hypervisor = MockHypervisor(MockSettings())
    await hypervisor.open()
    yield Host(tmp_path, hypervisor)
    await hypervisor.close()


def lease(left_ms: int = 60_000) -> pb.UpdateHeartbeatResponse:
    told = {"epoch": KNOWN.epoch, "fence_token": KNOWN.fence_token, "ha_version": KNOWN.ha_version}
    return pb.UpdateHeartbeatResponse(lease=pb.NodeLease(duration_ms=left_ms), ha_is_armed=True, **told)  # type: ignore[arg-type]


async def test_wiped_daemon_knows_by_the_guards_orders_what_it_was_told_and_orders_no_less(host: Host) -> None:
    async with host.daemon() as fencing:
        await fencing.take_answer(boottime_ns(), lease())
        protected, other = await host.vm(fencing, is_protected=True), await host.vm(fencing, is_protected=False)
        end_ns = fencing.lease.end_ns
    shutil.rmtree(host.data_dir)
    async with host.daemon() as fencing:
        assert (fencing.lease.known, fencing.lease.end_ns) == (KNOWN, end_ns)
        assert fencing.protected == {protected}
        orders = host.orders()
        assert orders is not None
        assert (orders.is_armed, orders.end_ns, orders.vm_ids) == (True, end_ns, (protected,))
        assert not fencing.is_protected(other)
    async with host.daemon() as fencing:  # and it is on the disk again
        assert fencing.lease.known == KNOWN


async def test_wiped_daemon_does_not_claim_to_know_of_a_setting_that_its_configuration_hid(host: Host) -> None:
    async with host.daemon(obstacle="self_fencing.enabled is false") as fencing:
        await fencing.take_answer(boottime_ns(), lease())
    shutil.rmtree(host.data_dir)
    async with host.daemon() as fencing:
        beat = pb.UpdateHeartbeatRequest()
        fencing.describe(beat)
        assert (beat.known_ha_version, beat.known_fence_token, beat.known_epoch) == (0, KNOWN.fence_token, KNOWN.epoch)
        await fencing.take_answer(boottime_ns(), lease())
        assert fencing.lease.known == KNOWN


async def test_wiped_daemon_without_orders_learns_from_the_vms_before_it_can_be_relied_upon(host: Host) -> None:
    async with host.daemon() as fencing:
        await fencing.take_answer(boottime_ns(), lease())
        protected, other = await host.vm(fencing, is_protected=True), await host.vm(fencing, is_protected=False)
    shutil.rmtree(host.data_dir)
    shutil.rmtree(host.guard_dir)
    async with host.daemon() as fencing:
        assert fencing.protected == frozenset()
        await learn_until_sure(host.hypervisor, fencing)
        assert fencing.protected == {protected}
        assert not await host.is_noted(other)
        orders = host.orders()
        assert orders is not None
        assert orders.vm_ids == (protected,)
        assert open_memory(host.data_dir).protected == {protected}


async def test_guard_that_may_know_more_is_told_nothing_before_the_host_has_been_told(host: Host) -> None:
    async with host.daemon(is_blank=True) as fencing:
        await host.vm(fencing, is_protected=True)
        await fencing.take_answer(boottime_ns(), pb.UpdateHeartbeatResponse(epoch=1, ha_version=1, ha_is_armed=True))
        assert host.orders() is None  # armed is not taken without a lease
        beat = pb.UpdateHeartbeatRequest()
        fencing.describe(beat)
        assert (beat.can_self_fence, "lost its files" in beat.self_fencing_obstacle) == (False, True)
        await fencing.take_answer(boottime_ns(), lease())
        orders = host.orders()
        assert orders is not None
        assert (orders.is_armed, len(orders.vm_ids)) == (True, 1)
        fencing.describe(beat)
        assert beat.can_self_fence


async def test_host_that_cannot_know_says_so_until_the_hypervisor_answers(host: Host) -> None:
    async with host.daemon() as fencing:
        protected = await host.vm(fencing, is_protected=True)
    shutil.rmtree(host.data_dir)
    shutil.rmtree(host.guard_dir)
    async with host.daemon() as fencing:
        host.hypervisor.set_faults(MockFaults((Fault(Operation.LIST, Failure.UNAVAILABLE),)))
        said: list[pb.UpdateHeartbeatRequest] = []

        async def wait(_: float) -> None:
            beat = pb.UpdateHeartbeatRequest()
            fencing.describe(beat)
            said.append(beat)
            if len(said) == 3:
                host.hypervisor.set_faults(MockFaults())

        await learn_until_sure(host.hypervisor, fencing, wait)
        assert [beat.can_self_fence for beat in said] == [False] * 3
        assert "not known" in said[0].self_fencing_obstacle
        beat = pb.UpdateHeartbeatRequest()
        fencing.describe(beat)
        assert beat.can_self_fence
        assert fencing.protected == {protected}


async def test_vm_that_a_daemon_before_noted_in_its_own_files_only_is_noted_with_the_vm(host: Host) -> None:
    async with host.daemon() as fencing:
        vm_id = await host.vm(fencing, is_protected=False)
        await fencing.protect(vm_id, is_protected=True)
        await fencing.protect(str(uuid.uuid4()), is_protected=True)  # one that is not here
        assert not await host.is_noted(vm_id)
        await host.learn(fencing)
        assert await host.is_noted(vm_id)
        assert fencing.is_protected(vm_id)


async def test_protection_that_was_taken_back_does_not_come_back(host: Host) -> None:
    async with host.daemon() as fencing:
        await fencing.take_answer(boottime_ns(), lease())
        vm_id = await host.vm(fencing, is_protected=True)
        await VmProtection(host.hypervisor, fencing).set(vm_id, is_protected=False)
    shutil.rmtree(host.data_dir)
    async with host.daemon() as fencing:
        await host.learn(fencing)
        assert not fencing.is_protected(vm_id)


@pytest.mark.parametrize("is_protected", [True, False])
async def test_protection_that_was_noted_in_one_place_only_counts_as_protection(host: Host, is_protected: bool) -> None:
    """Killed between the two: it ends with the lease before it is said, and as long as it may have been said."""
    async with host.daemon() as fencing:
        vm_id = await host.vm(fencing, is_protected=not is_protected)
        host.hypervisor.set_faults(MockFaults((Fault(Operation.SET_NOTES, Failure.UNAVAILABLE),)))
        with pytest.raises(Unavailable):
            await VmProtection(host.hypervisor, fencing).set(vm_id, is_protected=is_protected)
        host.hypervisor.set_faults(MockFaults())
    async with host.daemon() as fencing:
        await host.learn(fencing)
        assert fencing.is_protected(vm_id)


async def test_restored_older_files_lower_nothing(host: Host) -> None:
    async with host.daemon() as fencing:
        await fencing.take_answer(boottime_ns(), lease())
        old = (host.data_dir / FILE_NAME).read_bytes()
        vm_id = await host.vm(fencing, is_protected=True)
        await fencing.take_told(KNOWN.epoch + 1, KNOWN.fence_token + 1)
    (host.data_dir / FILE_NAME).write_bytes(old)
    async with host.daemon() as fencing:
        await host.learn(fencing)
        assert (fencing.lease.known.epoch, fencing.lease.known.fence_token) == (KNOWN.epoch + 1, KNOWN.fence_token + 1)
        assert fencing.is_protected(vm_id)


async def test_wiped_daemon_ends_protected_vms_when_the_lease_that_it_never_saw_ends(host: Host) -> None:
    async with host.daemon() as fencing:
        await fencing.take_answer(boottime_ns() - 10**9, lease(left_ms=1))
        vm_id = await host.vm(fencing, is_protected=True)
    shutil.rmtree(host.data_dir)
    async with host.daemon() as fencing:
        assert fencing.lease.must_kill(boottime_ns())
        assert host.hypervisor.processes is not None
        await host.hypervisor.processes.kill(fencing.protected)
        assert (await host.hypervisor.status(vm_id)).state is PowerState.CRASHED


def test_guard_of_an_older_version_takes_the_orders_of_a_newer_daemon(tmp_path: Path) -> None:
    orders = Orders(BOOT_ID, True, 5, ("vm",), "", 1000)
    write_file(str(tmp_path), ORDERS_NAME, orders)
    path = tmp_path / ORDERS_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_next_year": 1}))
    assert read_orders(str(tmp_path)) == orders
