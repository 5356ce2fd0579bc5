"""Devices of this host's VMs that come, change and go, as the control plane asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hypervisor.base import Hypervisor
from hypervisor.devices import RELEASE_TIMEOUT_S, Devices
from hypervisor.errors import DeviceNotFound, HypervisorError, Unavailable
from hypervisor.types import DiskConfig, DiskFormat
from limiquantix.errors import ApiError, FailedPrecondition, FieldViolation, InvalidArgument, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, POWER_DEADLINE_S, Commands, VmCommand, vm_id_of
from nodedaemon.decode import GIB, decode_cdrom, decode_disk, decode_nic
from nodedaemon.device_limits import io_limit_faults, limits_of
from nodedaemon.device_settlement import decode_settlement
from nodedaemon.disk_images import DiskImages, ImagePlan
from nodedaemon.nic_bandwidth import NicBandwidths
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.storage_paths import PathRefused, StoragePaths
from nodedaemon.templates import Templates

T = TypeVar("T")

DETACH_DEADLINE_S = RELEASE_TIMEOUT_S + POWER_DEADLINE_S


class VmDevices:
    """The part of the service that attaches, detaches and changes devices."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        commands: Commands,
        images: DiskImages,
        paths: StoragePaths,
        templates: Templates,
        bandwidths: NicBandwidths,
    ) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._images = images
        self._paths = paths
        self._templates = templates
        self._bandwidths = bandwidths

    async def attach_disk(self, request: pb.AttachDiskRequest) -> None:
        """Make the image if it is not there, and attach it. An image that was made for nothing is removed."""
        vm_id, devices = await self._begin(request)
        async with asyncio.timeout(READ_DEADLINE_S):
            disk, plans = await asyncio.to_thread(decode_disk, vm_id, request.disk, self._paths)

        async def attach() -> None:
            await self._require_no_template(vm_id)
            await self._hypervisor.status(vm_id)  # before an image is made for a VM that is not there
            made = await self._ensure(vm_id, plans, must_exist=request.existing_image)
            try:
                await devices.attach_disk(vm_id, disk)
            except HypervisorError as error:
                if not isinstance(error, Unavailable):  # else it may be attached, and the command is repeated
                    await self._images.discard(vm_id, made)
                raise

        await self._commands.change(request, attach, deadline_s=CREATE_DEADLINE_S)

    async def detach_disk(self, request: pb.DetachDiskRequest) -> None:
        """Have the guest let go of a disk, for as long as that takes up to 20 s, or until a newer command."""
        vm_id, devices = await self._begin(request)

        async def detach() -> None:
            await self._require_no_template(vm_id)
            await devices.detach_disk(vm_id, request.disk_id, force=request.force)
            if request.delete_image:
                await self._discard_image(vm_id, request.disk_id)

        await self._change_of_guest(request, detach)

    async def resize_disk(self, request: pb.ResizeDiskRequest) -> None:
        """Grow a disk, by the process that uses its image or else by ourselves."""
        vm_id, devices = await self._begin(request)
        size_bytes = request.size_gib * GIB

        async def resize() -> None:
            await self._require_no_template(vm_id)
            disk = await self._disk(devices, vm_id, request.disk_id)
            info = await self._images.info(vm_id, disk.path, disk.format)
            if info.virtual_size_bytes > size_bytes:
                raise InvalidArgument.from_violations([_shrinks(request.disk_id, info.virtual_size_bytes)])
            if disk.readonly:
                raise FailedPrecondition(
                    Reason.DISK_IMAGE_FAILED,
                    f"disk {disk.disk_id} of VM {vm_id} is read-only and cannot be grown",
                    metadata={"vm_id": vm_id, "disk_id": disk.disk_id},
                )
            if not await devices.resize_disk(vm_id, disk.disk_id, size_bytes):
                await self._images.grow(vm_id, ImagePlan(disk.disk_id, disk.path, disk.format, size_bytes))

        await self._commands.change(request, resize, deadline_s=CREATE_DEADLINE_S)

    async def update_disk(self, request: pb.UpdateDiskRequest) -> None:
        """Replace a disk's ceilings."""
        vm_id, devices = await self._begin(request)
        if faults := list(io_limit_faults("io_limits", request.io_limits)):
            raise InvalidArgument.from_violations(faults)
        limits = limits_of(request.io_limits)
        await self._commands.change(request, lambda: devices.limit_disk(vm_id, request.disk_id, limits))

    async def attach_nic(self, request: pb.AttachNICRequest) -> None:
        """Attach a network card."""
        vm_id, devices = await self._begin(request)
        nic = decode_nic(request.nic)

        async def attach() -> None:
            await devices.attach_nic(vm_id, nic)
            try:
                await self._bandwidths.require(vm_id)
            except ApiError:
                await devices.detach_nic(vm_id, nic.nic_id)
                raise

        await self._commands.change(request, attach)

    async def detach_nic(self, request: pb.DetachNICRequest) -> None:
        """Have the guest let go of a network card, as of a disk."""
        vm_id, devices = await self._begin(request)
        await self._change_of_guest(request, lambda: devices.detach_nic(vm_id, request.nic_id))

    async def update_nic(self, request: pb.UpdateNICRequest) -> None:
        """Plug a card's cable in or out, and replace its ceilings."""
        vm_id, devices = await self._begin(request)
        nic = decode_nic(request.nic)

        async def update() -> None:
            before = next((each for each in (await devices.list(vm_id)).nics if each.config.nic_id == nic.nic_id), None)
            await devices.update_nic(vm_id, nic)
            try:
                await self._bandwidths.require(vm_id)
            except ApiError:
                if before is not None:
                    await devices.update_nic(vm_id, before.config)
                raise

        await self._commands.change(request, update)

    async def attach_cdrom(self, request: pb.AttachCDROMRequest) -> None:
        """Add a CD-ROM drive."""
        vm_id, devices = await self._begin(request)
        async with asyncio.timeout(READ_DEADLINE_S):
            cdrom = await asyncio.to_thread(decode_cdrom, vm_id, request.cdrom, self._paths)
        await self._commands.change(request, lambda: devices.attach_cdrom(vm_id, cdrom))

    async def detach_cdrom(self, request: pb.DetachCDROMRequest) -> None:
        """Take a CD-ROM drive away."""
        vm_id, devices = await self._begin(request)
        await self._commands.change(request, lambda: devices.detach_cdrom(vm_id, request.cdrom_id))

    async def change_media(self, request: pb.ChangeMediaRequest) -> None:
        """Put a medium into a drive or take it out."""
        vm_id, devices = await self._begin(request)
        iso_path = None
        if request.iso_path:
            try:
                async with asyncio.timeout(READ_DEADLINE_S):
                    iso_path = await asyncio.to_thread(self._paths.resolve_file, request.iso_path, vm_id)
            except PathRefused as refused:
                raise InvalidArgument.from_violations([FieldViolation("iso_path", str(refused))]) from refused
        await self._change_of_guest(request, lambda: devices.change_medium(vm_id, request.device.lower(), iso_path))

    async def settle(self, request: pb.SettleDevicesRequest) -> None:
        """Make all devices these and no others, and delete the images that nobody wants."""
        vm_id, devices = await self._begin(request)
        async with asyncio.timeout(READ_DEADLINE_S):
            settlement = await decode_settlement(vm_id, request, self._paths)

        async def settle() -> None:
            await self._require_no_template(vm_id)
            await settlement.make(self._hypervisor, devices, vm_id)
            await self._bandwidths.require(vm_id)
            for disk_id in request.unwanted_disk_ids:
                if not settlement.has_disk(disk_id):
                    await self._discard_image(vm_id, disk_id)

        await self._commands.change(
            request, settle, deadline_s=CREATE_DEADLINE_S, takes_slot=False, is_interruptible=True
        )

    async def _discard_image(self, vm_id: str, disk_id: str) -> None:
        await self._images.discard(vm_id, [self._paths.image_path(vm_id, disk_id, kind) for kind in DiskFormat])

    async def _begin(self, request: VmCommand) -> tuple[str, Devices]:
        """Refuse a command that was overtaken, before anything else is found wrong with it.

        Raises:
            Aborted: it was.
            FailedPrecondition: this host's hypervisor cannot change devices.
        """
        self._commands.require_newest(request)
        vm_id = vm_id_of(request)
        if self._hypervisor.devices is None:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                f"the hypervisor that runs VM {vm_id} cannot change the devices of a VM; give them when it is made",
                metadata={"vm_id": vm_id},
            )
        return vm_id, self._hypervisor.devices

    async def _change_of_guest(self, request: VmCommand, change: Callable[[], Awaitable[T]]) -> T:
        """Run a change that waits for the guest, and that a newer command may end."""
        return await self._commands.change(
            request, change, deadline_s=DETACH_DEADLINE_S, takes_slot=False, is_interruptible=True
        )

    async def _ensure(self, vm_id: str, plans: Sequence[ImagePlan], *, must_exist: bool) -> list[Path]:
        """Make the image, or find it; returns it if it was made."""
        if not must_exist:
            return await self._images.ensure(vm_id, plans)
        for plan in plans:
            if not await asyncio.to_thread(plan.path.exists):
                raise FailedPrecondition(
                    Reason.DISK_IMAGE_FAILED,
                    f"the image of disk {plan.disk_id} of VM {vm_id} is gone; put it back, or attach a new disk",
                    metadata={"vm_id": vm_id, "disk_id": plan.disk_id},
                )
        return []

    async def _require_no_template(self, vm_id: str) -> None:
        if await self._templates.is_template(vm_id):
            raise FailedPrecondition(
                Reason.VM_IS_TEMPLATE,
                f"VM {vm_id} is a template, whose disks must stay as they are; make it an ordinary VM again first",
                metadata={"vm_id": vm_id},
            )

    async def _disk(self, devices: Devices, vm_id: str, disk_id: str) -> DiskConfig:
        for disk in (await devices.list(vm_id)).disks:
            if disk.disk_id == disk_id:
                return disk
        raise DeviceNotFound(vm_id, f"disk {disk_id}")


def _shrinks(disk_id: str, size_bytes: int) -> FieldViolation:
    return FieldViolation("size_gib", f"disk {disk_id} has {size_bytes} bytes already; a disk cannot be made smaller")
