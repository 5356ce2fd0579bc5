"""Consoles of VMs for the control plane: which kind is meant, and the entry that is made for it."""

from __future__ import annotations

import asyncio
from typing import Final

from hypervisor.base import Hypervisor
from hypervisor.types import ConsoleKind, EventKind, VmEvent
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import vm_id_of
from nodedaemon.console_entries import ConsoleEntries
from nodedaemon.encode import timestamp
from nodedaemon.errors import hypervisor_errors
from nodedaemon.observer import READ_DEADLINE_S

_KINDS: Final = {
    pb.CONSOLE_TYPE_VNC: ConsoleKind.VNC,
    pb.CONSOLE_TYPE_SPICE: ConsoleKind.SPICE,
    pb.CONSOLE_TYPE_SERIAL: ConsoleKind.SERIAL,
}
_ENDS: Final = frozenset(
    {EventKind.STOPPED, EventKind.CRASHED, EventKind.SUSPENDED, EventKind.REMOVED, EventKind.MIGRATED_OUT}
)
"""With what a VM is no longer in memory here, and entries to it lead nowhere."""


class VmConsoles:
    """Makes entries, and ends them with their VMs; see `nodedaemon.console_entries`."""

    def __init__(self, hypervisor: Hypervisor, entries: ConsoleEntries | None = None) -> None:
        self._hypervisor = hypervisor
        self._entries = entries or ConsoleEntries(hypervisor.open_console, hypervisor.set_console_password)
        self._unsubscribe = hypervisor.subscribe(self._on_event)

    async def open(self, request: pb.OpenConsoleRequest) -> pb.ConsoleInfoResponse:
        """Make an entry.

        Raises:
            FailedPrecondition: the VM has no such console, or does not run.
            ResourceExhausted: see `ConsoleEntries.make`.
        """
        vm_id = vm_id_of(request)
        with hypervisor_errors(vm_id):
            async with asyncio.timeout(READ_DEADLINE_S):
                kinds = [kind for kind in await self._hypervisor.console_kinds(vm_id) if self._entries.supports(kind)]
        wanted = _KINDS.get(request.type)
        if wanted is None:  # the display
            wanted = next((kind for kind in kinds if kind is not ConsoleKind.SERIAL), None)
        if wanted not in kinds or wanted is None:
            what = wanted.value if wanted is not None else "graphical"
            there = ", ".join(kind.value for kind in kinds) or "none"
            raise FailedPrecondition(
                Reason.CONSOLE_ABSENT,
                f"VM {vm_id} has no {what} console; it has: {there}",
                metadata={"vm_id": vm_id},
            )
        with hypervisor_errors(vm_id):
            entry = await self._entries.make(vm_id, wanted)
        return pb.ConsoleInfoResponse(
            type=entry.kind.value,
            host=entry.host,
            port=entry.port,
            password=entry.secret,
            expires_at=timestamp(entry.expires_at_s),
        )

    def _on_event(self, event: VmEvent) -> None:
        if event.kind in _ENDS:
            self._entries.revoke(event.vm_id)

    async def close(self) -> None:
        """End every entry and every session."""
        self._unsubscribe()
        await self._entries.close()
