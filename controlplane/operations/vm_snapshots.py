"""Operations on a VM's snapshots. What is recorded of them is always the host's own list, read after acting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import cast

from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_snapshots import to_snapshot_status
from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain import errors, snapshots
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm, observed, settled
from controlplane.operations.quotas import require_room_to_grow
from controlplane.operations.room_rules import NothingKept, RoomRules
from controlplane.operations.steps import DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import (
    capacity_from_json,
    capacity_to_json,
    document_of,
    locked,
    record_failure,
    size_of,
    write_with_claim,
)
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import Snapshot, SnapshotStatus, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateSnapshotRequest
from limiquantix.errors import ApiError, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_NO_ROOM = Capacity(0, 0)


@dataclass(frozen=True, slots=True)
class SnapshotOutcome(Outcome):
    """What a host's VM is after a step: its snapshots, which are written to the VM and not to the operation."""

    told: SnapshotStatus = field(default_factory=SnapshotStatus)


def parameters_of(request: CreateSnapshotRequest, snapshot_id: str) -> Json:
    """What the steps need of a request for a snapshot, and the id it gets."""
    return {
        "snapshot_id": snapshot_id,
        "name": request.name,
        "description": request.description,
        "include_memory": request.include_memory,
        "quiesce": request.quiesce,
    }


def require_snapshot_allowed(vm: Vm, parameters: Mapping[str, object]) -> None:
    """Check a request for a snapshot, see `controlplane.domain.snapshots`."""
    snapshots.require_snapshot_allowed(
        vm,
        str(parameters["name"]),
        include_memory=bool(parameters["include_memory"]),
        quiesce=bool(parameters["quiesce"]),
    )


async def _outcome(daemon: NodeDaemon, vm_id: str, result: Json) -> SnapshotOutcome:
    listed = await daemon.list_snapshots(vm_id)
    return SnapshotOutcome(result, told=to_snapshot_status(listed.snapshots))


def _told(outcome: Outcome) -> SnapshotStatus:
    return cast(SnapshotOutcome, outcome).told


class SaveStep(Step):
    """Have the host take the snapshot. Its id was chosen before, so a repeated command finds it."""

    name = "save"

    async def do(self, run: Run) -> Outcome:
        """Give the command."""
        vm, daemon = await run.located()
        if not run.is_repeated:
            require_snapshot_allowed(vm, run.parameters)
        request = node_v1.CreateSnapshotRequest(
            vm_id=vm.id,
            name=run.parameters["name"],
            description=run.parameters["description"],
            quiesce=run.parameters["quiesce"],
            include_memory=run.parameters["include_memory"],
            snapshot_id=run.parameters["snapshot_id"],
            generation=run.operation.generation,
        )
        await daemon.create_snapshot(request)
        return await _outcome(daemon, vm.id, {"snapshot_id": run.parameters["snapshot_id"]})

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's list, and with the new one what the VM is configured as."""
        snapshot_id, name = str(run.parameters["snapshot_id"]), str(run.parameters["name"])
        vm = await locked(tx, run.operation.resource_id)
        changed = snapshots.with_snapshots(vm, _told(outcome), new_id=snapshot_id)
        facts = {"snapshot_id": snapshot_id, "name": name}
        text = f"snapshot {name!r} of VM {vm.name} was taken"
        event = Event(EventType.VM_SNAPSHOT_CREATED, text, actor=run.operation.principal, metadata=facts)
        await tx.update_vm(replace(changed, error_message="", updated_at=run.now()), event)
        return Outcome(outcome.result)

    async def undo(self, run: Run) -> None:
        """Delete it, if the host has it."""
        try:
            vm, daemon = await run.located()
            await daemon.delete_snapshot(_delete_request(run, vm.id))
        except NotFound:
            return
        except ApiError as error:
            if error.reason != Reason.HOST_LACKS:
                raise

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Remember that the host may have it, so that it is removed when the host reports again."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            name = str(run.parameters["name"])
            left = snapshots.with_abandoned(vm, str(run.parameters["snapshot_id"]), name)
            text = f"snapshot {name!r} of VM {vm.name} failed, and what its host has of it is still to be removed"
            await tx.update_vm(replace(left, updated_at=run.now()), Event(EventType.VM_UPDATED, text))


