"""What the services of VMs share: having an operation done, and finding the daemon of a VM's host."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.daemons.interface import DaemonPool, NodeDaemon
from controlplane.domain import documents, errors
from controlplane.domain.access import Place
from controlplane.domain.operation import Operation
from controlplane.domain.vm import Vm
from controlplane.operations.desk import Caller, OperationDesk, Order
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VirtualMachine


@dataclass(frozen=True, slots=True)
class VmAccess:
    """The VMs, their hosts and the operations on them."""

    store: Store
    daemons: DaemonPool
    desk: OperationDesk

    async def get(self, vm_id: str) -> Vm:
        """Read one VM.

        Raises:
            NotFound: there is none of that id.
        """
        return await self.store.read(lambda tx: required(tx, vm_id))

    async def locate(self, vm_id: str) -> tuple[Vm, NodeDaemon]:
        """Read one VM and find the daemon of its host.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is on no node.
        """
        vm = await self.get(vm_id)
        if not vm.node_id:
            raise errors.vm_not_placed(vm.id)
        node = await self.store.read(lambda tx: tx.get_node(vm.node_id))
        if node is None:
            raise errors.vm_not_placed(vm.id)
        return vm, self.daemons.daemon(node)

    async def folder_of(self, request: api.CreateVMRequest | api.CloneVMRequest) -> Place | None:
        """Find where the folder is by which alone a request says where a new VM comes to be; None without one.

        Folders never change their project, so this stays true, or the folder is gone when the VM is made. Also None
        for one that is not there, which is refused then: the request may be one that was answered while it was.
        """
        if request.project_id or not request.folder_id:
            return None
        folder = await self.store.read(lambda tx: tx.get_folder(request.folder_id))
        return None if folder is None else Place(folder.project_id, folder.id)

    async def done(self, order: Order, caller: Caller) -> VirtualMachine:
        """Have an operation done and answer with the VM."""
        return await self.answer(await self.desk.submit(order, caller), caller)

    async def answer(self, operation: Operation, caller: Caller) -> VirtualMachine:
        """Return the VM as it is when the operation has ended, or as it is now to a caller who does not wait."""
        if caller.waits or operation.has_ended:
            return await self.desk.answer(operation, VirtualMachine())
        return documents.virtual_machine(await self.get(operation.resource_id))


async def required(tx: Transaction, vm_id: str) -> Vm:
    """Read one VM.

    Raises:
        NotFound: there is none of that id.
    """
    vm = await tx.get_vm(vm_id)
    if vm is None:
        raise errors.vm_not_found(vm_id)
    return vm
