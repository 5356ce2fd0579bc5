"""Migrations that only write where a VM is: for tests of what has VMs moved, not of how."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import Message

from controlplane.domain import errors
from controlplane.domain.event import Event, EventType
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Phase
from controlplane.domain.operation import Json, Operation
from controlplane.operations.migration_wishes import wish_of
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow
from controlplane.operations.vm_migration import MigrateVm
from controlplane.operations.vm_records import locked, size_of
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_service_pb2 import MigrateVMResponse
from limiquantix.errors import ApiError


@dataclass
class Traffic:
    """What happens to moves, by VM name."""

    held: dict[str, asyncio.Event] = field(default_factory=dict)
    """Moves that wait until the event is set."""
    refused: dict[str, list[ApiError]] = field(default_factory=dict)
    """Errors of the next moves, one each."""
    forbidden: dict[str, ApiError] = field(default_factory=dict)
    """Errors of all moves."""
    begun: list[str] = field(default_factory=list)
    wishes: dict[str, MigrationWish] = field(default_factory=dict)
    most_at_once: int = 0
    under_way: int = 0

    def hold(self, name: str) -> asyncio.Event:
        """Make the moves of a VM wait."""
        return self.held.setdefault(name, asyncio.Event())


class _MoveStep(Step):
    name = "transfer"
    is_interruptible = True

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    async def do(self, run: Run) -> Outcome:
        """Wait or fail, as the test says."""
        vm = await run.store.read(lambda tx: tx.get_vm(run.operation.resource_id))
        if vm is None:
            raise errors.vm_not_found(run.operation.resource_id)
        traffic = self._traffic
        traffic.begun.append(vm.name)
        traffic.wishes[vm.name] = wish_of(run.parameters)
        traffic.under_way += 1
        traffic.most_at_once = max(traffic.most_at_once, traffic.under_way)
        try:
            if vm.name in traffic.held:
                await traffic.held[vm.name].wait()
            if traffic.refused.get(vm.name):
                raise traffic.refused[vm.name].pop(0)
            if vm.name in traffic.forbidden:
                raise traffic.forbidden[vm.name]
        finally:
            traffic.under_way -= 1
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Place the VM on the first node that takes it."""
        vm, wish = await locked(tx, run.operation.resource_id), wish_of(run.parameters)
        for node in sorted(await tx.all_nodes(), key=lambda node: node.hostname):
            is_wished = wish.target_node_id in ("", node.id)
            takes_it = node.phase == Phase.READY and node.spec.scheduling.schedulable and node.id != vm.node_id
            if is_wished and takes_it and await tx.claim(node.id, size_of(vm)):
                await tx.release(vm.node_id, size_of(vm))
                await tx.update_vm(replace(vm, node_id=node.id), Event(EventType.VM_UPDATED, f"VM {vm.name} moved"))
                return outcome
        raise errors.no_node_fits("no node fits: 1 node is where it is", [])


class SimpleMigrateVm(Workflow):
    """In place of `MigrateVM`."""

    kind = MigrateVm.kind

    def __init__(self, traffic: Traffic) -> None:
        self._step = _MoveStep(traffic)

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return MigrateVMResponse()
