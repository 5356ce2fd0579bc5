"""Migrating a VM: choose a node and claim it, wait for a turn, make the target ready, send, tidy up.

What became of the VM is never told by a stream or a call that failed, but by both hosts, asked for it
(`controlplane.domain.migration_truth`). From when the target has it, the operation only goes forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.domain import documents, errors, migration_errors
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import (
    COST_OF_MEMORY,
    COST_WITH_DISKS,
    Migration,
    MigrationRules,
    MigrationWish,
    share_storage,
    turns,
)
from controlplane.domain.migration_rules import (
    require_capable,
    require_copyable,
    require_migratable,
)
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.placement import LOST_EVERY_RACE
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm
from controlplane.operations.migration_hosts import Hosts
from controlplane.operations.migration_prediction import predict
from controlplane.operations.migration_records import hand_over, stay
from controlplane.operations.migration_transfer import TransferStep, is_unsettled, kept_of
from controlplane.operations.migration_wishes import wish_of
from controlplane.operations.steps import (
    NOTHING,
    DatabaseStep,
    Outcome,
    OwnershipLost,
    Run,
    Step,
    Workflow,
    require_unfenced,
)
from controlplane.operations.vm_records import locked, record_failure, size_of
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_service_pb2 import MigrateVMResponse, MigrationPrediction, MigrationStats
from limiquantix.errors import Reason


@dataclass(frozen=True, slots=True)
class Chosen:
    """Nodes that may take a VM, best first, and what it will claim there."""

    node_ids: tuple[str, ...]
    size: Capacity


class ChooseTarget(Protocol):
    """Finds nodes for a VM that is to move; reads only."""

    async def __call__(self, tx: Transaction, vm: Vm, wish: MigrationWish) -> Chosen:
        """Choose.

        Raises:
            NotFound: the node that is asked for does not exist.
            FailedPrecondition: it is the one that the VM is on.
            ResourceExhausted: no node fits; the error has one reason per node.
        """
        ...


async def take_named(tx: Transaction, vm: Vm, wish: MigrationWish) -> Chosen:
    """Take the node that is asked for, whatever the scheduler would say of it; see `ChooseTarget`."""
    if not wish.target_node_id:
        raise migration_errors.refused(vm.id, "nobody chooses a node for it here; name one")
    return Chosen((wish.target_node_id,), size_of(vm))


def require_wished(vm: Vm, wish: MigrationWish) -> None:
    """Check what the VM alone decides.

    Raises:
        FailedPrecondition: it keeps the VM where it is.
    """
    require_migratable(vm)
    if not vm.node_id:
        raise errors.vm_not_placed(vm.id)
    if wish.target_node_id == vm.node_id:
        raise migration_errors.same_node(vm.id, vm.node_id)


async def require_allowed(tx: Transaction, vm: Vm, wish: MigrationWish) -> Node:
    """Check all that can be checked without a target; returns the node that the VM is on.

    Raises:
        FailedPrecondition: the VM, or its node, keeps it where it is.
        Unavailable: its node is proven dead, reason NODE_FENCED; only high availability moves VMs from there.
    """
    require_wished(vm, wish)
    node = await tx.get_node(vm.node_id)
    if node is None:
        raise errors.vm_not_placed(vm.id)
    await require_unfenced(tx, node)
    require_capable(vm, node)
    unfinished = await tx.get_migration(vm.id)
    if unfinished is not None and not unfinished.is_settled:
        raise migration_errors.refused(vm.id, "what became of its last migration is not settled yet; wait for that")
    return node


async def require_way(tx: Transaction, vm: Vm, wish: MigrationWish, source: Node, target_id: str) -> tuple[Node, bool]:
    """Check what the target decides; returns it, and whether disks have to be copied.

    Raises:
        FailedPrecondition: the VM cannot get there.
    """
    target = await tx.get_node(target_id)
    if target is None:
        raise errors.node_not_found(target_id)
    require_capable(vm, target)
    copies = not share_storage(source, target)
    if copies and wish.shared_storage_only:
        why = f"nodes {source.hostname} and {target.hostname} share no storage, and disks shall not be copied"
        raise migration_errors.refused(vm.id, why, node_id=target.id)
    if copies:
        require_copyable(vm, source, target)
    return target, copies


class ChooseStep(DatabaseStep):
    """Choose the target, and claim what the VM needs there."""

    name = "choose"

    def __init__(self, choose: ChooseTarget) -> None:
        self._choose = choose

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Claim on the best node where the room is still there."""
        vm, wish = await locked(tx, run.operation.resource_id), wish_of(run.parameters)
        last = await tx.get_migration(vm.id)
        if last is not None and last.operation_id == run.operation.id:
            return outcome  # it was committed, and the answer was lost: this transaction finds that out and is dropped
        if vm.node_id != run.parameters["from_node_id"]:
            why = f"it moved to node {vm.node_id} after this was asked for; ask again if that is not where it shall be"
            raise migration_errors.refused(vm.id, why, node_id=vm.node_id)
        source = await require_allowed(tx, vm, wish)
        chosen = await self._choose(tx, vm, wish)
        target_id = await _claim_first(tx, chosen)
        target, copies = await require_way(tx, vm, wish, source, target_id)
        migration = Migration(
            vm_id=vm.id,
            operation_id=run.operation.id,
            source_node_id=source.id,
            target_node_id=target.id,
            asked_at=run.now(),
            copies_disks=copies,
            ran=vm.power_state in ALIVE_STATES,
            claimed=chosen.size,
            cost=COST_WITH_DISKS if copies else COST_OF_MEMORY,
        )
        await tx.put_migration(migration)
        shown = {"source": source.hostname, "target": target.hostname, "copies_disks": copies}
        return Outcome(shown, {"state_before": PowerState.Name(vm.power_state), "target_node_id": target.id})

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Give the claim back; not while the VM may be there."""
        migration = await tx.get_migration(run.operation.resource_id)
        if migration is None or migration.operation_id != run.operation.id or is_unsettled(run.operation):
            return
        await stay(tx, migration, is_tidy=not migration.is_settled)


async def _own_migration(tx: Transaction, run: Run) -> Migration:
    """Read what the first step wrote.

    Raises:
        OwnershipLost: it is gone, so another process has carried the operation to its end.
    """
    migration = await tx.get_migration(run.operation.resource_id)
    if migration is None or migration.operation_id != run.operation.id:
        raise OwnershipLost
    return migration


async def _claim_first(tx: Transaction, chosen: Chosen) -> str:
    for node_id in chosen.node_ids:
        if await tx.claim(node_id, chosen.size):
            return node_id
    raise errors.no_node_fits(LOST_EVERY_RACE, ())


class SlotStep(Step):
    """Wait until the cluster and both nodes may carry one more."""

    name = "slot"
    is_interruptible = True

    def __init__(self, rules: MigrationRules) -> None:
        self._rules = rules

    async def do(self, run: Run) -> Outcome:
        """Wait, and say at which place. The slot is held until the operation ends, and needs no giving back."""
        vm_id = run.operation.resource_id

        async def look(tx: Transaction, *, held: bool = False) -> int:
            """Return the place in the queue; 0 for none."""
            in_order = await tx.migrations_in_turn(held=held)
            if any(each.vm_id == vm_id and each.granted_at is not None for each in in_order):
                return 0
            whose = turns(in_order, self._rules)
            if vm_id not in whose.may_begin:
                return whose.places.get(vm_id, 1)
            if held:
                await tx.grant_migrations([vm_id], run.now())
            return 0

        while True:
            place = await run.store.read(look)
            if place == 0:  # read beside others who may see the same: it counts only once it is held against them
                place = await run.store.run(lambda tx: look(tx, held=True))
            if place == 0:
                return NOTHING
            await run.note(f"its turn among the migrations: {place - 1} before it" if place > 1 else "a free slot")
            await asyncio.sleep(self._rules.poll_s)


class PrepareStep(Step):
    """Predict what it takes, make the target ready, and have it let the VM in."""

    name = "prepare"
    minds_fences = True

    def __init__(self, rules: MigrationRules) -> None:
        self._rules = rules

    async def do(self, run: Run) -> Outcome:
        """Ask both hosts."""
        hosts, wish = await Hosts.of(run), wish_of(run.parameters)
        require_migratable(replace(hosts.vm, power_state=PowerState.Value(run.parameters["state_before"])))
        measured = await hosts.measured()
        predicted = predict(hosts, wish, self._rules, measured)
        told_before = await hosts.last_told(run.operation.generation)
        token, is_protected = await hosts.admit(run.operation.generation, measured)
        shown = json_format.MessageToDict(predicted, preserving_proto_field_name=True)
        kept = {"way": kept_of(token), "forecast": shown, "told_before": told_before, "is_protected": is_protected}
        return Outcome({"target": hosts.target_node.hostname, "forecast": shown}, kept)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Show that it is being migrated."""
        vm, migration = await locked(tx, run.operation.resource_id), await _own_migration(tx, run)
        text = f"VM {vm.name} is being migrated to node {migration.target_node_id}"
        facts = {"source_node_id": migration.source_node_id, "target_node_id": migration.target_node_id}
        event = Event(EventType.VM_MIGRATING, text, actor=run.operation.principal, metadata=facts)
        now = run.now()
        shown = replace(vm, power_state=PowerState.MIGRATING, state_changed_at=now, updated_at=now)
        await tx.update_vm(shown, event)
        return outcome

    async def undo(self, run: Run) -> None:
        """Have the target remove what it made ready, and the source forget it; not while the VM may have moved."""
        if is_unsettled(run.operation):
            return
        hosts = await Hosts.of(run)
        for error in (await hosts.tidy(run.operation.generation, moved=False)).values():
            raise error

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Note that a host is still to be tidied, so that it is when it reports again."""
        migration = await tx.get_migration(run.operation.resource_id)
        if migration is not None and migration.operation_id == run.operation.id:
            await tx.put_migration(replace(migration, is_settled=True))

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Show the state again that it had; what became of it meanwhile its host reports."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is None or vm.power_state != PowerState.MIGRATING:
            return
        before = PowerState.Value(run.parameters["state_before"])
        state = PowerState.UNKNOWN if is_unsettled(run.operation) else before
        now = run.now()
        await tx.update_vm(replace(vm, power_state=state, state_changed_at=now, updated_at=now))


class HandOverStep(TransferStep):
    """Send the VM; place and claim move in the transaction that notes that it is there."""

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Move the record."""
        vm, migration = await locked(tx, run.operation.resource_id), await _own_migration(tx, run)
        result, stats = outcome.result, outcome.result["stats"]
        facts = {name: str(value) for name, value in stats.items()}
        state = PowerState.Value(result["state"])
        count, now = int(result["state_change_count"]), run.now()
        moved = await hand_over(tx, vm, migration, state, count, now, run.operation.principal, facts)
        if run.parameters.get("is_protected"):
            await tx.update_vm(replace(moved, is_protected=True))
        return outcome


