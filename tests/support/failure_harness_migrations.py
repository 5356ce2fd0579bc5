"""One migration between two hosts in memory, with one fault, until everything has recovered.

The control plane is the real one, on a real database. While the VM is carried over, the hosts wait until the operation
has noted that; then the case may interfere, and the transfer goes on. So every clean run passes the same boundaries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.operation import Operation, OperationFilter, OperationState
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import Caller
from controlplane.operations.steps import Workflows
from controlplane.operations.vm_migration import take_named
from controlplane.services.migrations import MigrationService
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import ApiError, Code
from tests.support.builders import make_node
from tests.support.control_plane_world import FakeClock, create_request, full_state_of
from tests.support.failure_harness_databases import ReusedDatabase
from tests.support.failure_harness_faults import AWAY_S, Boundary, Fault, Strike, Weather
from tests.support.failure_harness_migration_cases import CASES, MigrationCase
from tests.support.failure_harness_migration_checks import MigrationEnd, faults_of_words, faults_of_world
from tests.support.failure_harness_migration_hosts import SOURCE, TARGET, MigrationHosts
from tests.support.failure_harness_plane import Plane
from tests.support.failure_harness_process import outside
from tests.support.failure_harness_scene import BYSTANDER, REQUEST_ID, Outcome
from tests.support.failure_harness_store import HarnessStore, Witness
from tests.support.migration_cluster import node_spec

__all__ = ["CASES", "MigrationCase", "MigrationScene", "Outcome", "run_once"]

DEADLINE_S = 60.0
_POLL_S = 0.006
_GONE_S = 0.25
"""How long a daemon stays away if the operation does not give up before."""
_ROUNDS_OF_REPORTS = 3
"""After so many everything must be settled."""
_LOOKS_PER_READ = 3
_LOOKS_AFTER_STRIKE = 20
"""How often to look whether the operation is waiting for the transfer, once the fault may keep it from that."""


class MigrationScene:
    """The world of one run."""

    moved_by = EventType.VM_MIGRATED

    def __init__(self, case: MigrationCase, database: ReusedDatabase, strike: Strike | None) -> None:
        self.case = case
        self.weather = Weather(strike, self._bystander)
        self.witness = Witness(database.is_serial)
        self.calm_store = HarnessStore(database.store, self.witness, None)
        self.hosts = MigrationHosts(self.weather)
        self.clock = FakeClock()
        self.source_node, self.target_node = make_node(spec=node_spec()), make_node(spec=node_spec())
        self.source = self.hosts.add(self.source_node, SOURCE)
        self.target = self.hosts.add(self.target_node, TARGET)
        self.vm_id = ""
        self._gate = self.source.hold("transfer")
        self._store = HarnessStore(database.store, self.witness, self.weather)
        self._past: list[Plane] = []
        self.plane = self._new_plane()
        self._answer: ApiError | None = None
        self._interfering: asyncio.Task[None] | None = None
        self._intruder: asyncio.Task[None] | None = None
        self._still_asking: list[asyncio.Future[Any]] = []
        self._looks_after_strike = 0
        self._boundary_count = -1
        self._told: dict[str, object] = {}

    def _new_plane(self) -> Plane:
        made: list[Plane] = []
        workflows = self.workflows(lambda: made[0])
        made.append(Plane(self._store, self.calm_store, self.hosts, self.clock, workflows))
        return made[0]

    def workflows(self, plane: Callable[[], Plane]) -> Workflows:
        """Make the workflows of a process; `plane` gives it once it is there."""
        return WORKFLOWS.with_(self.case.workflow(self.case.rules))

    async def end(self) -> None:
        """End every process there ever was, and what hosts still carry."""
        self._gate.release()
        tasks = [task for task in (self._interfering, self._intruder, *self._still_asking) if task is not None]
        for task in (*tasks, *self.hosts.network.tasks):
            task.cancel()
        for plane in (*self._past, self.plane):
            await plane.kill()
        await asyncio.gather(*tasks, *self.hosts.network.tasks, return_exceptions=True)

    # -- the run

    async def play(self) -> Outcome:
        """Do it all, and look at what became of it."""
        late: list[str] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._build()
                self.weather.is_armed = True
                await self._ask()
                self.weather.is_armed = False
                await self._recover()
        except TimeoutError:
            late = [f"it did not become quiet in {DEADLINE_S:g} s"]
        end = await self._end()
        found = [*late, *self.hosts.findings, *self.witness.findings, *faults_of_world(end)]
        found += [*self.false_words(end), *self._unexpected(end)]
        state = "nothing" if end.operation is None else OperationState.Name(end.operation.state)
        boundaries: list[Boundary] = self.weather.boundaries
        return Outcome(boundaries, self.weather.has_struck, state, tuple(dict.fromkeys(found)))

    async def _build(self) -> None:
        await self.calm_store.run(lambda tx: tx.insert_node(self.source_node))
        await self.plane.start()
        self.vm_id = (await self.plane.vms.create(create_request("subject", start=self.case.runs))).id
        await self.calm_store.run(lambda tx: tx.insert_node(self.target_node))

    async def _ask(self) -> None:
        """Ask as a caller does who repeats what was not answered, and see to all else meanwhile."""
        asking = asyncio.ensure_future(self.until_answered(self.demand))
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

    async def demand(self, plane: Plane) -> None:
        """Ask for it, and wait for its end."""
        caller = Caller(request_id=REQUEST_ID, request_digest="the same each time")
        service = MigrationService(plane.access, take_named, self.case.rules)
        request = api.MigrateVMRequest(vm_id=self.vm_id, target_node_id=self.target_node.id, live=self.case.runs)
        await service.migrate(request, caller)

    async def cancel(self, plane: Plane) -> None:
        """Ask for the migration to be cancelled."""
        operation = await self.operation()
        assert operation is not None
        await plane.desk.cancel(operation.id, "the test")

    async def until_answered(self, ask: Callable[[Plane], Awaitable[None]]) -> ApiError | None:
        """Ask whichever process lives, again if it does not answer; returns the error that it answers."""
        while True:
            plane = self.plane
            asking = asyncio.ensure_future(ask(plane))
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

    async def _until_worked_off(self) -> None:
        """Wait for what the control plane does after it answered, unless it dies or stands still in it."""
        plane = self.plane
        waits = [asyncio.ensure_future(plane.worker.idle()), asyncio.ensure_future(plane.left.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _tend(self) -> None:
        """Start anew what died, let hosts report, and let the transfer go on when its time has come."""
        gone_s, look_count = 0.0, 0
        while True:
            await asyncio.sleep(_POLL_S)
            if self.weather.plane_is_doomed.is_set():
                await self._replace_plane()
            if self.weather.plane_stands_still.is_set():
                await self._begin_another_plane()
            if self.weather.has_struck:
                self.plane.live()
                self._looks_after_strike += 1
            gone_s += _POLL_S if any(each.is_away for each in self.hosts.connections.values()) else 0.0
            if gone_s > _GONE_S:
                self.hosts.come_back()
            look_count += 1
            if look_count % _LOOKS_PER_READ == 0:
                await self._see_to_transfer()

    async def _see_to_transfer(self) -> None:
        """Have hosts tell what changed, and the transfer go on when its time has come."""
        operation = await self.carrying()
        await self._let_go_on(operation)
        if operation is not None and not operation.has_ended:
            await self._report_changes()

    async def _let_go_on(self, operation: Operation | None) -> None:
        """Interfere with the transfer when it is noted that it is under way, and then let it go on."""
        is_stuck = self._looks_after_strike > _LOOKS_AFTER_STRIKE
        is_calm = len(self.weather.boundaries) == self._boundary_count  # the note was made, and that was heard
        self._boundary_count = len(self.weather.boundaries)
        is_noted = operation is not None and operation.waiting_for.startswith("the transfer") and is_calm
        if self._interfering is None and (is_noted or is_stuck):
            self._interfering = asyncio.get_running_loop().create_task(self._interfere())
            self._looks_after_strike = 0
        elif self._interfering is not None and self._interfering.done():
            self._interfering.result()  # raises what went wrong
            if not self.case.waits_for_cancel or is_stuck:
                self._gate.release()

    async def _interfere(self) -> None:
        if await self.operation() is not None:
            await self.case.interfere(self)

    async def _report_changes(self) -> None:
        """Have hosts tell what changed, as they do all the time."""
        for node_id, connection in self.hosts.connections.items():
            host = self.hosts.of(node_id)
            now = (host.change_count, tuple(host.vms))
            if self._told.get(node_id) != now and not connection.is_away:
                with suppress(ApiError):
                    await self._report(node_id)
                    self._told[node_id] = now

    async def _report(self, node_id: str) -> None:
        report = full_state_of(node_id, self.hosts.of(node_id))
        await outside(self.plane.serve(self.plane.reports.full_state(report)))

    async def _replace_plane(self) -> None:
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
        """Bring back what is dead, let late commands arrive, let hosts report, and wait until nothing happens."""
        if self.weather.plane_is_doomed.is_set() or self.plane.died.is_set():
            await self._replace_plane()
        self.plane.live()
        self._gate.release()
        await self._quiet()
        self.hosts.come_back(with_all=True)
        self.weather.daemon_silences = 0
        self.weather.plane_wakes.set()
        for plane in self._past:
            await plane.worker.idle()
        calls = [task for task in (self._interfering, self._intruder, *self._still_asking) if task is not None]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, ApiError):
                raise found
        for deliver in self.weather.late:
            with suppress(ApiError):  # refused, if it is known for what it is
                await deliver()
        await self._quiet()
        if self.weather.store_is_away():
            await asyncio.sleep(AWAY_S)
        for _ in range(_ROUNDS_OF_REPORTS):
            known_count = len(await self.operations())
            for node_id in self.hosts.connections:
                await self._report(node_id)
                await self._quiet(1)
            if len(await self.operations()) == known_count:
                break  # no report had anything done

    async def _quiet(self, wanted_count: int = 2) -> None:
        """Wait until every operation has ended, and hosts carry nothing, at so many looks."""
        calm_rounds = 0
        while calm_rounds < wanted_count:
            await asyncio.sleep(_POLL_S)
            unfinished = await self.calm_store.read(lambda tx: tx.unfinished_operations((), 1))
            calm_rounds = 0 if unfinished or self.hosts.network.tasks else calm_rounds + 1

    # -- others

    async def _bystander(self, wish: Fault) -> None:
        operation = await self.operation()
        if wish is Fault.CANCEL:
            if operation is not None:
                with suppress(ApiError):
                    await outside(self.plane.desk.cancel(operation.id, "a bystander"))
            return
        self._intruder = asyncio.get_running_loop().create_task(self._intrude(wish))
        for _ in range(1000):
            if self._intruder.done() or await self._intrusion() is not None:
                return
            await asyncio.sleep(_POLL_S)

    async def _intrude(self, wish: Fault) -> None:
        caller = Caller(principal=BYSTANDER)
        with suppress(ApiError):
            if wish is Fault.FORCED_STOP:
                await self.plane.vms.stop(api.StopVMRequest(id=self.vm_id, force=True), caller)
            else:
                await self.plane.vms.delete(api.DeleteVMRequest(id=self.vm_id, force=True), caller)

    # -- what is recorded

    async def operations(self) -> list[Operation]:
        """Every operation, newest first."""
        return list((await self.calm_store.read(lambda tx: tx.list_operations(OperationFilter(), None, 100))).items)

    async def operation(self) -> Operation | None:
        """What the case asks for."""
        return next((each for each in await self.operations() if each.request_id == REQUEST_ID), None)

    async def carrying(self) -> Operation | None:
        """What carries the VM over."""
        return await self.operation()

    async def _has_ended(self) -> bool:
        operation = await self.operation()
        return operation is not None and operation.has_ended

    async def _intrusion(self) -> Operation | None:
        return next((each for each in await self.operations() if each.principal == BYSTANDER), None)

    async def _end(self) -> MigrationEnd:
        operations, vm_id = await self.operations(), self.vm_id

        async def read(tx: Transaction) -> dict[str, Any]:
            nodes = list(await tx.all_nodes())
            return {
                "row": await tx.get_vm(vm_id),
                "placed": [vm for node in nodes for vm in await tx.vms_on_node(node.id)],
                "nodes": nodes,
                "left": await tx.get_migration(vm_id),
                "events": list(await tx.newest_events(EventFilter(), 1000)),
            }

        return MigrationEnd(
            vm_id=vm_id,
            target_id=self.target_node.id,
            ran=self.case.runs,
            hosts={node_id: self.hosts.of(node_id) for node_id in self.hosts.connections},
            operations=operations,
            operation=await self.operation(),
            answer=self._answer,
            intrusion=await self._intrusion(),
            moved_by=self.moved_by,
            **await self.calm_store.read(read),
        )

    def false_words(self, end: MigrationEnd) -> Iterable[str]:
        """Name what is told and did not happen."""
        return faults_of_words(end)

    def _unexpected(self, end: MigrationEnd) -> list[str]:
        """Compare with what the case is about: exactly without a fault, else as far as it cannot be otherwise."""
        operation, case = end.operation, self.case
        found = []
        if case.cannot_move and end.has_moved:
            found.append("it cannot have moved")
        if not self.weather.has_struck and operation is not None:
            reason = operation.fault.reason if operation.fault is not None else ""
            if (operation.state, reason, end.has_moved) != (case.ends, case.reason, case.moves):
                place = "target" if end.has_moved else "source"
                found.append(f"{OperationState.Name(operation.state)} ({reason}), at the {place}, without any fault")
        return found


async def run_once(case: MigrationCase, database: ReusedDatabase, strike: Strike | None = None) -> Outcome:
    """Do one run on an empty database, and end all that it began."""
    scene = (case.scene or MigrationScene)(case, database, strike)
    try:
        return await scene.play()
    finally:
        await scene.end()