def _delete_request(run: Run, vm_id: str) -> node_v1.DeleteSnapshotRequest:
    return node_v1.DeleteSnapshotRequest(
        vm_id=vm_id, snapshot_id=run.parameters["snapshot_id"], generation=run.operation.generation
    )


class CreateSnapshot(Workflow):
    """`CreateSnapshot`; a failure leaves none, and the error with the VM."""

    kind = "vm.create_snapshot"
    _step = SaveStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the snapshot."""
        vm = await locked(tx, operation.resource_id)
        snapshot_id = str(operation.parameters["snapshot_id"])
        found = snapshots.find_snapshot(vm, snapshot_id)
        if found is None:
            raise errors.snapshot_not_found(vm.id, snapshot_id)
        shown = Snapshot()
        shown.CopyFrom(found)
        shown.ClearField("spec")
        return shown

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)


class ClaimStep(DatabaseStep):
    """Claim what the VM had more of when it was saved; what it had less of stays claimed until it is put back."""

    name = "claim"

    def __init__(self, room: RoomRules) -> None:
        self._room = room

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Claim, and keep what the VM will be configured as."""
        vm = await locked(tx, run.operation.resource_id)
        snapshots.require_revert_allowed(vm)
        saved = snapshots.find_snapshot(vm, str(run.parameters["snapshot_id"]))
        spec = snapshots.spec_after_revert(vm, saved)
        reverted = settled(replace(vm, spec=spec))
        now, then = size_of(vm), size_of(reverted)
        await self._room.require_for_change(tx, vm, reverted)
        grown = Capacity(max(then.vcpus - now.vcpus, 0), max(then.memory_bytes - now.memory_bytes, 0))
        if grown != _NO_ROOM and not await tx.claim(vm.node_id, grown):
            raise errors.no_room_to_grow(vm.id, grown, await tx.get_node(vm.node_id))
        await require_room_to_grow(tx, vm, reverted)
        return Outcome(
            {},
            {
                "grown": capacity_to_json(grown),
                "spec": json_format.MessageToDict(spec, preserving_proto_field_name=True),
            },
        )

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Give back what grew."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            await tx.release(vm.node_id, capacity_from_json(run.parameters["grown"]))


