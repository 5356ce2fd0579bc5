"""Which VMs end with the host's lease, around what makes, moves and starts them.

A VM that shall be protected is noted so before it exists here, so that there is no moment at which it runs unnoticed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from hypervisor.base import Hypervisor
from hypervisor.errors import VmNotFound
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import vm_id_of
from nodedaemon.errors import hypervisor_errors
from nodedaemon.self_fencing.keeper import SelfFencing

ResultT = TypeVar("ResultT")


class VmProtection:
    """What the service asks before and after.

    Args:
        fencing: None for a daemon that is told nothing of leases.
    """

    def __init__(self, hypervisor: Hypervisor, fencing: SelfFencing | None) -> None:
        self._hypervisor = hypervisor
        self._fencing = fencing

    async def set(self, vm_id: str, *, is_protected: bool) -> None:
        """Note it, durably: in this daemon's files, which the guard goes by, and with the VM. Idempotent.

        Raises:
            FailedPrecondition: this daemon cannot protect VMs.
            Unavailable: it could not be written down.
        """
        if is_protected:  # it ends with the lease before it says so
            await self._remember(vm_id, is_protected=True)
        await self._note(vm_id, is_protected=is_protected)
        if not is_protected:
            await self._remember(vm_id, is_protected=False)

    async def renew(self, vm_id: str) -> None:
        """Note with the VM what this daemon knows, after something that may have brought another note."""
        await self._note(vm_id, is_protected=self.is_protected(vm_id))

    async def _note(self, vm_id: str, *, is_protected: bool) -> None:
        with hypervisor_errors(vm_id), suppress(VmNotFound):  # noted with the VM once it is here
            status = await self._hypervisor.status(vm_id, with_memory=False)
            if status.notes.is_protected is not is_protected:
                await self._hypervisor.set_notes(vm_id, replace(status.notes, is_protected=is_protected))

    async def _remember(self, vm_id: str, *, is_protected: bool) -> None:
        if self._fencing is not None:
            await self._fencing.protect(vm_id, is_protected=is_protected)
        elif is_protected:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                f"VM {vm_id} cannot be protected: this host takes no leases",
                metadata={"vm_id": vm_id},
            )

    async def forget(self, vm_id: str) -> None:
        """Drop what is noted of a VM that is gone."""
        if self._fencing is not None:
            await self._fencing.forget(vm_id)

    def is_protected(self, vm_id: str) -> bool:
        """Whether a VM ends with the lease."""
        return self._fencing is not None and self._fencing.is_protected(vm_id)

    def require_lease(self, vm_id: str) -> None:
        """Refuse to let a protected VM run without a lease.

        Raises:
            FailedPrecondition: LEASE_ENDED.
        """
        if self._fencing is not None:
            self._fencing.require_lease(vm_id)

    async def around_creation(
        self, vm_id: str, make: Callable[[], Awaitable[ResultT]], *, is_protected: bool
    ) -> ResultT:
        """Have a VM made that is protected from its first moment on, or is not; as before if that fails."""
        return await self._around(vm_id, make, is_protected=is_protected)

    async def around_arrival(
        self, request: pb.PrepareMigrationRequest, prepare: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Have an arrival prepared likewise.

        Raises:
            FailedPrecondition: LEASE_ENDED.
        """
        vm_id, is_protected = vm_id_of(request), request.definition.spec.is_protected

        async def prepare_with_lease() -> ResultT:
            self.require_lease(vm_id)
            return await prepare()

        return await self._around(vm_id, prepare_with_lease, is_protected=is_protected)

    async def _around(self, vm_id: str, do: Callable[[], Awaitable[ResultT]], *, is_protected: bool) -> ResultT:
        was_protected = self._fencing is not None and self._fencing.is_protected(vm_id)
        if is_protected and not was_protected:
            await self._remember(vm_id, is_protected=True)
        try:
            result = await do()
        except BaseException:
            if is_protected and not was_protected:
                await self.forget(vm_id)
            raise
        if is_protected or was_protected:
            await self.set(vm_id, is_protected=is_protected)
        return result
