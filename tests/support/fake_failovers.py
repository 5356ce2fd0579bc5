"""VMs of hosts that failed, on fake hosts: taking them in, letting go of them, and noting which end with a lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_OFF = (node_v1.POWER_STATE_STOPPED, node_v1.POWER_STATE_CRASHED)


class FakeFailoverCalls:
    """Part of `FakeDaemon`, which has `vms`, `_vm` and `_called`.

    Attributes:
        protected: ids of VMs that end with this host's lease.
        takes_leases: whether VMs can be protected here at all.
        missing_disks: ids of VMs whose images are not on this host's storage.
    """

    vms: dict[str, Any]
    protected: set[str]
    takes_leases: bool
    missing_disks: set[str]

    def _vm(self, vm_id: str) -> Any:
        raise NotImplementedError

    def _made(self, name: str, spec: node_v1.VMSpec) -> Any:
        raise NotImplementedError

    def set_state(self, vm_id: str, state: node_v1.PowerState.ValueType) -> None:
        raise NotImplementedError

    def _status(self, vm_id: str) -> node_v1.VMStatusResponse:
        raise NotImplementedError

    async def _called(self, method: str, vm_id: str, act: Callable[[], Any], generation: int = 0) -> None:
        raise NotImplementedError

    def protect(self, vm_id: str, *, is_protected: bool) -> None:
        """Note it.

        Raises:
            FailedPrecondition: this host takes no leases.
        """
        if is_protected and not self.takes_leases:
            raise FailedPrecondition(Reason.HOST_LACKS, "this host takes no leases")
        (self.protected.add if is_protected else self.protected.discard)(vm_id)

    async def adopt_vm(self, request: node_v1.CreateVMOnNodeRequest) -> node_v1.VMStatusResponse:
        def act() -> None:
            vm_id = request.vm_id
            if vm_id in self.missing_disks:
                raise FailedPrecondition(Reason.DISK_IMAGE_FAILED, f"the image of a disk of VM {vm_id} is not here")
            self.protect(vm_id, is_protected=request.spec.is_protected)
            if vm_id not in self.vms or self.vms[vm_id].state in _OFF:
                self.vms[vm_id] = self._made(request.name, request.spec)
                self.set_state(vm_id, node_v1.POWER_STATE_STOPPED)

        await self._called("adopt_vm", request.vm_id, act, request.generation)
        return self._status(request.vm_id)

    async def release_vm(self, vm_id: str, generation: int) -> None:
        def act() -> None:
            if vm_id in self.vms and self.vms[vm_id].state not in _OFF:
                raise FailedPrecondition(Reason.VM_STATE_FORBIDS, f"VM {vm_id} is in memory")
            self.vms.pop(vm_id, None)
            self.protected.discard(vm_id)

        await self._called("release_vm", vm_id, act, generation)

    async def set_vm_protection(self, request: node_v1.SetVMProtectionRequest) -> None:
        def act() -> None:
            if request.is_protected:
                self._vm(request.vm_id)
            self.protect(request.vm_id, is_protected=request.is_protected)

        await self._called("set_vm_protection", request.vm_id, act, request.generation)


class FakeFailoverServicer:
    """Part of `FakeDaemonServicer`."""

    _daemon: Any

    async def AdoptVM(self, request: node_v1.CreateVMOnNodeRequest, context: Any) -> node_v1.CreateVMOnNodeResponse:
        status = await self._daemon.adopt_vm(request)
        return node_v1.CreateVMOnNodeResponse(vm_id=request.vm_id, created=True, status=status)

    async def ReleaseVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.release_vm(request.vm_id, request.generation)
        return Empty()

    async def SetVMProtection(self, request: node_v1.SetVMProtectionRequest, context: Any) -> Empty:
        await self._daemon.set_vm_protection(request)
        return Empty()
