"""The ways in which a migration may go, and what is common to all cases in which a VM changes its host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from controlplane.domain.migration import MigrationRules
from controlplane.domain.operation import OperationState
from controlplane.operations.steps import Workflow
from controlplane.operations.vm_migration import MigrateVm, take_named
from limiquantix.errors import Reason
from tests.support.control_plane_world import HASTY
from tests.support.failure_harness_migration_hosts import TARGET

if TYPE_CHECKING:
    from tests.support.failure_harness_migrations import MigrationScene

Interfere = Callable[["MigrationScene"], Awaitable[None]]


async def nothing(scene: MigrationScene) -> None:
    """Let it go on."""


async def transfer_fails(scene: MigrationScene) -> None:
    """Have no transfer succeed."""
    scene.source.migration_fault = "the connection to the target was lost"


async def target_dies(scene: MigrationScene) -> None:
    """Have the target be away until everything else is over, and what is on its way with it."""
    await transfer_fails(scene)
    scene.hosts.leave(TARGET)


async def _target_is_silent(scene: MigrationScene) -> None:
    scene.hosts.leave(TARGET)


async def _cancel(scene: MigrationScene) -> None:
    await scene.until_answered(scene.cancel)


@dataclass(frozen=True)
class MigrationCase:
    """One way that a migration may go.

    Attributes:
        ends: how it ends without a fault, and `reason` of what.
        moves: whether the VM is at the target then, once all is settled.
        interfere: done when the transfer is under way, before it goes on.
        waits_for_cancel: whether only its cancellation lets the transfer go on.
        workflow: the one that the case is about, where others of its world do not matter.
        scene: its world, if that is another one than `MigrationScene`.
    """

    name: str
    ends: OperationState.ValueType = OperationState.SUCCEEDED
    reason: str = ""
    moves: bool = True
    runs: bool = True
    interfere: Interfere = nothing
    waits_for_cancel: bool = False
    rules: MigrationRules = HASTY
    workflow: Callable[[MigrationRules], Workflow] = field(default=partial(MigrateVm, take_named))
    scene: type[MigrationScene] | None = None

    @property
    def cannot_move(self) -> bool:
        """Whether the transfer cannot succeed, whatever else happens."""
        return self.interfere in (transfer_fails, target_dies)


_IMPATIENT = MigrationRules(patience_s=0.0, confirmation_s=0.0, poll_s=HASTY.poll_s)
_FAILS = OperationState.FAILED

CASES = (
    MigrationCase("migrate"),
    MigrationCase("migrate, off", runs=False),
    MigrationCase("migrate, transfer fails", _FAILS, Reason.MIGRATION_FAILED, False, interfere=transfer_fails),
    MigrationCase("migrate, target gone", _FAILS, Reason.MIGRATION_FAILED, False, interfere=target_dies),
    MigrationCase(
        "migrate, cancelled",
        OperationState.CANCELLED,
        Reason.OPERATION_CANCELLED,
        False,
        interfere=_cancel,
        waits_for_cancel=True,
    ),
    MigrationCase(
        "migrate, impatient", _FAILS, Reason.MIGRATION_UNSETTLED, interfere=_target_is_silent, rules=_IMPATIENT
    ),
)
