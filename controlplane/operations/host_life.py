"""Acting on a VM's host for no longer than it lives: the answer of one that is dead may take minutes not to come."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from controlplane.domain.operation import Operation
from controlplane.operations.steps import require_unfenced
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError, Reason

ResultT = TypeVar("ResultT")

FENCE_LOOK_S = 1.0
"""How often to see whether the host is proven dead that a step waits for; most steps are done before the first look."""


async def while_host_lives(store: Store, operation: Operation, acting: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Act, but no longer than until the host of the operation's VM is proven dead.

    Raises:
        Unavailable: it is, reason NODE_FENCED.
    """
    doing = asyncio.ensure_future(acting)
    try:
        while not (await asyncio.wait({doing}, timeout=FENCE_LOOK_S))[0]:
            try:
                await store.read(lambda tx: _require_living_host(tx, operation))
            except ApiError as error:
                if error.reason == Reason.NODE_FENCED:
                    raise
        return doing.result()
    finally:
        if not doing.done():
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)


async def _require_living_host(tx: Transaction, operation: Operation) -> None:
    vm = await tx.get_vm(operation.resource_id)
    node = await tx.get_node(vm.node_id) if vm is not None and vm.node_id else None
    if node is not None:
        await require_unfenced(tx, node)
