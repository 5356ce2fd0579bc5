"""Making VMs: their files and their definition, all or nothing; or the definition alone, over disks that are there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypervisor.base import Hypervisor
from hypervisor.errors import Unavailable, VmNotFound
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import FailedPrecondition, Reason
from nodedaemon.decode import DecodedVm
from nodedaemon.disk_copies import DiskCopies
from nodedaemon.disk_images import DiskImages
from nodedaemon.first_boot_media import FirstBootMedia
from nodedaemon.observer import READ_DEADLINE_S

_OFF = (PowerState.STOPPED, PowerState.CRASHED)


class VmCreation:
    """What CreateVM and AdoptVM do in the VM's queue."""

    def __init__(
        self, hypervisor: Hypervisor, images: DiskImages, copies: DiskCopies, first_boot: FirstBootMedia
    ) -> None:
        self._hypervisor = hypervisor
        self._images = images
        self._copies = copies
        self._first_boot = first_boot

    async def create(self, vm_id: str, decoded: DecodedVm) -> bool:
        """Create; returns whether the VM is new."""
        if await self._find(vm_id) is not None:
            # First the definition: one that differs must be refused before any image is made.
            await self._hypervisor.create(decoded.config)
            await self._make_files(vm_id, decoded)
            return False
        made = await self._make_files(vm_id, decoded)
        try:
            await self._hypervisor.create(decoded.config)
        except BaseException as error:
            if isinstance(error, Unavailable):
                await self._undo_definition(vm_id)
            await self._first_boot.remove(vm_id)
            await self._images.discard(vm_id, made)
            raise
        return True

    async def adopt(self, vm_id: str, decoded: DecodedVm) -> bool:
        """Define; returns whether the VM is new."""
        missing = [plan.disk_id for plan in decoded.images if not await asyncio.to_thread(plan.path.exists)]
        missing += [plan.path.stem for plan in decoded.copies]
        if missing:
            raise FailedPrecondition(
                Reason.DISK_IMAGE_FAILED,
                f"VM {vm_id} cannot run here: the image of its disk {missing[0]} is not in this host's storage",
                metadata={"vm_id": vm_id, "disk_id": missing[0]},
            )
        status = await self._find(vm_id)
        await self._first_boot.ensure(vm_id, decoded.first_boot)
        if status is not None and status.is_managed and status.state in _OFF:
            await self._hypervisor.reconfigure(decoded.config)  # what is left of an earlier time here
        else:
            await self._hypervisor.create(decoded.config)
        return status is None

    async def _make_files(self, vm_id: str, decoded: DecodedVm) -> list[Path]:
        """Make the images and the first-boot medium that are not there yet, all or none; returns the images."""
        made: list[Path] = []
        try:
            async with self._copies.sources_held(decoded.copies):
                made += await self._copies.copy(vm_id, decoded.copies)
                made += await self._images.ensure(vm_id, decoded.images)
            await self._first_boot.ensure(vm_id, decoded.first_boot)
        except BaseException:
            await self._first_boot.discard(vm_id)
            await self._images.discard(vm_id, made)
            raise
        return made

    async def _undo_definition(self, vm_id: str) -> None:
        """Remove a definition of which nobody knows whether it was made; if that fails too, so does the create."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                await self._hypervisor.delete(vm_id)
        except (Unavailable, TimeoutError):
            return  # the caller is told that the hypervisor does not answer; the inventory shows what became of it

    async def _find(self, vm_id: str) -> VmStatus | None:
        try:
            return await self._hypervisor.status(vm_id)
        except VmNotFound:
            return None
