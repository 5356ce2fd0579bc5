"""`DrainNode`: moves every VM of a node to others, by operations of their own, and says what became of each.

The drain itself changes only the node. What it has begun is found again after a restart: the operation of each VM is
asked for under a request id that follows from the drain's own id, so asking twice begins one. Nothing is undone but the
phase; a VM that was moved stays where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from google.protobuf.message import Message

from controlplane.domain import documents, errors, evacuation, node_life
from controlplane.domain.evacuation import Evacuee, Fate, Roster, Sight
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Node
from controlplane.domain.operation import Json, Operation
from controlplane.domain.vm import ALIVE_STATES
from controlplane.operations.desk import Caller
from controlplane.operations.moves import Moves
from controlplane.operations.room_rules import NothingKept, RoomRules
from controlplane.operations.steps import DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_power import DEFAULT_STOP_TIMEOUT_S
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_service_pb2 import DrainNodeResponse
from limiquantix.errors import ApiError, Reason

_EVACUATE = "evacuate"


@dataclass(frozen=True, slots=True)
class DrainConfig:
    """`moves_at_once` is how many operations on VMs a drain has under way.

    Migrations keep limits of their own, and those that wait for their turn cannot be stopped or changed meanwhile: so a
    drain asks for little more than what goes at once.
    """

    moves_at_once: int = 4
    look_interval_s: float = 0.5


class CordonStep(DatabaseStep):
    """Keep new VMs away."""

    name = "cordon"

    def __init__(self, room: RoomRules) -> None:
        self._room = room

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the phase.

        Raises:
            FailedPrecondition: without `force`, room would be gone that is kept for VMs of nodes that fail.
        """
        if not run.parameters["force"]:
            await self._room.require_for_drain(tx, run.operation.resource_id, run.parameters["target_node_id"])
        node, actor = await _required(tx, run.operation), run.operation.principal
        changed = node_life.draining(node, f"drained by {actor}", run.now())
        event = Event(EventType.NODE_DRAINING, f"node {node.hostname} is being drained", actor=actor)
        await tx.update_node(changed, _of_operation(event, run.operation))
        return outcome

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Leave the node in maintenance: what was moved away would not come back if it took VMs again."""
        node = await tx.get_node(run.operation.resource_id)
        if node is not None:
            text = f"node {node.hostname} is not drained any further; it stays in maintenance"
            event = Event(EventType.NODE_DRAIN_ENDED, text, Severity.WARNING, run.operation.principal)
            await tx.update_node(node_life.drained(node, run.now()), _of_operation(event, run.operation))


class EvacuateStep(Step):
    """Have every VM moved, and with `force` stopped if it cannot be; ends when each has an outcome."""

    name = _EVACUATE

    def __init__(self, moves: Callable[[], Moves], config: DrainConfig) -> None:
        self._moves = moves
        self._config = config

    async def do(self, run: Run) -> Outcome:
        """Look, begin what may be begun, and look again, until a look finds nothing to do twice."""
        roster = evacuation.from_json(run.so_far)
        was_over = False
        while True:
            sight = await run.store.read(lambda tx, known=roster: _look(tx, run.operation, known))  # type: ignore[misc]
            end = self._end_of(run)
            roster = evacuation.brought_up_to_date(roster, sight, may_try_again=not end)
            if end:
                roster = evacuation.given_up(roster, end)
            if run.parameters["force"] and not run.is_cancelled:
                roster = evacuation.with_stops(roster, sight)
            await self._note(run, roster)  # before anything is begun, so that nobody is forgotten
            roster = await self._begin(run, roster, sight)
            await self._note(run, roster)
            is_over = evacuation.is_over(roster)
            if is_over and was_over:
                return Outcome(evacuation.to_json(roster))
            was_over = is_over  # a VM that was placed here just before the cordon may still come
            await asyncio.sleep(self._config.look_interval_s)

    @staticmethod
    def _end_of(run: Run) -> str:
        """Say why no more moves are begun; "" if some may be."""
        if run.is_cancelled:
            return "the drain was cancelled before it was moved"
        grace_s, began_at = int(run.parameters["grace_s"]), run.operation.started_at or run.operation.created_at
        if grace_s and run.now() - began_at >= timedelta(seconds=grace_s):
            return f"it was not moved within {grace_s} s"
        return ""

    @staticmethod
    async def _note(run: Run, roster: Roster) -> None:
        await run.note(evacuation.summary_of(roster), evacuation.to_json(roster))

    async def _begin(self, run: Run, roster: Roster, sight: Sight) -> Roster:
        changed = dict(roster)
        if not self._end_of(run):
            for each in evacuation.next_to_move(roster, sight, self._config.moves_at_once):
                changed[each.vm_id] = await self._move(run, each, sight)
        elif not run.is_cancelled:
            for each in roster.values():
                if each.fate is Fate.MOVING:
                    await self._moves().cancel(each.operation_id, run.operation.principal)
        for each in evacuation.next_to_stop(roster):
            changed[each.vm_id] = await self._stop(run, each)
        return changed

    async def _move(self, run: Run, evacuee: Evacuee, sight: Sight) -> Evacuee:
        wish = MigrationWish(
            target_node_id=run.parameters["target_node_id"],
            live=sight.here[evacuee.vm_id].power_state in ALIVE_STATES,
        )
        caller = _caller(run, f"{evacuee.vm_id}:{evacuee.attempt}")
        try:
            operation = await self._moves().move(evacuee.vm_id, wish, caller)
        except ApiError as error:
            _raise_if_passing(error)
            if error.reason == Reason.TOO_MANY_OPERATIONS:
                return evacuee
            return evacuation.refused(evacuee, error.reason, error.message)
        return replace(evacuee, fate=Fate.MOVING, operation_id=operation.id)

    async def _stop(self, run: Run, evacuee: Evacuee) -> Evacuee:
        timeout_s = int(run.parameters["grace_s"]) or DEFAULT_STOP_TIMEOUT_S
        try:
            operation = await self._moves().stop(evacuee.vm_id, timeout_s, _caller(run, f"{evacuee.vm_id}:stop"))
        except ApiError as error:
            _raise_if_passing(error)
            why = f"{evacuee.why}; nor can it be stopped: {error.message}"
            return replace(evacuee, fate=Fate.STUCK, why=why)
        return replace(evacuee, operation_id=operation.id)


class ConcludeStep(DatabaseStep):
    """Leave the node in maintenance, with whatever could not be moved."""

    name = "conclude"

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the phase."""
        node = await _required(tx, run.operation)
        left = len((await tx.vm_ids_by_node([node.id])).get(node.id, ()))
        rest = f"{left} VMs are still there" if left else "no VM is left there"
        event = Event(
            EventType.NODE_DRAINED,
            f"node {node.hostname} was drained: {rest}",
            Severity.WARNING if left else Severity.INFO,
            run.operation.principal,
            {"vm_count": str(left)},
        )
        await tx.update_node(node_life.drained(node, run.now()), _of_operation(event, run.operation))
        return outcome


