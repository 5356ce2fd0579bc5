"""What must be so when a migration and everything after it is over, whatever went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain.event import EventType, LoggedEvent
from controlplane.domain.migration import Migration
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.migration_transfer import is_unsettled
from controlplane.operations.vm_life import DeleteVm
from limiquantix.errors import ApiError, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.fake_daemons import STOPPED, FakeDaemon


@dataclass(frozen=True)
class MigrationEnd:
    """What there is at the end.

    `ran` says whether the VM ran before. `answer` is what the caller heard, None if that was no error. `intrusion` is
    what somebody else asked for meanwhile, `moved_by` the event that tells of the move: a failover goes on at the
    target, whatever fails after it. One that did not start there `may_move_back`.
    """

    vm_id: str
    target_id: str
    ran: bool
    row: Vm | None
    placed: Sequence[Vm]
    nodes: Sequence[Node]
    hosts: Mapping[str, FakeDaemon]
    left: Migration | None
    operations: Sequence[Operation]
    events: Sequence[LoggedEvent]
    operation: Operation | None
    answer: ApiError | None
    intrusion: Operation | None = None
    moved_by: EventType = EventType.VM_MIGRATED
    may_move_back: bool = False

    @property
    def is_failover(self) -> bool:
        """Whether it only goes forward once the VM has moved."""
        return self.moved_by == EventType.VM_FAILED_OVER

    @property
    def has_moved(self) -> bool:
        """Whether the record says that the VM is at the target."""
        return self.row is not None and self.row.node_id == self.target_id


def faults_of_world(end: MigrationEnd) -> Iterator[str]:
    """Name whatever is not as it must be in the database and on the hosts."""
    yield from _place(end)
    yield from _tidiness(end)
    for operation in end.operations:
        if not operation.has_ended:
            yield f"{operation.kind} did not end: {OperationState.Name(operation.state)}, {operation.waiting_for!r}"
        if operation.fault is not None and operation.fault.reason == Reason.INTERNAL:
            yield f"{operation.kind} met a defect: {operation.fault.message}"
    for node in end.nodes:
        here = [vm for vm in end.placed if vm.node_id == node.id]
        needed = Capacity(sum(vm.vcpu_count for vm in here), sum(vm.memory_bytes for vm in here))
        if node.allocated != needed:
            where = "target" if node.id == end.target_id else "source"
            yield f"claims on the {where} are {node.allocated}, the VMs' sizes {needed}"


def _place(end: MigrationEnd) -> Iterator[str]:
    """The VM is on one host, that one is recorded, and its guest is in the state it was in."""
    having = {node_id: host.vms[end.vm_id] for node_id, host in end.hosts.items() if end.vm_id in host.vms}
    if end.row is None:
        if end.intrusion is None or end.intrusion.kind != DeleteVm.kind:
            yield "the row is gone, though nobody deleted the VM"
        if having:
            yield f"{len(having)} hosts have the VM, which is in no inventory"
        return
    if list(having) != [end.row.node_id]:
        yield f"{len(having)} hosts have the VM, and that is not just the recorded one ({_where(end)})"
        return
    there = having[end.row.node_id]
    if STATE_OF_STATUS[there.state] != end.row.power_state:
        told, recorded = node_v1.PowerState.Name(there.state), PowerState.Name(end.row.power_state)
        yield f"the state is {recorded}, on the host {told}"
    is_back = end.is_failover and not end.has_moved  # whether it starts there again is not the failover's business
    if end.intrusion is None and not is_back and (there.state != STOPPED) != end.ran:
        yield f"the guest is {node_v1.PowerState.Name(there.state)}, though nobody asked for it"
    if end.row.sightings:
        yield "the VM is still said to be on another host too"


def _tidiness(end: MigrationEnd) -> Iterator[str]:
    """Nothing of the migration is left, in the database and on the hosts."""
    if end.left is not None:
        yield f"the migration is still noted ({'settled' if end.left.is_settled else 'not settled'})"
    if end.row is None:
        return  # a host that was away when the VM was deleted is not told; its door shuts by itself after a while
    for node_id, host in end.hosts.items():
        name = "target" if node_id == end.target_id else "source"
        for what in ("prepared", "tokens", "open_doors", "sending"):
            if getattr(host, what):
                yield f"{what} is left on the {name}"


def faults_of_words(end: MigrationEnd) -> Iterator[str]:
    """Name what is told of a move of the VM and did not happen."""
    operation = end.operation
    if operation is None:
        if end.intrusion is None or end.answer is None:
            yield f"there is no operation; the caller heard {end.answer!r}"
        return
    state = OperationState.Name(operation.state)
    heard = end.answer.reason if end.answer is not None else ""
    told = operation.fault.reason if operation.fault is not None else ""
    if end.row is None:
        return  # it was deleted, so nothing says where it was, and the caller may hear just that
    if heard != told:
        yield f"the caller heard {end.answer!r}, the operation says {operation.fault}"
    if operation.state == OperationState.SUCCEEDED and not end.has_moved:
        yield f"{state}, but the VM has not moved"
    if operation.state == OperationState.CANCELLED and end.has_moved and not end.is_failover:
        yield f"{state}, but the VM has moved"
    is_open = is_unsettled(operation) or end.is_failover
    if operation.state == OperationState.FAILED and end.has_moved and not is_open:
        yield f"{state} ({told}), but the VM has moved"
    moves = sum(each.event.type == end.moved_by for each in end.events)
    went_back = end.may_move_back and moves == 2
    if moves != end.has_moved and not (went_back and not end.has_moved):
        yield f"the log says {moves} times {end.moved_by}, and it is at the {_where(end)}"


def _where(end: MigrationEnd) -> str:
    return "target" if end.has_moved else "source"
