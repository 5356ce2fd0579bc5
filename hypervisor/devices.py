"""Devices of VMs that are there already: the optional power to attach, detach and change them, running or not.

A change of a VM that runs is made to what runs and to its definition, so that it holds after the next start; of a VM
that is off, to the definition only. A VM that is saved takes none: what was saved has the devices that it had.

Devices go by their ids. Whether a device is there is asked of the backend each time, so every method may be repeated
after anything that cut it short, and completes what is missing. `create` with the configuration from before no longer
finds the VM as it was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypervisor.types import CdromConfig, DiskBus, DiskConfig, IoLimits, NicConfig, NicModel

RELEASE_TIMEOUT_S: Final = 20.0
"""How long a guest gets to let go of a device; a healthy one takes well under a second, a loaded one some."""

HOTPLUG_DISK_BUSES: Final = frozenset({DiskBus.VIRTIO, DiskBus.SCSI})
"""Buses whose disks come and go while a VM runs; QEMU's SATA controller cannot do that."""

HOTPLUG_NIC_MODELS: Final = frozenset({NicModel.VIRTIO, NicModel.E1000E})
"""Cards that come and go while a VM runs: those for PCI Express, which the free slots are."""


@dataclass(frozen=True, slots=True)
class AttachedNic:
    """A network card; `host_interface` is what it is plugged into on the host while it runs, "" if there is none."""

    config: NicConfig
    host_interface: str = ""


@dataclass(frozen=True, slots=True)
class VmDevices:
    """What a VM has: while it runs what the guest sees, else what it would see. No order.

    Devices that have no id of ours, of a VM that another tool defined, are left out. Boot indexes are 0.
    """

    disks: tuple[DiskConfig, ...] = ()
    cdroms: tuple[CdromConfig, ...] = ()
    nics: tuple[AttachedNic, ...] = ()


class Devices(ABC):
    """Devices of VMs that are there already; see `Hypervisor` for the rules that hold for every method."""

    @abstractmethod
    async def list(self, vm_id: str) -> VmDevices:
        """Say what devices the VM has."""

    @abstractmethod
    async def attach_disk(self, vm_id: str, disk: DiskConfig) -> None:
        """Attach a disk, after the others. Succeeds if it is attached.

        Raises:
            DeviceExists: a disk of that id is another image, or on another bus.
            WrongState: it runs, and disks on that bus are attached to VMs that are off only; or it is saved.
            Refused: there is no slot left, or the backend cannot use the image.
        """

    @abstractmethod
    async def detach_disk(
        self, vm_id: str, disk_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S, force: bool = False
    ) -> None:
        """Take a disk away; the image stays. Succeeds if there is none of that id.

        Args:
            force: when the guest does not let go, take it out of the definition all the same: the guest keeps it until
                it is next powered off.

        Raises:
            GuestDidNotRelease: the guest still has it after `timeout_s` seconds; nothing changed.
            WrongState: it runs, and the disk is on a bus whose disks stay, or is the one it booted from; or it is
                paused, so that the guest cannot let go; or it is saved.
        """

    @abstractmethod
    async def resize_disk(self, vm_id: str, disk_id: str, size_bytes: int) -> bool:
        """Let a running VM see a larger disk. Succeeds if it is as large already.

        Returns:
            Whether the image was grown with it. If not, no process uses it, and that is the caller's to do.

        Raises:
            DeviceNotFound: there is no disk of that id.
            WrongState: it is saved.
            Refused: the disk is larger than that, or its image cannot be grown.
        """

    @abstractmethod
    async def limit_disk(self, vm_id: str, disk_id: str, limits: IoLimits) -> None:
        """Put these limits in place of the disk's present ones.

        Raises:
            DeviceNotFound: there is no disk of that id.
        """

    @abstractmethod
    async def attach_cdrom(self, vm_id: str, cdrom: CdromConfig) -> None:
        """Add a CD-ROM drive. Succeeds if it is there, whatever is in it.

        Raises:
            WrongState: it is not off; drives are on SATA.
        """

    @abstractmethod
    async def detach_cdrom(self, vm_id: str, cdrom_id: str) -> None:
        """Take a CD-ROM drive away. Succeeds if there is none of that id.

        Raises:
            WrongState: it is not off.
        """

    @abstractmethod
    async def change_medium(self, vm_id: str, cdrom_id: str, iso_path: Path | None) -> None:
        """Put a medium into a drive in place of what is in it; None leaves the drive empty. Idempotent.

        Raises:
            DeviceNotFound: there is no drive of that id.
            GuestDidNotRelease: the guest holds the drive's door shut, as it does while the medium is mounted.
            WrongState: it is saved.
        """

    @abstractmethod
    async def attach_nic(self, vm_id: str, nic: NicConfig) -> None:
        """Attach a network card. Succeeds if it is attached.

        Raises:
            DeviceExists: a card of that id has another address or model, or is elsewhere; or another has the address.
            WrongState: it runs, and such cards are attached to VMs that are off only; or it is saved.
            Refused: there is no slot left, or the bridge or network does not exist.
        """

    @abstractmethod
    async def detach_nic(self, vm_id: str, nic_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S) -> None:
        """Take a network card away. Succeeds if there is none of that id.

        Raises:
            GuestDidNotRelease, WrongState: as `detach_disk`.
        """

    @abstractmethod
    async def update_nic(self, vm_id: str, nic: NicConfig) -> None:
        """Plug a card's cable in or out, as `nic.is_link_up` says, and note its `nic.bandwidth`; all else stays.

        Raises:
            DeviceNotFound: there is no card of that id.
        """
