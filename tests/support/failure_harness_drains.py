"""One drain of a node with one VM, with one fault in it or in the operation that moves the VM.

A drain looks again and again while VMs are moved. Here the order to move one returns only when that is over, so that
every clean run passes the same boundaries: of the drain, then of the migration, then of the drain again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from google.protobuf.any_pb2 import Any as AnyMessage

from controlplane.domain.evacuation import MAX_ATTEMPTS
from controlplane.domain.event import EventType
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import CapacityPolicy, Phase
from controlplane.domain.operation import Operation, OperationState
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import Caller, OperationDesk
from controlplane.operations.migration_transfer import is_unsettled
from controlplane.operations.node_drain import DrainConfig, DrainNode
from controlplane.operations.steps import Workflows
from controlplane.operations.vm_migration import MigrateVm, take_named
from controlplane.operations.vm_power import StopVm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.migrations import MigrationService
from controlplane.services.moves import VmMoves
from controlplane.services.node_life import NodeLifeService
from controlplane.services.placement import NodeMemory
from controlplane.services.room_rules import KeptRoomRules
from limiquantix.compute.v1 import node_service_pb2 as api
from tests.support.failure_harness_migration_cases import transfer_fails
from tests.support.failure_harness_migration_checks import MigrationEnd
from tests.support.failure_harness_migrations import MigrationCase, MigrationScene
from tests.support.failure_harness_plane import Plane
from tests.support.failure_harness_scene import REQUEST_ID
from tests.support.fake_daemons import STOPPED

_LOOK_INTERVAL_S = 0.001


@dataclass(frozen=True)
class PatientMoves:
    """Moves and stops VMs, and returns each operation as it has ended; implements `Moves`."""

    moves: VmMoves
    desk: OperationDesk

    async def move(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """See `Moves`, as all below."""
        return await self.desk.ended((await self.moves.move(vm_id, wish, caller)).id)

    async def stop(self, vm_id: str, timeout_s: int, caller: Caller) -> Operation:
        return await self.desk.ended((await self.moves.stop(vm_id, timeout_s, caller)).id)

    async def cancel(self, operation_id: str, principal: str) -> None:
        await self.moves.cancel(operation_id, principal)


class DrainScene(MigrationScene):
    """The VM's node is drained to the other one; by force if the VM cannot move."""

    def workflows(self, plane: Callable[[], Plane]) -> Workflows:
        """See `MigrationScene`, as all below."""

        def moves() -> PatientMoves:
            migrations = MigrationService(plane().access, take_named, self.case.rules)
            return PatientMoves(VmMoves(migrations, plane().desk), plane().desk)

        room = KeptRoomRules(SchedulerConfig(), NodeMemory())
        config = DrainConfig(look_interval_s=_LOOK_INTERVAL_S)
        return WORKFLOWS.with_(MigrateVm(take_named, self.case.rules), DrainNode(moves, config, room))

    async def demand(self, plane: Plane) -> None:
        """Order the drain, and wait for its end."""
        life = NodeLifeService(plane.store, plane.desk, CapacityPolicy(), self.clock)
        request = api.DrainNodeRequest(
            id=self.source_node.id, target_node_id=self.target_node.id, force=self.case.cannot_move
        )
        await life.drain(request, Caller().with_request(REQUEST_ID, "the same each time"))

    async def carrying(self) -> Operation | None:
        """The newest migration."""
        return next((each for each in await self.operations() if each.kind == MigrateVm.kind), None)

    async def _end(self) -> MigrationEnd:
        end = await super()._end()
        if not any(each.kind == StopVm.kind for each in _ordered(end)):
            return end
        # One that failed may have had its effect, or not.
        is_off = all(host.vms[end.vm_id].state == STOPPED for host in end.hosts.values() if end.vm_id in host.vms)
        return replace(end, ran=not (is_off or _was_stopped(end)))

    def false_words(self, end: MigrationEnd) -> Iterable[str]:
        """Compare what the drain says with what became of the VM and of the node."""
        yield from _node_faults(end, self.source_node.id)
        yield from _order_faults(end)
        drain = end.operation
        if drain is None:
            yield f"there is no operation; the caller heard {end.answer!r}"
            return
        heard = end.answer.reason if end.answer is not None else ""
        told = drain.fault.reason if drain.fault is not None else ""
        if heard != told:
            yield f"the caller heard {end.answer!r}, the operation says {drain.fault}"
        if drain.state == OperationState.SUCCEEDED and end.row is not None:
            yield from _answer_faults(end, drain)


def _was_stopped(end: MigrationEnd) -> bool:
    """Whether the drain had the VM stopped."""
    return any(each.kind == StopVm.kind and each.state == OperationState.SUCCEEDED for each in _ordered(end))


def _ordered(end: MigrationEnd) -> list[Operation]:
    """What the drain ordered."""
    prefix = f"{end.operation.id}:" if end.operation is not None else "nothing"
    return [each for each in end.operations if each.request_id.startswith(prefix)]


def _node_faults(end: MigrationEnd, node_id: str) -> Iterator[str]:
    """The node takes no VMs if and only if its drain began, and that is told once, as is its end."""
    node = next(each for each in end.nodes if each.id == node_id)
    counts = [
        sum(entry.event.type in types for entry in end.events)
        for types in ({EventType.NODE_DRAINING}, {EventType.NODE_DRAINED, EventType.NODE_DRAIN_ENDED})
    ]
    wanted = Phase.MAINTENANCE if counts[0] else Phase.READY
    if node.phase != wanted:
        yield f"the node is {Phase.Name(node.phase)}, though it should be {Phase.Name(wanted)}"
    if counts not in ([0, 0], [1, 1]):
        yield f"the log says {counts[0]} times that the drain began and {counts[1]} times that it ended"


def _order_faults(end: MigrationEnd) -> Iterator[str]:
    """The VM is moved at most once, and is not tried without end."""
    tries = sum(each.kind == MigrateVm.kind for each in _ordered(end))
    if tries > MAX_ATTEMPTS:
        yield f"the drain tried {tries} times to move the VM"
    moves = sum(each.event.type == end.moved_by for each in end.events)
    if end.row is not None and moves != end.has_moved:
        yield f"the log says {moves} times that the VM moved"


def _answer_faults(end: MigrationEnd, drain: Operation) -> Iterator[str]:
    """What is answered of the VM is what became of it."""
    answer = api.DrainNodeResponse()
    AnyMessage.FromString(drain.response).Unpack(answer)
    moved, stopped = end.vm_id in answer.migrated_vm_ids, end.vm_id in answer.stopped_vm_ids
    failed = end.vm_id in {each.vm_id for each in answer.failures}
    if moved + stopped + failed != 1:
        yield f"the answer tells of the VM {moved + stopped + failed} times"
    if any(is_unsettled(each) for each in _ordered(end)):
        return  # where it is was found out after the answer
    if moved != end.has_moved:
        yield f"the answer says that it has {'' if moved else 'not '}moved, the record says otherwise"
    if stopped != (_was_stopped(end) and not end.has_moved):
        yield f"the answer says that it was {'' if stopped else 'not '}stopped"


CASES = (
    MigrationCase("drain", scene=DrainScene),
    MigrationCase("drain by force, transfer fails", moves=False, interfere=transfer_fails, scene=DrainScene),
)