class RevertStep(Step):
    """Have the host put the VM back. Harmless when repeated, and nothing brings back what it overwrites."""

    name = "revert"

    async def do(self, run: Run) -> Outcome:
        """Give the command, and ask what the VM is then."""
        vm, daemon = await run.located()
        request = node_v1.RevertSnapshotRequest(
            vm_id=vm.id,
            snapshot_id=run.parameters["snapshot_id"],
            start_after_revert=run.parameters["start"],
            generation=run.operation.generation,
        )
        await daemon.revert_snapshot(request)
        status = await daemon.vm_status(vm.id)
        result = {
            "state": PowerState.Name(STATE_OF_STATUS[status.state]),
            "state_change_count": status.state_change_count,
        }
        return await _outcome(daemon, vm.id, result)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write what the host says, and the spec that belongs to it; give back what shrank."""
        vm = await locked(tx, run.operation.resource_id)
        result, snapshot_id = outcome.result, str(run.parameters["snapshot_id"])
        changed = snapshots.with_snapshots(vm, _told(outcome))
        if result["state_change_count"] >= vm.reported_change_count:
            changed = observed(changed, PowerState.Value(result["state"]), result["state_change_count"], run.now())
        runs = PowerState.Value(result["state"]) in ALIVE_STATES
        changed = replace(
            changed,
            spec=json_format.ParseDict(run.parameters["spec"], VmSpec()),
            wanted_state=PowerState.RUNNING if runs else PowerState.STOPPED,
            restart_count=0,
            error_message="",
            updated_at=run.now(),
        )
        changed = settled(changed)  # whatever waited for the next start belongs to what is overwritten
        saved = snapshots.find_snapshot(changed, snapshot_id)
        name = saved.name if saved is not None else snapshot_id
        facts = {"snapshot_id": snapshot_id, "name": name, "state": str(result["state"])}
        text = f"VM {vm.name} was put back to snapshot {name!r}"
        event = Event(EventType.VM_SNAPSHOT_REVERTED, text, actor=run.operation.principal, metadata=facts)
        await write_with_claim(tx, vm, changed, event)
        await tx.release(vm.node_id, capacity_from_json(run.parameters["grown"]))  # it is in the VM's own claim now
        return Outcome(result)


class RevertToSnapshot(Workflow):
    """`RevertToSnapshot`; a failure leaves the VM as its host says it is, with the error."""

    kind = "vm.revert_to_snapshot"

    def __init__(self, room: RoomRules | None = None) -> None:
        self._steps = (ClaimStep(room or NothingKept()), RevertStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Room first, since the VM may have been larger."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)


class DropStep(Step):
    """Have the host delete the snapshot; children stay."""

    name = "drop"

    async def do(self, run: Run) -> Outcome:
        """Give the command; a repeated one does not mind that it is gone."""
        vm, daemon = await run.located()
        snapshot_id = str(run.parameters["snapshot_id"])
        if not run.is_repeated:
            snapshots.require_delete_allowed(vm)
        if not run.is_repeated and not run.parameters.get("is_leftover"):
            listed = await daemon.list_snapshots(vm.id)
            if snapshot_id not in {each.snapshot_id for each in listed.snapshots}:
                raise errors.snapshot_not_found(vm.id, snapshot_id)
        await daemon.delete_snapshot(_delete_request(run, vm.id))
        return await _outcome(daemon, vm.id, {"snapshot_id": snapshot_id})

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's list."""
        vm = await locked(tx, run.operation.resource_id)
        snapshot_id = str(run.parameters["snapshot_id"])
        gone = snapshots.find_snapshot(vm, snapshot_id)
        name = gone.name if gone is not None else snapshot_id
        facts = {"snapshot_id": snapshot_id, "name": name}
        text = f"snapshot {name!r} of VM {vm.name} was deleted"
        event = Event(EventType.VM_SNAPSHOT_DELETED, text, actor=run.operation.principal, metadata=facts)
        changed = snapshots.with_snapshots(vm, _told(outcome))
        await tx.update_vm(replace(changed, error_message="", updated_at=run.now()), event)
        return Outcome(outcome.result)

    async def undo(self, run: Run) -> None:
        """Nothing brings it back; find out whether it is gone, which is told by raising that.

        Raises:
            NotFound: it is gone.
            Unavailable: the host cannot be asked.
        """
        try:
            vm, daemon = await run.located()
        except NotFound:
            return
        snapshot_id = str(run.parameters["snapshot_id"])
        if snapshot_id not in {each.snapshot_id for each in (await daemon.list_snapshots(vm.id)).snapshots}:
            raise errors.snapshot_not_found(vm.id, snapshot_id)

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Record that it is gone, or else have the deletion finished when the host reports again."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is None or snapshots.find_snapshot(vm, str(run.parameters["snapshot_id"])) is None:
            return
        snapshot_id = str(run.parameters["snapshot_id"])
        is_gone = fault.reason == Reason.SNAPSHOT_NOT_FOUND
        left = snapshots.without(vm, snapshot_id) if is_gone else snapshots.with_abandoned(vm, snapshot_id, "")
        text = f"a snapshot of VM {vm.name} {'is gone' if is_gone else 'may be half deleted; its host does not answer'}"
        await tx.update_vm(replace(left, updated_at=run.now()), Event(EventType.VM_UPDATED, text))


class DeleteSnapshot(Workflow):
    """`DeleteSnapshot`; a failure leaves the error with the VM. What the host had begun with is finished later."""

    kind = "vm.delete_snapshot"
    _step = DropStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return Empty()

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)
