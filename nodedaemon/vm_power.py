"""What switches VMs on and off and holds them, each request in the VM's queue."""

from __future__ import annotations

from hypervisor.base import Hypervisor
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, POWER_DEADLINE_S, Commands, vm_id_of
from nodedaemon.templates import Templates
from nodedaemon.vm_protection import VmProtection
from nodedaemon.vm_starts import StartOrder, VmStarts

DEFAULT_STOP_TIMEOUT_S = 30


class VmPower:
    """Requests that change what a VM does, and leave it defined as it is."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        commands: Commands,
        *,
        templates: Templates,
        protection: VmProtection,
        starts: VmStarts,
    ) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._templates = templates
        self._protection = protection
        self._starts = starts

    async def start(self, request: pb.VMIdRequest) -> None:
        """Start it, or finish a start that was left in the middle."""
        vm_id, require_newest = vm_id_of(request), self._commands.newest_check()
        order = StartOrder(self._commands.told(), request.generation)

        async def start() -> None:
            await self._templates.require_startable(vm_id)
            await self._starts.start(vm_id, order, require_newest)

        await self._commands.change(request, start)

    async def stop(self, request: pb.StopVMRequest) -> None:
        """Ask the guest to shut down, and wait: 30 s unless the request says otherwise, or until a newer command."""
        timeout_s = request.timeout_seconds or DEFAULT_STOP_TIMEOUT_S
        await self._commands.change(
            request,
            lambda: self._hypervisor.stop(vm_id_of(request), timeout_s),
            deadline_s=timeout_s + POWER_DEADLINE_S,
            takes_slot=False,
            is_interruptible=True,
        )

    async def force_stop(self, request: pb.VMIdRequest) -> None:
        """Pull the plug."""
        await self._commands.change(request, lambda: self._hypervisor.force_stop(vm_id_of(request)))

    async def reboot(self, request: pb.VMIdRequest) -> None:
        """Reboot the guest; waits until that begins, or until a newer command."""
        await self._commands.change(request, lambda: self._hypervisor.reboot(vm_id_of(request)), is_interruptible=True)

    async def pause(self, request: pb.VMIdRequest) -> None:
        """Stop its vCPUs."""
        await self._commands.change(request, lambda: self._pause(vm_id_of(request)))

    async def resume(self, request: pb.VMIdRequest) -> None:
        """Let its vCPUs run again."""
        await self._commands.change(request, lambda: self._resume(vm_id_of(request)))

    async def suspend(self, request: pb.VMIdRequest) -> None:
        """Save its memory to disk and let its process end."""
        await self._commands.change(
            request, lambda: self._hypervisor.suspend(vm_id_of(request)), deadline_s=CREATE_DEADLINE_S
        )

    async def _pause(self, vm_id: str) -> None:
        await self._starts.require_clear(vm_id)
        await self._hypervisor.pause(vm_id)

    async def _resume(self, vm_id: str) -> None:
        self._protection.require_lease(vm_id)
        await self._hypervisor.resume(vm_id)
