"""Finding out, before a new daemon says or orders anything, which VMs end with the host's lease.

Three places know: the daemon's own files, the VMs themselves, and, within a boot, what the guard was ordered last. None
lowers what another says. So if the daemon's files are lost under running VMs, protection holds on, and the guard is not
given orders that forget it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError, VmNotFound
from limiquantix.errors import ApiError
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.lease import Known
from nodedaemon.self_fencing.memory import HaMemory
from nodedaemon.self_fencing.orders import Orders

RETRY_S: Final = 1.0

_log = structlog.get_logger(__name__)


async def remember_orders(memory: HaMemory, orders: Orders | None) -> None:
    """Take from the guard's orders of this boot what the daemon's files do not know any more.

    Orders that kill nobody do not tell whether that was told or configured, so no version is taken from these: until a
    control plane has told it again, this host counts as one that does not know of it.

    Raises:
        Unavailable: it could not be written down.
    """
    if orders is None:
        return
    if memory.is_new:
        for vm_id in orders.vm_ids:
            await memory.protect(vm_id, is_protected=True)
    ha_version = orders.ha_version if orders.is_armed else 0
    await memory.remember(Known(orders.epoch, orders.fence_token, ha_version, orders.is_armed))


async def learn_protected(
    hypervisor: Hypervisor, protect: Callable[[str], Awaitable[None]], protected: Callable[[], frozenset[str]]
) -> None:
    """Bring what the VMs' notes say and what is known here together: what either calls protected is.

    Raises:
        HypervisorError, TimeoutError: the hypervisor does not answer.
        Unavailable: it could not be written down.
    """
    async with asyncio.timeout(READ_DEADLINE_S):
        vms = await hypervisor.list()
    for vm in vms:
        if vm.notes.is_protected and vm.vm_id not in protected():
            await protect(vm.vm_id)
            _log.warning("protection_learnt", vm_id=vm.vm_id, advice="the daemon's files did not know of it")
        elif vm.vm_id in protected() and not vm.notes.is_protected:
            try:
                await hypervisor.set_notes(vm.vm_id, replace(vm.notes, is_protected=True))
            except VmNotFound:
                continue  # it was removed meanwhile


async def learn_until_sure(
    hypervisor: Hypervisor,
    fencing: SelfFencing,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Try until it is known; say that it is not, until then."""
    fencing.set_unsure(is_unsure=True)
    while True:
        try:
            await learn_protected(
                hypervisor, lambda vm_id: fencing.protect(vm_id, is_protected=True), lambda: fencing.protected
            )
        except (HypervisorError, ApiError, TimeoutError) as error:
            _log.warning("protection_not_learnt", error=str(error) or "time-out")
            await sleep(RETRY_S)
        else:
            fencing.set_unsure(is_unsure=False)
            return
