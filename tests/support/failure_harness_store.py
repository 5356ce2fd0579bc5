"""The store between two boundaries, and a witness who looks at every commit.

The witness looks inside each transaction that writes, just before it is committed, so nothing that was wrong only for a
moment escapes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from controlplane.domain import errors
from controlplane.domain.node import Capacity
from controlplane.domain.operation import ACTIVE_STATES, Operation, OperationState, StepState
from controlplane.domain.vm import Vm
from controlplane.state.faults import OUTCOME_UNKNOWN
from controlplane.state.interface import Store, Transaction
from tests.support.failure_harness_faults import Fault, Place, Weather

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Sight:
    """What a transaction leaves: unfinished operations, those that it ended, and VMs; `number` orders what was seen."""

    number: int
    operations: Mapping[str, Operation]
    vms: Mapping[str, Vm]


@dataclass
class Witness:
    """Remembers what was committed, and finds what must never be.

    Args:
        is_serial: whether writers of this database come one after the other, so that what one of them sees was so at
            one time, and the order in which they are seen is the one in which they commit.
    """

    is_serial: bool = True
    findings: list[str] = field(default_factory=list)
    _seen: Sight = field(default_factory=lambda: Sight(0, {}, {}))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def look(self, tx: Transaction) -> Sight:
        """See what the transaction is about to commit."""
        found = {operation.id: operation for operation in await tx.unfinished_operations((), 100)}
        for operation_id in self._seen.operations:
            if operation_id not in found and (ended := await tx.get_operation(operation_id)) is not None:
                found[operation_id] = ended
        nodes = await tx.all_nodes()
        vms = {vm.id: vm for node in nodes for vm in await tx.vms_on_node(node.id)}
        for node in nodes:
            self._check_claims(node.allocated, node.capacity, [vm for vm in vms.values() if vm.node_id == node.id])
        return Sight(next(self._numbers), found, vms)

    def committed(self, now: Sight) -> str:
        """Compare with what was committed before; returns in a few words what happened to operations."""
        before = self._seen
        active = [each.resource_id for each in now.operations.values() if each.state in ACTIVE_STATES]
        if len(active) != len(set(active)):
            self.findings.append("two operations were active on one VM")
        if now.number > before.number:
            self._seen = now
            if self.is_serial:
                self._check_order(before, now)
        return "; ".join(_changes(before.operations, now.operations)) or "no operation"

    def _check_order(self, before: Sight, now: Sight) -> None:
        for operation_id, older in before.operations.items():
            operation = now.operations.get(operation_id)
            if operation is not None and older.generation > operation.generation:
                self.findings.append(f"generation of {operation.kind} fell: {older.generation}, {operation.generation}")
            if older.has_ended and operation is not None and older != operation:
                self.findings.append(f"{operation.kind} changed after it had ended")
        for vm_id, vm in before.vms.items():
            if vm_id in now.vms and vm.generation > now.vms[vm_id].generation:
                self.findings.append(f"generation of VM fell: {vm.generation}, {now.vms[vm_id].generation}")

    def _check_claims(self, allocated: Capacity, capacity: Capacity, vms: list[Vm]) -> None:
        needed = Capacity(sum(vm.vcpu_count for vm in vms), sum(vm.memory_bytes for vm in vms))
        is_short = allocated.vcpus < needed.vcpus or allocated.memory_bytes < needed.memory_bytes
        if is_short and self.is_serial:
            self.findings.append(f"claims {allocated} were below what VMs have: {needed}")
        if allocated.vcpus > capacity.vcpus or allocated.memory_bytes > capacity.memory_bytes:
            self.findings.append(f"claims {allocated} were above the capacity {capacity}")


def _changes(before: Mapping[str, Operation], now: Mapping[str, Operation]) -> list[str]:
    words = []
    for operation in now.values():
        older = before.get(operation.id)
        if older is None:
            words.append(f"{operation.kind} recorded")
            continue
        for old, new in zip(older.steps, operation.steps, strict=True):
            if old.state != new.state:
                words.append(f"{new.name} {StepState.Name(new.state)}")
        if older.state != operation.state:
            words.append(f"is {OperationState.Name(operation.state)}")
    return words


class HarnessStore:
    """A store whose calls are boundaries, if it has weather; implements `Store`."""

    def __init__(self, store: Store, witness: Witness, weather: Weather | None) -> None:
        self._store = store
        self._witness = witness
        self._weather = weather

    async def open(self) -> None:
        """Nothing: the store behind is open."""

    async def close(self) -> None:
        """Nothing: the store behind is closed by whoever opened it."""

    async def ping(self) -> None:
        """Ask the store behind."""
        await self._store.ping()

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do it between two boundaries, before the witness's eyes."""
        sights: list[Sight] = []

        async def watched(tx: Transaction) -> ResultT:
            result = await work(tx)
            sights.append(await self._witness.look(tx))
            return result

        weather = self._weather
        if weather is None:
            result = await self._store.run(watched)
            self._witness.committed(sights[-1])
            return result
        match await weather.reach(Place.BEFORE_COMMIT, ""):
            case Fault.TWICE:
                await self._in_vain(work)
            case fault:
                self._begin(fault)
        self._require_answer()
        result = await self._store.run(watched)
        name = self._witness.committed(sights[-1])
        fault = await weather.reach(Place.AFTER_COMMIT, "")
        weather.name_last(name)
        if fault in (Fault.COMMIT_UNKNOWN, Fault.COMMIT_UNKNOWN_AWAY):
            if fault is Fault.COMMIT_UNKNOWN_AWAY:
                weather.begin_store_absence()
            raise errors.state_unavailable(f"no answer within 0 s; {OUTCOME_UNKNOWN}")
        return result

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do it after one boundary."""
        if self._weather is not None:
            self._begin(await self._weather.reach(Place.READ, "read"))
            self._require_answer()
        return await self._store.read(work)

    def _begin(self, fault: Fault | None) -> None:
        assert self._weather is not None
        if fault is Fault.STORE_BLINKS:
            self._weather.begin_store_blink()
        elif fault is Fault.STORE_AWAY:
            self._weather.begin_store_absence()

    def _require_answer(self) -> None:
        if self._weather is not None and self._weather.store_is_away():
            raise errors.state_unavailable("it is away")

    async def _in_vain(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> None:
        async def taken_back(tx: Transaction) -> None:
            await work(tx)
            raise _TakenBack

        try:
            await self._store.run(taken_back)
        except _TakenBack:
            return


class _TakenBack(Exception):
    """Has a transaction rolled back."""
