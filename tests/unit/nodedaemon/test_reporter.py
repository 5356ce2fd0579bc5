"""Changes reach the control plane: all newest states, in order, however it behaves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Fault, MockFaults, Operation
from hypervisor.types import CpuTopology, VmConfig
from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import Reason, Unavailable
from nodedaemon import encode
from nodedaemon.change_count import StateChanges
from nodedaemon.observer import VmObserver
from nodedaemon.reporter import Reporter

DEADLINE_S = 30
NODE_ID = str(uuid.uuid4())


@dataclass
class ListeningControlPlane:
    """Keeps what is sent; holds answers while `may_answer` is clear, and fails the first `failure_count` calls."""

    failure_count: int = 0
    refuses: bool = False
    changes: list[pb.VMChangeNotification] = field(default_factory=list)
    syncs: list[pb.SyncFullStateRequest] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def register(self, request: pb.RegisterNodeRequest) -> node_pb2.Node:
        raise AssertionError("reporting does not register")

    async def heartbeat(self, request: pb.UpdateHeartbeatRequest) -> pb.UpdateHeartbeatResponse:
        raise AssertionError("reporting does not beat")

    async def sync_full_state(self, request: pb.SyncFullStateRequest) -> pb.SyncFullStateResponse:
        await self._answer(lambda: self.syncs.append(request))
        return pb.SyncFullStateResponse(acknowledged=True)

    async def notify_vm_change(self, request: pb.VMChangeNotification) -> pb.VMChangeAck:
        await self._answer(lambda: self.changes.append(request))
        return pb.VMChangeAck(acknowledged=not self.refuses or len(self.changes) > 1)

    async def _answer(self, take: Callable[[], None]) -> None:
        self.called.set()
        await self.may_answer.wait()
        if self.failure_count:
            self.failure_count -= 1
            raise Unavailable(Reason.NODE_UNREACHABLE, "told to fail")
        async with self.news:
            take()
            self.news.notify_all()

    def newest_counts(self) -> dict[str, int]:
        """The largest count that each VM was reported with, in whatever way."""
        reports = [change.vm for change in self.changes] + [vm for sync in self.syncs for vm in sync.vms]
        counts: dict[str, int] = {}
        for vm in reports:
            counts[vm.id] = max(counts.get(vm.id, 0), vm.state_change_count)
        return counts

    def newest_of(self, vm_id: str) -> int | None:
        """The state with the largest count; what a control plane that takes reports in any order believes."""
        reports = [change.vm for change in self.changes] + [vm for sync in self.syncs for vm in sync.vms]
        newest = max((vm for vm in reports if vm.id == vm_id), key=lambda vm: vm.state_change_count, default=None)
        return newest.state if newest is not None else None

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S), self.news:
            await self.news.wait_for(holds)


@dataclass
class Bench:
    hypervisor: MockHypervisor
    observer: VmObserver
    reporter: Reporter

    async def new_vm(self) -> str:
        config = VmConfig(str(uuid.uuid4()), "web", CpuTopology(), 64)
        await self.hypervisor.create(config)
        return config.vm_id


@asynccontextmanager
async def bench(
    control_plane: ListeningControlPlane, *, registered: bool = True, max_pending: int = 1000
) -> AsyncIterator[Bench]:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    observer = VmObserver(hypervisor, StateChanges(1))

    async def full_state() -> pb.SyncFullStateRequest:
        return pb.SyncFullStateRequest(vms=[encode.to_report(vm) for vm in await observer.read_all()])

    reporter = Reporter(observer, control_plane, full_state, max_pending)
    hypervisor.subscribe(reporter.on_event)
    task = asyncio.create_task(reporter.run())
    if registered:
        reporter.node_registered(NODE_ID)
    try:
        yield Bench(hypervisor, observer, reporter)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_change_is_sent_with_its_kind_state_and_the_state_before() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        vm_id = await b.new_vm()
        await control_plane.until(lambda: len(control_plane.changes) == 1)
        await b.hypervisor.start(vm_id)
        await control_plane.until(lambda: len(control_plane.changes) == 2)
        await b.hypervisor.remove_behind_our_back(vm_id)
        await control_plane.until(lambda: control_plane.changes[-1].event_type == pb.VM_CHANGE_DELETED)
    created, started = control_plane.changes[:2]
    assert (created.event_type, created.vm.state) == (pb.VM_CHANGE_CREATED, pb.VM_POWER_STATE_STOPPED)
    assert (started.event_type, started.vm.state) == (pb.VM_CHANGE_UPDATED, pb.VM_POWER_STATE_RUNNING)
    assert started.previous_state == pb.VM_POWER_STATE_STOPPED
    assert started.node_id == NODE_ID


async def test_nothing_is_sent_before_registration_and_the_inventory_right_after() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane, registered=False) as b:
        vm_id = await b.new_vm()
        assert b.reporter.pending_count == 1
        assert control_plane.changes == []
        b.reporter.node_registered(NODE_ID)
        await control_plane.until(lambda: bool(control_plane.syncs) and bool(control_plane.changes))
    assert [vm.id for vm in control_plane.syncs[0].vms] == [vm_id]


async def test_many_changes_while_one_is_on_its_way_become_one_with_the_newest_state() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        await control_plane.until(lambda: bool(control_plane.syncs))
        control_plane.may_answer.clear()
        vm_id = await b.new_vm()
        for _ in range(20):
            await b.hypervisor.start(vm_id)
            await b.hypervisor.force_stop(vm_id)
        await b.hypervisor.start(vm_id)
        assert b.reporter.pending_count == 1
        control_plane.may_answer.set()
        await control_plane.until(
            lambda: bool(control_plane.changes) and control_plane.changes[-1].vm.state == pb.VM_POWER_STATE_RUNNING
        )
    assert len(control_plane.changes) <= 2
    counts = [change.vm.state_change_count for change in control_plane.changes]
    assert counts == sorted(counts)


async def test_change_that_could_not_be_sent_is_sent_again_until_acknowledged() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        await control_plane.until(lambda: bool(control_plane.syncs))
        control_plane.failure_count = 2
        vm_id = await b.new_vm()
        await control_plane.until(lambda: bool(control_plane.changes))
    assert control_plane.changes[0].vm.id == vm_id


async def test_change_that_was_not_acknowledged_is_sent_again() -> None:
    control_plane = ListeningControlPlane(refuses=True)
    async with bench(control_plane) as b:
        await b.new_vm()
        await control_plane.until(lambda: len(control_plane.changes) == 2)


async def test_full_sync_that_failed_is_sent_again_and_retry_now_does_not_wait() -> None:
    control_plane = ListeningControlPlane(failure_count=1)
    async with bench(control_plane) as b:
        b.reporter.retry_now()
        await control_plane.until(lambda: len(control_plane.syncs) == 1)


async def test_resync_event_leads_to_a_full_sync() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        await control_plane.until(lambda: len(control_plane.syncs) == 1)
        b.hypervisor.lose_events()
        await control_plane.until(lambda: len(control_plane.syncs) == 2)


async def test_more_changed_vms_than_the_queue_holds_become_a_full_sync() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane, registered=False, max_pending=3) as b:
        for _ in range(4):
            await b.new_vm()
        assert b.reporter.pending_count == 0
        b.reporter.node_registered(NODE_ID)
        await control_plane.until(lambda: bool(control_plane.syncs))
    assert len(control_plane.syncs[0].vms) == 4


async def test_change_and_removal_while_a_sync_is_on_its_way_are_sent_after_it_with_larger_counts() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane, registered=False) as b:
        changing, leaving = await b.new_vm(), await b.new_vm()
        control_plane.may_answer.clear()
        b.reporter.node_registered(NODE_ID)
        await control_plane.called.wait()
        await b.hypervisor.start(changing)
        await b.hypervisor.remove_behind_our_back(leaving)
        new = await b.new_vm()
        control_plane.may_answer.set()
        await control_plane.until(
            lambda: (
                control_plane.newest_of(changing) == pb.VM_POWER_STATE_RUNNING
                and control_plane.newest_of(leaving) == pb.VM_POWER_STATE_UNKNOWN
                and control_plane.newest_of(new) == pb.VM_POWER_STATE_STOPPED
            )
        )
    deleted = [change.vm.id for change in control_plane.changes if change.event_type == pb.VM_CHANGE_DELETED]
    assert deleted == [leaving]


async def test_everything_that_happened_while_the_control_plane_was_away_is_told_in_the_end() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        started, removed, returned = await b.new_vm(), await b.new_vm(), await b.new_vm()
        await control_plane.until(lambda: len({change.vm.id for change in control_plane.changes}) == 3)
        before = control_plane.newest_counts()
        control_plane.failure_count = 10**6
        control_plane.called.clear()
        await b.hypervisor.start(started)
        await b.hypervisor.remove_behind_our_back(removed)
        await b.hypervisor.start(returned)
        await b.hypervisor.force_stop(returned)
        await control_plane.called.wait()
        control_plane.failure_count = 0
        b.reporter.retry_now()
        await control_plane.until(
            lambda: (
                control_plane.newest_of(started) == pb.VM_POWER_STATE_RUNNING
                and control_plane.newest_of(removed) == pb.VM_POWER_STATE_UNKNOWN
            )
        )
        after = control_plane.newest_counts()
    assert after[started] > before[started]
    assert after[removed] > before[removed]
    assert control_plane.newest_of(returned) == pb.VM_POWER_STATE_STOPPED


async def test_vm_that_went_and_came_back_between_two_reports_has_a_count_after_the_inventory_without_it() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        config = VmConfig(str(uuid.uuid4()), "web", CpuTopology(), 64)
        await b.hypervisor.create(config)
        await control_plane.until(lambda: bool(control_plane.changes))
        control_plane.may_answer.clear()
        await b.hypervisor.remove_behind_our_back(config.vm_id)
        before = control_plane.newest_counts()[config.vm_id]
        await b.observer.read_all()  # as for an inventory that is sent now
        as_of = b.observer.position
        await b.hypervisor.create(config)
        control_plane.may_answer.set()
        await control_plane.until(lambda: control_plane.newest_counts()[config.vm_id] > before)
        await control_plane.until(lambda: control_plane.newest_of(config.vm_id) == pb.VM_POWER_STATE_STOPPED)
    assert control_plane.newest_counts()[config.vm_id] > as_of


async def test_events_in_the_time_of_a_slow_reading_lead_to_the_newest_state() -> None:
    control_plane = ListeningControlPlane()
    async with bench(control_plane) as b:
        vm_id = await b.new_vm()
        await control_plane.until(lambda: bool(control_plane.changes))
        b.hypervisor.set_faults(MockFaults((Fault(Operation.STATUS, delay_s=0.05, times=1),)))
        await b.hypervisor.start(vm_id)
        await asyncio.sleep(0)  # the reading for the start is under way
        await b.hypervisor.pause(vm_id)
        await control_plane.until(lambda: control_plane.newest_of(vm_id) == pb.VM_POWER_STATE_PAUSED)
    counts = [change.vm.state_change_count for change in control_plane.changes]
    assert counts == sorted(counts)
