"""Replacing the definition of a VM that may be running, and giving what runs its new size as far as can be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hypervisor.base import Hypervisor
from hypervisor.resizing import Resized
from hypervisor.types import PowerState, VmConfig
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands
from nodedaemon.decode import DecodedVm
from nodedaemon.encode import to_status
from nodedaemon.observer import VmObserver

_OFF = (PowerState.STOPPED, PowerState.CRASHED)

Decode = Callable[[pb.ReconfigureVMRequest], Awaitable[DecodedVm]]
Redefine = Callable[[str, DecodedVm], Awaitable[None]]


class VmResizing:
    """CPU and memory of VMs that run.

    Args:
        decode: what `ReconfigureVM` decodes its request with.
        redefine: what it does to a VM that is off, images included.
    """

    def __init__(
        self, hypervisor: Hypervisor, observer: VmObserver, commands: Commands, decode: Decode, redefine: Redefine
    ) -> None:
        self._hypervisor = hypervisor
        self._observer = observer
        self._commands = commands
        self._decode = decode
        self._redefine = redefine

    async def resize(self, request: pb.ReconfigureVMRequest) -> pb.ResizeVMResponse:
        """Replace the definition; of a VM that runs, no image is touched."""
        decoded = await self._decode(request)
        vm_id = decoded.config.vm_id
        resized = await self._commands.change(
            request, lambda: self._resize(vm_id, decoded), deadline_s=CREATE_DEADLINE_S
        )
        return pb.ResizeVMResponse(
            vcpu_count=resized.vcpu_count,
            memory_mib=resized.memory_mib,
            obstacles=resized.obstacles,
            status=to_status(await self._observer.read(vm_id)),
        )

    async def _resize(self, vm_id: str, decoded: DecodedVm) -> Resized:
        status = await self._hypervisor.status(vm_id)
        if status.state in _OFF:
            await self._redefine(vm_id, decoded)
            return _as_defined(decoded.config)
        if not status.is_managed:
            raise FailedPrecondition(
                Reason.VM_NOT_MANAGED,
                f"VM {vm_id} was defined by another tool, and a new definition would lose what it has; "
                "change it with that tool",
                metadata={"vm_id": vm_id},
            )
        if self._hypervisor.resizing is None:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                f"this host's hypervisor changes no VM that runs; stop VM {vm_id} first",
                metadata={"vm_id": vm_id},
            )
        return await self._hypervisor.resizing.resize(decoded.config)


def _as_defined(config: VmConfig) -> Resized:
    return Resized(config.cpu.vcpu_count, config.memory_mib)
