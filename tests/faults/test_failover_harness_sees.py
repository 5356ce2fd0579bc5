"""The harness of drains and of what starts VMs elsewhere finds what it is there to find: each, done wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from google.protobuf.message import Message

from controlplane.domain.operation import Fault, Json, Operation
from controlplane.operations.node_drain import ConcludeStep, DrainNode, EvacuateStep
from controlplane.operations.steps import DatabaseStep, Outcome, Run, Step, Workflow, Workflows
from controlplane.operations.vm_failover import AdoptStep, FinishFailover
from controlplane.operations.vm_records import locked, size_of
from controlplane.operations.vm_release import ReleaseStep, ReleaseVm
from controlplane.operations.vm_relocate import LetGoStep, RelocateVm
from controlplane.operations.vm_start_elsewhere import StartAskedStep, StartElsewhere
from controlplane.state.interface import Transaction
from tests.support.databases import fresh_sqlite
from tests.support.failure_harness_databases import database_pool
from tests.support.failure_harness_drains import CASES as DRAINS
from tests.support.failure_harness_migrations import MigrationCase, MigrationScene, run_once
from tests.support.failure_harness_plane import Plane
from tests.support.failure_harness_restarts import CASES as RESTARTS

CASES = {case.name: case for case in (*DRAINS, *RESTARTS)}


class _LeavesItDraining(DatabaseStep):
    name = ConcludeStep.name


class _MovesNobody(DatabaseStep):
    name = EvacuateStep.name


class _LetsGoOfNothing(Step):
    name = LetGoStep.name

    async def do(self, run: Run) -> Outcome:
        vm = await run.store.read(lambda tx: locked(tx, run.operation.resource_id))
        return Outcome({}, {"from_node_id": vm.node_id})


class _ReleasesNothing(DatabaseStep):
    name = ReleaseStep.name


class _DefinesNothing(DatabaseStep):
    name = AdoptStep.name


class _ClaimsTwice(StartAskedStep):
    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        vm = await locked(tx, run.operation.resource_id)
        await tx.occupy(vm.node_id, size_of(vm))
        return await super().record(tx, run, outcome)


class _Wrong(Workflow):
    """A workflow with one step in place of that of the same name."""

    def __init__(self, right: Workflow, wrong: Step) -> None:
        self.kind = right.kind  # type: ignore[misc]
        self._right, self._wrong = right, wrong

    def steps(self, parameters: Json) -> Sequence[Step]:
        return [self._wrong if step.name == self._wrong.name else step for step in self._right.steps(parameters)]

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        return await self._right.conclude(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        await self._right.fail(tx, operation, fault, now)


def _case(name: str, workflow: type[Workflow], wrong: Step) -> MigrationCase:
    """The case with a step of a workflow done wrongly."""
    scene = CASES[name].scene or MigrationScene

    class WrongScene(scene):  # type: ignore[valid-type, misc]
        def workflows(self, plane: Callable[[], Plane]) -> Workflows:
            right: Workflows = super().workflows(plane)
            return right.with_(_Wrong(right.of(workflow.kind), wrong))

    return replace(CASES[name], scene=WrongScene)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (_case("drain", DrainNode, _LeavesItDraining()), "the node is DRAINING, though it should be MAINTENANCE"),
        (_case("drain", DrainNode, _MovesNobody()), "at the source, without any fault"),
        (_case("relocate", RelocateVm, _LetsGoOfNothing()), "the first host still has the VM"),
        (_case("release", ReleaseVm, _ReleasesNothing()), "the first host still has the VM"),
        (_case("finish failover", FinishFailover, _DefinesNothing()), "FAILED (VM_NOT_FOUND), at the source"),
        (_case("start elsewhere", StartElsewhere, _ClaimsTwice()), "claims on the target are"),
    ],
    ids=["drain not ended", "nobody moved", "not let go", "not released", "not defined", "claimed twice"],
)
async def test_wrong_control_plane_is_seen(case: MigrationCase, words: str, tmp_path: Path) -> None:
    async with database_pool(fresh_sqlite, tmp_path, 1) as databases, databases.one() as database:
        outcome = await run_once(case, database)

    assert any(words in fault for fault in outcome.faults), (outcome.state, outcome.faults)
