"""From a VM's creation to its removal on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from hypervisor.base import Hypervisor
from hypervisor.errors import VmNotFound, WrongState
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands, vm_id_of
from nodedaemon.decode import DecodedVm, decode_vm
from nodedaemon.disk_copies import COPY_DEADLINE_S
from nodedaemon.disk_images import DiskImages
from nodedaemon.encode import to_status
from nodedaemon.fence_gate import Told
from nodedaemon.first_boot_media import FirstBootMedia
from nodedaemon.observer import READ_DEADLINE_S, VmObserver
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.templates import Templates
from nodedaemon.vm_creation import VmCreation
from nodedaemon.vm_protection import VmProtection

_OFF = (PowerState.STOPPED, PowerState.CRASHED)


class VmLifecycle:
    """Requests that make, redefine and remove VMs."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        observer: VmObserver,
        commands: Commands,
        *,
        images: DiskImages,
        paths: StoragePaths,
        templates: Templates,
        first_boot: FirstBootMedia,
        creation: VmCreation,
        protection: VmProtection,
    ) -> None:
        self._hypervisor = hypervisor
        self._observer = observer
        self._commands = commands
        self._images = images
        self._paths = paths
        self._templates = templates
        self._first_boot = first_boot
        self._creation = creation
        self._protection = protection

    async def create(self, request: pb.CreateVMOnNodeRequest) -> pb.CreateVMOnNodeResponse:
        """Make the images and define the VM; all or nothing. Idempotent for the same configuration."""
        decoded = await self.decode(request)
        copies = any(not plan.is_linked for plan in decoded.copies)
        is_new = await self._commands.change(
            request,
            partial(self._protected_from_the_start, request, decoded, self._creation.create),
            deadline_s=COPY_DEADLINE_S if copies else CREATE_DEADLINE_S,
            takes_slot=not decoded.copies,  # it waits for the VM that it is made from, which may wait for a slot
            is_interruptible=copies,
        )
        return await self._created(request, is_new=is_new, words="created")

    async def adopt(self, request: pb.CreateVMOnNodeRequest) -> pb.CreateVMOnNodeResponse:
        """Define a VM whose disks are here already; it stays off. Idempotent."""
        decoded = await self.decode(request)
        is_new = await self._commands.change(
            request,
            partial(self._protected_from_the_start, request, decoded, self._creation.adopt),
            deadline_s=CREATE_DEADLINE_S,
        )
        return await self._created(request, is_new=is_new, words="defined")

    async def release(self, request: pb.VMIdRequest) -> None:
        """Undefine a VM that is off and was started on another host; its images stay."""
        await self._commands.change(request, lambda: self._release(vm_id_of(request)))

    async def set_protection(self, request: pb.SetVMProtectionRequest) -> None:
        """Note whether the VM ends with the host's lease."""
        await self._commands.change(request, lambda: self._set_protection(request))

    async def renew_protection(self, vm_id: str) -> None:
        """Note with the VM what this daemon knows of it, in its queue."""
        await self._commands.finish(vm_id, 0, Told(), lambda: self._protection.renew(vm_id))

    async def follow_migration(self, request: pb.EndMigrationRequest) -> None:
        """Note what is protected after a VM came, or went, or did not."""
        vm_id, was_source = vm_id_of(request), request.role == pb.MIGRATION_ROLE_SOURCE
        if request.moved and not was_source:
            await self.renew_protection(vm_id)
        elif request.moved == was_source and await self.find(vm_id) is None:
            await self._protection.forget(vm_id)

    async def reconfigure(self, request: pb.ReconfigureVMRequest) -> None:
        """Redefine a VM that is off: new disks are made, larger ones grown; images of disks left out stay."""
        decoded = await self.decode(request)
        await self._commands.change(
            request, lambda: self.redefine(decoded.config.vm_id, decoded), deadline_s=CREATE_DEADLINE_S
        )

    async def delete(self, request: pb.VMIdRequest) -> None:
        """Remove the definition, then the images; refused while it runs. Succeeds if it does not exist."""
        await self._commands.change(request, lambda: self._delete(vm_id_of(request)), deadline_s=CREATE_DEADLINE_S)

    async def find(self, vm_id: str) -> VmStatus | None:
        """Return what a VM is; None if it is not here."""
        try:
            return await self._hypervisor.status(vm_id)
        except VmNotFound:
            return None

    async def decode(self, request: pb.CreateVMOnNodeRequest | pb.ReconfigureVMRequest) -> DecodedVm:
        """Decode a VM; an overtaken command is refused as such, whatever else may be wrong with it by now."""
        self._commands.require_newest(request)
        vm_id = vm_id_of(request)
        async with asyncio.timeout(READ_DEADLINE_S):
            return await asyncio.to_thread(decode_vm, vm_id, request.name, request.spec, self._paths)

    async def redefine(self, vm_id: str, decoded: DecodedVm) -> None:
        """Redefine a VM that is off, in its queue; see `reconfigure`."""
        status = await self.find(vm_id)
        if status is None:
            raise VmNotFound(vm_id)
        if not status.is_managed:
            raise FailedPrecondition(
                Reason.VM_NOT_MANAGED,
                f"VM {vm_id} was defined by another tool, and a new definition would lose what it has; "
                "change it with that tool",
                metadata={"vm_id": vm_id},
            )
        if status.state not in _OFF:  # before any image is touched
            raise WrongState(vm_id, "reconfigure", status.state.value)
        if decoded.copies:  # an empty image must not take the place of one that was copied
            raise FailedPrecondition(
                Reason.DISK_IMAGE_FAILED,
                f"the image of a disk of VM {vm_id} is gone; put it back, or delete the VM",
                metadata={"vm_id": vm_id},
            )
        existing = [plan for plan in decoded.images if await asyncio.to_thread(plan.path.exists)]
        missing = [plan for plan in decoded.images if plan not in existing]
        made = await self._images.ensure(vm_id, missing)
        try:
            for plan in existing:
                await self._images.grow(vm_id, plan)
            await self._first_boot.prepare(vm_id, decoded.first_boot)
            await self._templates.settle(vm_id, is_template=decoded.is_template)
            await self._hypervisor.reconfigure(decoded.config)
            await self._first_boot.put_in_place(vm_id, decoded.first_boot)
        except BaseException:
            await self._first_boot.discard(vm_id)
            await self._images.discard(vm_id, made)
            raise

    async def _protected_from_the_start(
        self,
        request: pb.CreateVMOnNodeRequest,
        decoded: DecodedVm,
        make: Callable[[str, DecodedVm], Awaitable[bool]],
    ) -> bool:
        vm_id = decoded.config.vm_id
        return await self._protection.around_creation(
            vm_id, lambda: make(vm_id, decoded), is_protected=request.spec.is_protected
        )

    async def _created(
        self, request: pb.CreateVMOnNodeRequest, *, is_new: bool, words: str
    ) -> pb.CreateVMOnNodeResponse:
        vm_id = vm_id_of(request)
        status = to_status(await self._observer.read(vm_id))
        message = words if is_new else "exists with this configuration"
        return pb.CreateVMOnNodeResponse(vm_id=vm_id, created=is_new, message=message, status=status)

    async def _set_protection(self, request: pb.SetVMProtectionRequest) -> None:
        vm_id = vm_id_of(request)
        if request.is_protected:  # noted for one that is not here, it would only be forgotten at the next deletion
            await self._hypervisor.status(vm_id, with_memory=False)
        await self._protection.set(vm_id, is_protected=request.is_protected)

    async def _release(self, vm_id: str) -> None:
        status = await self.find(vm_id)
        if status is not None and not status.is_managed:
            raise FailedPrecondition(
                Reason.VM_NOT_MANAGED, f"VM {vm_id} was not defined by LimiQuantix", metadata={"vm_id": vm_id}
            )
        await self._hypervisor.delete(vm_id)
        await self._protection.forget(vm_id)

    async def _delete(self, vm_id: str) -> None:
        await self._templates.require_removable(vm_id)
        await self._hypervisor.delete(vm_id)
        await self._images.delete_vm(vm_id)
        await self._protection.forget(vm_id)
