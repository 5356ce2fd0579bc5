"""A control-plane process in this one: the real services, desk, runner and worker, to be killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from controlplane.daemons.interface import DaemonPool
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import OperationDesk
from controlplane.operations.news import OperationNews
from controlplane.operations.runner import RetryPolicy, Runner
from controlplane.operations.steps import Workflows
from controlplane.operations.worker import OperationWorker, WorkerConfig
from controlplane.reconcile.reports import HostReportService
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.clones import CloneService
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vm_devices import VmDeviceService
from controlplane.services.vm_guests import GuestService
from controlplane.services.vm_snapshots import SnapshotService
from controlplane.services.vms import VmService
from controlplane.state.interface import Store
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.errors import Reason, Unavailable
from tests.support.control_plane_world import FakeClock
from tests.support.failure_harness_process import outside

ResultT = TypeVar("ResultT")

PATIENCE = RetryPolicy(do_pauses_s=(0.0, 0.0, 0.0), undo_pauses_s=(0.0,) * 5, store_pauses_s=(0.0, 0.005, 0.01, 0.02))
"""As patient as the real one in tries, but not in seconds."""

_LOOK = WorkerConfig(lease_s=3.0, renewal_interval_s=1.0, look_interval_s=0.01, store_retry_s=0.01)
"""On the process's own clock, one second passes between two looks."""


class Plane:
    """One life of a control-plane process.

    Args:
        store: what operations use, with its boundaries.
        calm_store: the same database for what hosts report, without.
    """

    def __init__(
        self,
        store: Store,
        calm_store: Store,
        daemons: DaemonPool,
        clock: FakeClock,
        workflows: Workflows = WORKFLOWS,
    ) -> None:
        self.died = asyncio.Event()
        self.left = asyncio.Event()
        """Set when callers have to turn to the next one, because this one died or stands still."""
        self.store = store
        self._ticks = 0
        news = OperationNews(poll_s=0.01)
        runner = Runner(store, daemons, workflows, clock, PATIENCE, news.changed)
        self.worker = OperationWorker(store, runner, news, clock, _LOOK, clock_s=self._tick)
        self.desk = OperationDesk(store, workflows, self.worker, news, clock)
        access = self.access = VmAccess(store, daemons, self.desk)
        self.vms = VmService(access, SchedulerConfig(), clock)
        self.snapshots = SnapshotService(access)
        self.devices = VmDeviceService(access)
        self.guests = GuestService(access)
        self.clones = CloneService(access, SchedulerConfig(), clock, self.vms.memory)
        self.reports = HostReportService(calm_store, self.desk, clock)
        self.heartbeats = HeartbeatService(calm_store, clock, HeartbeatConfig(trust_s=0))
        self._serving: set[asyncio.Task[Any]] = set()
        self._living: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Sign on. Nothing runs by itself yet, so that boundaries are the same each time; see `live`."""
        while True:
            try:
                return await self.worker.register()
            except Unavailable:  # as whatever restarts the program does
                await asyncio.sleep(0.005)

    def live(self) -> None:
        """From now on renew, look for work and take over from the dead, as a process does all the time."""
        if self._living is None:
            self._living = asyncio.get_running_loop().create_task(self.worker.run())

    async def serve(self, call: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Answer a call of a daemon, which fails if this process dies meanwhile."""
        if self.died.is_set():
            call.close()
            raise _gone()
        serving = asyncio.get_running_loop().create_task(call)
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        await asyncio.wait({serving})
        if serving.cancelled():
            raise _gone()
        return serving.result()

    async def kill(self) -> None:
        """Drop everything in the middle: nothing more is written, sent or answered."""
        self.died.set()
        doomed = [*self._serving, *([self._living] if self._living else [])]
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.worker.abandon()

    def _tick(self) -> float:
        self._ticks += 1
        return float(self._ticks)


class PlaneAtHost:
    """The control plane as a daemon reaches it: whichever process lives; implements `nodedaemon`'s `ControlPlane`."""

    def __init__(self) -> None:
        self.plane: Plane | None = None
        self.sync_count = 0
        """Full states that were taken in."""
        self.calls_under_way = 0

    async def register(self, request: api.RegisterNodeRequest) -> Node:
        """Not used: the scene puts the node into the database."""
        raise _gone()

    async def heartbeat(self, request: api.UpdateHeartbeatRequest) -> api.UpdateHeartbeatResponse:
        """Say that this host lives."""
        return await self._served(lambda plane: plane.heartbeats.heartbeat(request))

    async def sync_full_state(self, request: api.SyncFullStateRequest) -> api.SyncFullStateResponse:
        """Send the whole inventory."""
        await self._served(lambda plane: plane.reports.full_state(request))
        self.sync_count += 1
        return api.SyncFullStateResponse(acknowledged=True)

    async def notify_vm_change(self, request: api.VMChangeNotification) -> api.VMChangeAck:
        """Send one VM's newest state."""
        action = await self._served(lambda plane: plane.reports.vm_changed(request))
        return api.VMChangeAck(acknowledged=True, action=action)

    async def _served(self, call: Callable[[Plane], Coroutine[Any, Any, ResultT]]) -> ResultT:
        plane = self.plane
        if plane is None or plane.died.is_set():
            raise _gone()
        return await outside(self._counted(plane, call(plane)))

    async def _counted(self, plane: Plane, call: Coroutine[Any, Any, ResultT]) -> ResultT:
        self.calls_under_way += 1
        try:
            return await plane.serve(call)
        finally:
            self.calls_under_way -= 1


def _gone() -> Unavailable:
    return Unavailable(Reason.NODE_UNREACHABLE, "the control plane cannot be reached")