class TidyStep(Step):
    """Have both hosts tidy up; what they cannot do now does not change that the VM has moved."""

    name = "tidy"
    minds_fences = True
    is_cancellable = False

    async def do(self, run: Run) -> Outcome:
        """Give the commands, and say what could not be done."""
        hosts = await Hosts.of(run)
        trouble = await hosts.tidy(run.operation.generation, moved=True)
        return Outcome({"untidy": {hostname: error.message for hostname, error in trouble.items()}})

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Forget the migration, unless something is left, which is tried again when its host reports."""
        if not outcome.result["untidy"]:
            await tx.remove_migration(run.operation.resource_id)
        return outcome if outcome.result["untidy"] else NOTHING


class MigrateVm(Workflow):
    """`MigrateVM`; a failure leaves the VM where it was, with the error."""

    kind = "vm.migrate"

    def __init__(self, choose: ChooseTarget, rules: MigrationRules) -> None:
        self._steps = (ChooseStep(choose), SlotStep(rules), PrepareStep(rules), HandOverStep(rules), TidyStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always the same."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM, what it took, and what was expected."""
        vm = await locked(tx, operation.resource_id)
        parameters = operation.parameters
        return MigrateVMResponse(
            vm=documents.virtual_machine(vm),
            stats=json_format.ParseDict(parameters["stats"], MigrationStats()),
            forecast=json_format.ParseDict(parameters["forecast"], MigrationPrediction()),
        )

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM, and tell of it."""
        await record_failure(tx, operation, fault, now)
        vm = await tx.get_vm(operation.resource_id)
        if vm is None:
            return
        was_cancelled = fault.reason == Reason.OPERATION_CANCELLED
        event = Event(
            EventType.VM_MIGRATION_FAILED,
            f"VM {vm.name} was not migrated: {fault.message}",
            Severity.INFO if was_cancelled else Severity.ERROR,
            operation.principal,
            {"operation_id": operation.id, "reason": fault.reason, "node_id": vm.node_id},
        )
        await tx.log_vm_event(vm, event)