class DrainNode(Workflow):
    """`DrainNode`. It succeeds when every VM has an outcome, whatever that is.

    Args:
        moves: gives what moves VMs, which needs the desk, which needs all workflows first.
        room: None where no room is kept for VMs of nodes that fail.
    """

    kind = "node.drain"

    def __init__(
        self, moves: Callable[[], Moves], config: DrainConfig | None = None, room: RoomRules | None = None
    ) -> None:
        self._steps = (CordonStep(room or NothingKept()), EvacuateStep(moves, config or DrainConfig()), ConcludeStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always the same."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Tell of each VM; only one that is placed elsewhere now, by the database, was moved."""
        node = await _required(tx, operation)
        roster = _roster_of(operation)
        here = {vm.id: vm for vm in await tx.vms_on_node(node.id)}
        elsewhere = await tx.nodes_of_vms([vm_id for vm_id in roster if vm_id not in here])
        response = DrainNodeResponse(node=documents.node(node, sorted(here)), migrated_vm_ids=sorted(elsewhere))
        for vm_id in sorted(here):
            each = roster.get(vm_id)
            if each is not None and each.fate is Fate.STOPPED:
                response.stopped_vm_ids.append(vm_id)
                continue
            why = "it came while the drain ended; drain again" if each is None or not each.why else each.why
            response.failures.add(vm_id=vm_id, error=why)
        return response


def drain_parameters(grace_s: int, target_node_id: str, *, force: bool) -> Json:
    """What the steps need to know of the request."""
    return {"grace_s": grace_s, "target_node_id": target_node_id, "force": force}


async def _look(tx: Transaction, operation: Operation, roster: Roster) -> Sight:
    """Read what is on the node, where those of the roster are, and how far their operations are."""
    node = await _required(tx, operation)
    here = {vm.id: vm for vm in await tx.vms_on_node(node.id)}
    elsewhere = await tx.nodes_of_vms([vm_id for vm_id in roster if vm_id not in here])
    operations = {}
    for each in roster.values():
        if each.fate in evacuation.UNDER_WAY:
            found = await tx.get_operation(each.operation_id)
            if found is not None:
                operations[found.id] = found
    return Sight(here, elsewhere, operations)


def _roster_of(operation: Operation) -> Roster:
    return evacuation.from_json(next(step.result for step in operation.steps if step.name == _EVACUATE))


def _caller(run: Run, what: str) -> Caller:
    """Who asks for the operation of a VM: the one who asked for the drain, under an id that is the same each time."""
    request_id = f"{run.operation.id}:{what}"
    return Caller(run.operation.principal, waits=False).with_request(request_id, request_id)


def _raise_if_passing(error: ApiError) -> None:
    """A database that does not answer says nothing of the VM."""
    if error.reason == Reason.STATE_UNAVAILABLE:
        raise error


async def _required(tx: Transaction, operation: Operation) -> Node:
    node = await tx.get_node(operation.resource_id)
    if node is None:
        raise errors.node_not_found(operation.resource_id)
    return node


def _of_operation(event: Event, operation: Operation) -> Event:
    return replace(event, metadata={**event.metadata, "operation_id": operation.id})
