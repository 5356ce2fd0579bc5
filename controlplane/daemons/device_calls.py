"""The part of a node daemon's calls that is about devices; see `controlplane.daemons.interface`."""

from __future__ import annotations

from typing import Protocol

from limiquantix.node.v1.node_daemon_pb2 import (
    AttachCDROMRequest,
    AttachDiskRequest,
    AttachNICRequest,
    ChangeMediaRequest,
    DetachCDROMRequest,
    DetachDiskRequest,
    DetachNICRequest,
    ResizeDiskRequest,
    SettleDevicesRequest,
    UpdateDiskRequest,
    UpdateNICRequest,
)


class DeviceCalls(Protocol):
    """Devices of VMs. What the host has already is success."""

    async def attach_disk(self, request: AttachDiskRequest) -> None:
        """Attach a disk, and make its image if it is not there."""
        ...

    async def detach_disk(self, request: DetachDiskRequest) -> None:
        """Take a disk away; waits until the guest has let go of it."""
        ...

    async def resize_disk(self, request: ResizeDiskRequest) -> None:
        """Grow a disk."""
        ...

    async def update_disk(self, request: UpdateDiskRequest) -> None:
        """Replace a disk's ceilings."""
        ...

    async def attach_nic(self, request: AttachNICRequest) -> None:
        """Attach a network card."""
        ...

    async def detach_nic(self, request: DetachNICRequest) -> None:
        """Take a network card away; waits until the guest has let go of it."""
        ...

    async def update_nic(self, request: UpdateNICRequest) -> None:
        """Plug a card's cable in or out, and replace its ceilings."""
        ...

    async def attach_cdrom(self, request: AttachCDROMRequest) -> None:
        """Add a CD-ROM drive."""
        ...

    async def detach_cdrom(self, request: DetachCDROMRequest) -> None:
        """Take a CD-ROM drive away."""
        ...

    async def change_media(self, request: ChangeMediaRequest) -> None:
        """Put a medium into a drive, or take it out."""
        ...

    async def settle_devices(self, request: SettleDevicesRequest) -> None:
        """Make a VM's devices these and no others."""
        ...
