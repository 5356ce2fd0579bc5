"""Has VMs moved and stopped for what empties nodes: drains, and evictions by taints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from controlplane.domain.migration import MigrationWish
from controlplane.domain.operation import Operation
from controlplane.domain.vm import PowerOperation
from controlplane.operations.desk import Caller, OperationDesk, Order
from controlplane.operations.vm_power import StopVm, require_allowed
from limiquantix.errors import FailedPrecondition, NotFound

_log = structlog.get_logger(__name__)


class Migrations(Protocol):
    """What begins migrations; see `MigrationService`."""

    async def start(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Order a migration."""
        ...


@dataclass(frozen=True, slots=True)
class VmMoves:
    """Implements `controlplane.operations.moves.Moves`."""

    migrations: Migrations
    desk: OperationDesk

    async def move(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Have a VM moved to another node."""
        return await self.migrations.start(vm_id, wish, caller)

    async def stop(self, vm_id: str, timeout_s: int, caller: Caller) -> Operation:
        """Have a VM stopped, by force when the time is up."""
        order = Order(
            StopVm.kind,
            vm_id,
            parameters={"force": True, "timeout_sec": timeout_s},
            check=lambda vm: require_allowed(vm, PowerOperation.FORCE_STOP),
        )
        return await self.desk.submit(order, caller)

    async def cancel(self, operation_id: str, principal: str) -> None:
        """Ask for an operation to end without its effect."""
        try:
            await self.desk.cancel(operation_id, principal)
        except (NotFound, FailedPrecondition) as error:
            _log.debug("operation_ended_before", operation_id=operation_id, reason=error.reason)
