"""The harness of migrations finds what it is there to find: each on a control plane, or hosts, that do it wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.domain.migration import MigrationRules
from controlplane.domain.operation import Json
from controlplane.operations.migration_hosts import Hosts, Seen
from controlplane.operations.migration_transfer import _Stream
from controlplane.operations.steps import Outcome, Run, Step
from controlplane.operations.vm_migration import ChooseStep, HandOverStep, MigrateVm, TidyStep, take_named
from controlplane.state.interface import Transaction
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id, make_node
from tests.support.databases import fresh_sqlite
from tests.support.failure_harness_databases import database_pool
from tests.support.failure_harness_faults import Fault, Place, Strike, Weather
from tests.support.failure_harness_migration_hosts import SOURCE, TARGET, MigrationHosts
from tests.support.failure_harness_migrations import CASES, MigrationCase, run_once
from tests.support.fake_daemons import RUNNING, STOPPED, FakeVm


class _GivesNothingBack(ChooseStep):
    """Keeps the claim on the target after a failure."""

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        await tx.remove_migration(run.operation.resource_id)


class _TrustsTheStream(HandOverStep):
    """Lets the stream alone say where the VM is: at the target if it told of the end, else at the source."""

    async def _settle(self, run: Run, hosts: Hosts, stream: _Stream) -> Outcome:
        seen = await hosts.look(run.operation.generation)
        if stream.last is not None and stream.last.phase == node_v1.MIGRATION_PHASE_COMPLETE:
            return self._arrived(hosts, seen, stream.last)
        raise await self._failure(run, hosts, seen, stream)

    async def undo(self, run: Run) -> None:
        """The stream said that it is where it was."""

    async def _failure(self, run: Run, hosts: Hosts, seen: Seen, stream: _Stream) -> Exception:  # type: ignore[override]
        return await super()._failure(run, hosts, replace(seen, progress=None), stream)


class _LeavesAll(TidyStep):
    """Has no host tidy up, and forgets the migration."""

    async def do(self, run: Run) -> Outcome:
        return Outcome({"untidy": {}})


def _case(name: str, wrong: Step) -> MigrationCase:
    """The case with a step done wrongly, in place of the one with the same name."""

    class Wrong(MigrateVm):
        def __init__(self, rules: MigrationRules) -> None:
            super().__init__(take_named, rules)

        def steps(self, parameters: Json) -> tuple[Step, ...]:
            return tuple(wrong if step.name == wrong.name else step for step in super().steps(parameters))

    return replace(next(case for case in CASES if case.name == name), workflow=Wrong)


@pytest.mark.parametrize(
    ("case", "what", "words"),
    [
        (_case("migrate, transfer fails", _GivesNothingBack(take_named)), "", "claims on the target are"),
        (_case("migrate", _LeavesAll()), "", "prepared is left on the target"),
        (
            _case("migrate", _TrustsTheStream(CASES[0].rules)),
            "source migrate_vm, first word",
            "have the VM, and that is not just the recorded one",
        ),
    ],
    ids=["claims kept", "hosts not tidied", "stream trusted"],
)
async def test_wrong_control_plane_is_seen(case: MigrationCase, what: str, words: str, tmp_path: Path) -> None:
    async with database_pool(fresh_sqlite, tmp_path, 1) as databases:
        async with databases.one() as database:
            outcome = await run_once(case, database)
        if what:
            assert outcome.faults == ()
            index = next(each.index for each in outcome.boundaries if each.what == what)
            async with databases.one() as database:
                outcome = await run_once(case, database, Strike(index, Fault.LOSE_ANSWER))

    assert any(words in fault for fault in outcome.faults), (outcome.state, outcome.faults)


async def test_two_that_run_at_once_are_seen_at_that_moment() -> None:
    async def nobody(wish: Fault) -> None:
        """Want nothing."""

    hosts, vm_id = MigrationHosts(Weather(None, nobody)), make_id()
    for name in (SOURCE, TARGET):
        host = hosts.add(make_node(), name)
        host.vms[vm_id] = FakeVm("twin", node_v1.VMSpec())
        host.set_state(vm_id, RUNNING)
    host.set_state(vm_id, STOPPED)

    assert hosts.findings == ["the VM ran on two hosts at once"]


async def test_clean_run_passes_the_same_boundaries_each_time(tmp_path: Path) -> None:
    async with database_pool(fresh_sqlite, tmp_path, 1) as databases:
        runs = []
        for _ in range(2):
            async with databases.one() as database:
                runs.append([str(each) for each in (await run_once(CASES[0], database)).boundaries])

    assert runs[0] == runs[1]
    assert sum(Place.GUEST.value in each for each in runs[0]) == 4
