"""One operation on one VM in a world of its own, with one fault, until everything has recovered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.domain import errors
from controlplane.domain.event import EventFilter, LoggedEvent
from controlplane.domain.node import Node
from controlplane.domain.operation import FINAL_STATES, DepartedVm, Operation, OperationFilter, OperationState
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Caller
from controlplane.operations.vm_life import CleanUpVm, DeleteVm
from controlplane.state.interface import Store, Transaction
from hypervisor.mock import store as mock_store
from hypervisor.mock.host import MockSettings
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import ApiError, Code
from tests.support.builders import make_node
from tests.support.control_plane_world import FakeClock
from tests.support.failure_harness_case import Case
from tests.support.failure_harness_checks import End, Everything, faults_of
from tests.support.failure_harness_databases import ReusedDatabase
from tests.support.failure_harness_faults import Boundary, Fault, Strike, Weather
from tests.support.failure_harness_host import Host, HostCalls
from tests.support.failure_harness_plane import Plane, PlaneAtHost
from tests.support.failure_harness_process import install, outside
from tests.support.failure_harness_store import HarnessStore, Witness

DEADLINE_S = 60.0
_POLL_S = 0.006
_GONE_S = 0.25
"""How long a daemon stays away at most if the operation does not give up."""

REQUEST_ID = "the-request"
BYSTANDER = "bystander"


@dataclass(frozen=True)
class Outcome:
    """How a run went: the boundaries it passed until the fault struck, and what is wrong at the end."""

    boundaries: Sequence[Boundary]
    has_struck: bool
    state: str
    faults: Sequence[str]


class _OneHost:
    """The pool of the only node."""

    def __init__(self, calls: HostCalls) -> None:
        self._calls = calls

    def daemon(self, node: Node, epoch: int = 0) -> HostCalls:
        """See `DaemonPool`."""
        return self._calls


class Scene:
    """The world of one run."""

    def __init__(self, case: Case, store: Store, directory: Path, strike: Strike | None, *, is_serial: bool) -> None:
        self.case = case
        self.weather = Weather(strike, self._bystander)
        self.witness = Witness(is_serial)
        self.calm_store = HarnessStore(store, self.witness, None)
        self.clock = FakeClock()
        self.node = make_node(agent_endpoint="192.0.2.1:9090")
        self.vm_id = ""
        self.source_id = ""
        self.snapshot_id = ""
        """The VM that a clone is made of."""
        self._store = HarnessStore(store, self.witness, self.weather)
        self._at_host = PlaneAtHost()
        self.host = Host(directory, self.node.id, self.weather, self._at_host, self._mock_settings)
        self._daemons = _OneHost(HostCalls(self.host, self.weather))
        self.plane = self._new_plane()
        self._answer: ApiError | None = None
        self._intruder: asyncio.Task[ApiError | None] | None = None
        self._still_asking: list[asyncio.Future[object]] = []
        self._past: list[Plane] = []

    def _mock_settings(self, state_path: Path) -> MockSettings:
        return MockSettings(
            memory_mib=self.case.memory_mib,
            boot_s=0,
            shutdown_s=0,
            state_path=state_path,
            faults=self.case.mock_faults,
        )

    def _new_plane(self) -> Plane:
        plane = Plane(self._store, self.calm_store, self._daemons, self.clock)
        self._at_host.plane = plane
        return plane

    async def end(self) -> None:
        """End every process there ever was."""
        for plane in (*self._past, self.plane):
            await plane.kill()
        await self.host.end()

    # -- what cases need

    def not_now(self) -> ApiError:
        """What a call raises that has to be repeated."""
        return errors.state_unavailable("not yet")

    async def row(self, vm_id: str) -> Vm | None:
        """Read a VM as it is recorded."""
        return await self.calm_store.read(lambda tx: tx.get_vm(vm_id))

    async def operations(self) -> list[Operation]:
        """Every operation on the VM, newest first."""
        page = await self.calm_store.read(lambda tx: tx.list_operations(OperationFilter(), None, 100))
        return list(page.items)

    async def operation(self, kind: str = "") -> Operation | None:
        """The newest operation of a kind; without one, the one that the case asks for."""
        kind = kind or self.case.kind
        asked = [each for each in await self.operations() if each.kind == kind]
        if kind != CleanUpVm.kind:
            asked = [each for each in asked if each.request_id == REQUEST_ID]
        return asked[0] if asked else None

    async def until_reported(self, vm_id: str) -> None:
        """Wait until the host has told of a VM."""
        for _ in range(1000):
            if await self.row(vm_id) is not None:
                return
            await asyncio.sleep(_POLL_S)
        raise AssertionError(f"VM {vm_id} was not reported")

    # -- the run

    async def play(self) -> Outcome:
        """Do it all, and look at what became of it."""
        async with asyncio.timeout(DEADLINE_S):
            await self.calm_store.run(lambda tx: tx.insert_node(self.node))
            await self.plane.start()
            await self.host.boot()
            self.vm_id = await self.case.prepare(self)
            await self._quiet()
            self.weather.is_armed = True
            await self._ask()
            self.weather.is_armed = False
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._recover()
        except TimeoutError:
            late = f"it did not become quiet in {DEADLINE_S:g} s"
            return self._outcome(await self.operation(), [late, *faults_of(await self.everything(asks=False))])
        operation = await self.operation()
        self.vm_id = self.vm_id or (operation.resource_id if operation is not None else "")
        everything = await self.everything(asks=await self._asks_for_full_sync())
        found = [*self.witness.findings, *faults_of(everything), *self._effect(self._end(everything, operation))]
        return self._outcome(operation, found)

    def _outcome(self, operation: Operation | None, faults: Sequence[str]) -> Outcome:
        state = "nothing" if operation is None else OperationState.Name(operation.state)
        return Outcome(self.weather.boundaries, self.weather.has_struck, state, faults)

    async def _ask(self) -> None:
        """Ask as a caller does who repeats what was not answered, and kill what is to be killed meanwhile."""
        asking = asyncio.ensure_future(self._ask_until_answered())
        tending = asyncio.ensure_future(self._tend())
        try:
            await asyncio.wait({asking, tending}, return_when=asyncio.FIRST_COMPLETED)
            if tending.done():
                tending.result()  # raises what went wrong
            self._answer = await asking
            await self._until_worked_off()
        finally:
            for task in (asking, tending):
                task.cancel()
            await asyncio.gather(asking, tending, return_exceptions=True)

    async def _until_worked_off(self) -> None:
        """Wait for what the control plane does after it answered, unless it dies or stands still in it."""
        plane = self.plane
        waits = [asyncio.ensure_future(plane.worker.idle()), asyncio.ensure_future(plane.left.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _ask_until_answered(self) -> ApiError | None:
        caller = Caller(request_id=REQUEST_ID, request_digest="the same each time")
        while True:
            plane = self.plane
            asking = asyncio.ensure_future(self.case.ask(self, caller))
            leaving = asyncio.ensure_future(plane.left.wait())
            try:
                await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    asking.result()
                    return None
            except ApiError as error:
                if error.code is not Code.UNAVAILABLE or await self._has_ended():
                    return error
            finally:
                leaving.cancel()
                if plane.died.is_set():
                    asking.cancel()
                self._still_asking.append(asking)  # at one that stands still it goes on some time
            await asyncio.sleep(_POLL_S)

    async def _has_ended(self) -> bool:
        operation = await self.operation()
        return operation is not None and operation.has_ended

    async def _tend(self) -> None:
        """See to what dies: a control plane is started anew at once, a daemon that is gone after a while."""
        gone_s = 0.0
        while True:
            await asyncio.sleep(_POLL_S)
            if self.weather.plane_is_doomed.is_set():
                await self.replace_plane()
            if self.weather.plane_stands_still.is_set():
                await self._begin_another_plane()
            if self.weather.has_struck:
                self.plane.live()
            if not self.host.is_up:
                gone_s += _POLL_S
                if gone_s > _GONE_S:
                    await self.host.boot()

    async def replace_plane(self) -> None:
        """Kill the control plane and start the next one."""
        self.weather.plane_is_doomed.clear()
        await self.plane.kill()
        await self._begin_another_plane()

    async def _begin_another_plane(self) -> None:
        self.weather.plane_stands_still.clear()
        self._past.append(self.plane)
        plane = self._new_plane()
        await plane.start()
        self.plane.left.set()
        self.plane = plane
        plane.live()

    async def _recover(self) -> None:
        """Bring back what is dead, let late commands arrive, and wait until nothing happens any more."""
        if self.weather.plane_is_doomed.is_set():
            await self.replace_plane()
        self.plane.live()
        await self._quiet()
        await self.host.boot()
        self.weather.plane_wakes.set()
        await self._end_calls()
        for deliver in self.weather.late:
            with suppress(ApiError):  # refused, if it is known for what it is
                await deliver()
        await self._quiet()
        for _ in range(2):
            await self._sync()
            await self._quiet()

    async def _sync(self) -> None:
        before = self._at_host.sync_count
        self.host.daemon.reporter.request_full_sync()
        while self._at_host.sync_count == before:
            self.host.has_told()
            await asyncio.sleep(_POLL_S)

    async def _quiet(self) -> None:
        """Wait until every operation has ended and the host has told everything."""
        calm_rounds, seen = 0, -1
        while calm_rounds < 2:
            await asyncio.sleep(_POLL_S)
            is_told = self.host.has_told() and not self._at_host.calls_under_way and seen == self._at_host.sync_count
            seen = self._at_host.sync_count
            unfinished = await self.calm_store.read(lambda tx: tx.unfinished_operations((), 1))
            calm_rounds = calm_rounds + 1 if is_told and not unfinished else 0

    async def _end_calls(self) -> None:
        """Wait for the calls of all who do not wait for an answer any more, and of the bystander."""
        for plane in self._past:
            await plane.worker.idle()
        calls: list[asyncio.Future[Any]] = [*self._still_asking, *([self._intruder] if self._intruder else [])]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, ApiError):
                raise found

    async def _bystander(self, wish: Fault) -> None:
        await outside(self._wish(wish))

    async def _wish(self, wish: Fault) -> None:
        """Ask for something about the VM, if it is known yet, and return when that is recorded or refused."""
        operation = await self.operation()
        vm_id = self.vm_id or (operation.resource_id if operation is not None else "")
        if wish is Fault.CANCEL:
            if operation is not None:
                with suppress(ApiError):
                    await self.plane.desk.cancel(operation.id, "a bystander")
        elif vm_id:
            self._intruder = asyncio.get_running_loop().create_task(self._intrude(wish, vm_id))
            for _ in range(1000):
                if self._intruder.done() or await self.intrusion() is not None:
                    return
                await asyncio.sleep(_POLL_S)

    async def _intrude(self, wish: Fault, vm_id: str) -> ApiError | None:
        caller = Caller(principal=BYSTANDER)
        try:
            if wish is Fault.FORCED_STOP:
                await self.plane.vms.stop(vm_api.StopVMRequest(id=vm_id, force=True), caller)
            else:
                await self.plane.vms.delete(vm_api.DeleteVMRequest(id=vm_id, force=True), caller)
        except ApiError as error:
            return error
        return None

    async def intrusion(self) -> Operation | None:
        """The operation that the bystander asked for."""
        return next((each for each in await self.operations() if each.principal == BYSTANDER), None)

    # -- the end

    async def _asks_for_full_sync(self) -> bool:
        heartbeat = await self.host.daemon.report.heartbeat()
        return (await self.plane.heartbeats.heartbeat(heartbeat)).request_full_sync

    async def everything(self, *, asks: bool) -> Everything:
        """Collect what there is in the database and on the host."""
        path = self.host.state_path
        domains = await asyncio.to_thread(mock_store.load, path)
        images = await asyncio.to_thread(self._images)
        operations = await self.operations()
        node_id = self.node.id
        nodes, rows, departed, events = await self.calm_store.read(
            lambda tx: _all_of(tx, node_id, {each.resource_id for each in operations})
        )
        return Everything(nodes, rows, domains, images, departed, operations, events, asks)

    def _images(self) -> dict[str, list[str]]:
        directories = self.host.images_dir.iterdir() if self.host.images_dir.exists() else ()
        of_vms = (path for path in directories if path.is_dir() and path.name != "iso")
        return {path.name: sorted(image.name for image in path.iterdir()) for path in of_vms}

    def _end(self, everything: Everything, operation: Operation | None) -> End:
        return End(
            everything.rows.get(self.vm_id),
            everything.domains.get(self.vm_id),
            self.vm_id in everything.images,
            everything.departed.get(self.vm_id),
            operation,
            self._answer,
            next((each for each in everything.operations if each.principal == BYSTANDER), None),
        )

    def _effect(self, end: End) -> Iterator[str]:
        """Compare what is there with what the operation says, and with what its caller heard."""
        operation, intruder = end.operation, end.intrusion
        if intruder is not None and (trouble := _trouble_of(intruder, end)):
            yield trouble
        if operation is None:
            # The bystander may have been first, and left nothing to do: that is refused at once.
            if intruder is None or end.answer is None:
                yield f"there is no operation; the caller heard {end.answer!r}"
            return
        state = OperationState.Name(operation.state)
        heard = end.answer.reason if end.answer is not None else ""
        told = operation.fault.reason if operation.fault is not None else ""
        if heard != told and operation.kind != CleanUpVm.kind:  # that one may have been begun anew meanwhile
            yield f"the caller heard {end.answer!r}, the operation says {operation.fault}"
        if intruder is not None:
            return  # what is there is of its making
        if operation.state == OperationState.SUCCEEDED:
            if self.case.must_fail:
                yield "it cannot have succeeded"
            if not self.case.is_there(end):
                yield f"{state}, but its effect is not there: {_told(end)}"
        elif operation.state in FINAL_STATES and not self.case.has_no_effect(end):
            yield f"{state} ({told}), but its effect is there: {_told(end)}"
        if not self.weather.has_struck and (operation.state == OperationState.SUCCEEDED) == self.case.must_fail:
            yield f"{state} ({told}) without any fault"


def _trouble_of(intruder: Operation, end: End) -> str:
    """Check what became of a forced stop or deletion, which goes before everything else."""
    state, is_off = OperationState.Name(intruder.state), end.row is None or end.row.power_state == PowerState.STOPPED
    if intruder.kind == DeleteVm.kind:
        is_gone = end.row is None and end.domain is None and not end.has_images
        is_forgotten = end.departed is not None and end.departed.is_kept  # its host was to be left alone before
        if is_forgotten:
            return ""
        if intruder.state != OperationState.SUCCEEDED or not is_gone:
            return f"the forced deletion is {state}, {intruder.fault}: {_told(end)}"
    elif not is_off:
        return f"the forced stop is {state}, {intruder.fault}: {_told(end)}"
    return ""


def _told(end: End) -> str:
    row = "no row" if end.row is None else f"row {PowerState.Name(end.row.power_state)}"
    domain = "no domain" if end.domain is None else f"domain {end.domain.state.value}"
    return f"{row}, {domain}, {'images' if end.has_images else 'no images'}"


async def _all_of(
    tx: Transaction, node_id: str, vm_ids: set[str]
) -> tuple[list[Node], dict[str, Vm], dict[str, DepartedVm], list[LoggedEvent]]:
    rows = {vm.id: vm for vm in await tx.vms_on_node(node_id)}
    departed = await tx.departed(node_id, vm_ids)
    return list(await tx.all_nodes()), rows, departed, list(await tx.newest_events(EventFilter(), 1000))


async def run_once(case: Case, database: ReusedDatabase, directory: Path, strike: Strike | None = None) -> Outcome:
    """Do one run on an empty database, in an empty directory, and end all that it began."""
    install(asyncio.get_running_loop())
    scene = Scene(case, database.store, directory, strike, is_serial=database.is_serial)
    try:
        return await scene.play()
    finally:
        await scene.end()
