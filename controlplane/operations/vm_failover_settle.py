"""Before a VM is started elsewhere: find out where it is, if its host died while it was being migrated.

What the dead host would say is known: it runs nothing. So the other one decides, and it has to answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain.migration_truth import Whereabouts
from controlplane.operations.migration_hosts import Hosts, Seen
from controlplane.operations.migration_records import hand_over, stay
from controlplane.operations.steps import NOTHING, Outcome, Run, Step
from controlplane.operations.vm_records import locked
from controlplane.state.interface import Transaction


@dataclass(frozen=True, slots=True)
class SettleOutcome(Outcome):
    """What both hosts said, the dead one by proof; written to the VM and not to the operation."""

    seen: Seen | None = None


class SettleStep(Step):
    """Settle what the last migration left open, if anything."""

    name = "settle"
    minds_fences = True

    async def do(self, run: Run) -> Outcome:
        """Ask the host that lives, and have it remove what it made ready for a VM that did not arrive.

        Raises:
            DeadlineExceeded: it does not say whether it has the VM.
            ApiError: it could not remove that.
        """
        migration = await run.store.read(lambda tx: tx.get_migration(run.operation.resource_id))
        if migration is None or migration.is_settled:
            return NOTHING
        hosts = await Hosts.of(run)
        seen = await hosts.look(run.operation.generation)
        if seen.place not in (Whereabouts.SOURCE, Whereabouts.TARGET):
            raise hosts.unsettled(seen)
        if seen.place is Whereabouts.SOURCE:
            for error in (await hosts.tidy_living(run.operation.generation, moved=False)).values():
                raise error
        return SettleOutcome({"place": seen.place.value, "views": seen.views.text}, seen=seen)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write where it is. If that is not the dead host, the next step finds that nothing needs to be done."""
        seen = outcome.seen if isinstance(outcome, SettleOutcome) else None
        migration = await tx.get_migration(run.operation.resource_id)
        if seen is None or migration is None or migration.is_settled:
            return Outcome(outcome.result)
        if seen.place is Whereabouts.SOURCE:
            await stay(tx, migration, is_tidy=True)
        elif seen.target is not None:
            vm, facts = await locked(tx, run.operation.resource_id), {"settled": "true"}
            state, count = STATE_OF_STATUS[seen.target.state], seen.target.state_change_count
            await hand_over(tx, vm, migration, state, count, run.now(), run.operation.principal, facts)
        return Outcome(outcome.result)
