"""What empties nodes asks of others: operations on the VMs that are there. Implemented by a service."""

from __future__ import annotations

from typing import Protocol

from controlplane.domain.migration import MigrationWish
from controlplane.domain.operation import Operation
from controlplane.operations.desk import Caller


class Moves(Protocol):
    """Has VMs moved and stopped. Each call orders an operation and returns it as recorded, at once.

    A caller that repeats a request gets the operation that the first one made, as it is by then.
    """

    async def move(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Have a VM moved to another node.

        Raises:
            ApiError: it cannot be moved, and why.
        """
        ...

    async def stop(self, vm_id: str, timeout_s: int, caller: Caller) -> Operation:
        """Have a VM stopped: its guest is asked, and its power cut when the time is up.

        Raises:
            ApiError: it cannot be stopped, and why.
        """
        ...

    async def cancel(self, operation_id: str, principal: str) -> None:
        """Ask for an operation to end without its effect; fine if it has ended."""
        ...
