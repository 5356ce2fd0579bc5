"""Settling what a migration left: where a VM is, if nobody could say, and what a host could not be told to tidy up.

The reconciler asks for it whenever one of the two hosts reports, until nothing is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain import errors
from controlplane.domain.event import Event, EventType
from controlplane.domain.migration_truth import Whereabouts
from controlplane.domain.operation import Json, Operation
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.migration_hosts import Hosts, Seen
from controlplane.operations.migration_records import at_source, hand_over, stay, vanish
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import locked
from controlplane.state.interface import Transaction
from limiquantix.errors import NotFound

_PAUSES_S = (0.2, 1.0, 3.0)
"""Before a VM that neither host has is taken for gone: one of them may not have noticed yet."""


@dataclass(frozen=True, slots=True)
class SettleOutcome(Outcome):
    """What both hosts said; written to the VM and not to the operation."""

    seen: Seen | None = None


class FindStep(Step):
    """Find out where the VM is, if that is not known."""

    name = "find"
    minds_fences = True

    async def do(self, run: Run) -> Outcome:
        """Ask both hosts, once: they are asked again when one reports again.

        Raises:
            DeadlineExceeded: they do not say.
        """
        try:
            hosts = await Hosts.of(run)
        except NotFound:
            return NOTHING
        if hosts.migration.is_settled:
            return NOTHING
        seen = await hosts.look(run.operation.generation)
        for pause_s in _PAUSES_S:
            if seen.place is not Whereabouts.GONE:
                break
            await asyncio.sleep(pause_s)
            seen = await hosts.look(run.operation.generation)
        if seen.place is Whereabouts.ENDED_AT_TARGET:
            await hosts.discard_at_source(run.operation.generation)
            seen = await hosts.look(run.operation.generation)
        if seen.place in (Whereabouts.UNKNOWN, Whereabouts.UNDER_WAY, Whereabouts.ENDED_AT_TARGET):
            raise hosts.unsettled(seen)
        return SettleOutcome({"place": seen.place.value, "views": seen.views.text}, seen=seen)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write where it is; the claim goes there."""
        seen = outcome.seen if isinstance(outcome, SettleOutcome) else None
        migration = await tx.get_migration(run.operation.resource_id)
        if seen is None or migration is None or migration.is_settled:
            return outcome
        vm, now = await locked(tx, run.operation.resource_id), run.now()
        if seen.place is Whereabouts.GONE:
            await vanish(tx, vm, migration, now)
        elif seen.place is Whereabouts.SOURCE and seen.source is None:
            await stay(tx, migration, is_tidy=False)  # it is dead there; nothing of it is known that was not
        elif seen.place is Whereabouts.SOURCE:
            assert seen.source is not None  # noqa: S101 - it said that it has the VM
            text = f"VM {vm.name} is on node {vm.node_id}, which it did not leave"
            back = replace(at_source(vm, seen.source, now), error_message="", updated_at=now)
            await tx.update_vm(back, Event(EventType.VM_UPDATED, text, actor=run.operation.principal))
            await stay(tx, migration, is_tidy=False)
        else:
            state, count = PowerState.UNKNOWN, 0  # of one that is dead with its host
            if seen.target is not None:
                state, count = STATE_OF_STATUS[seen.target.state], seen.target.state_change_count
            await hand_over(tx, vm, migration, state, count, now, run.operation.principal, {"settled": "true"})
        return Outcome(outcome.result)


class TidyUpStep(Step):
    """Have both hosts tidy up."""

    name = "tidy"
    minds_fences = True

    async def do(self, run: Run) -> Outcome:
        """Give the commands.

        Raises:
            ApiError: one of them could not; it is asked again when it reports again.
        """
        try:
            hosts = await Hosts.of(run)
        except NotFound:
            return NOTHING
        moved = hosts.vm.node_id == hosts.migration.target_node_id
        for error in (await hosts.tidy(run.operation.generation, moved=moved)).values():
            raise error
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Forget the migration."""
        await tx.remove_migration(run.operation.resource_id)
        return outcome


class SettleMigration(Workflow):
    """Begun by the reconciler; what fails stays as it is and is tried again."""

    kind = "vm.settle_migration"
    _steps = (FindStep(), TidyUpStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always both."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return Empty()


def require_settleable(vm: Vm) -> None:
    """Check that the VM can be settled at all.

    Raises:
        FailedPrecondition: it is on no node.
    """
    if not vm.node_id:
        raise errors.vm_not_placed(vm.id)
