"""Whether the devices of a VM are on its host those that are recorded."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.domain.vm import Vm
from hypervisor import types as hv


def differences(row: Vm, config: hv.VmConfig) -> Iterator[str]:
    """Name the devices that a VM of ours has on its host and not on record, or the other way round, or otherwise."""
    recorded_disks = {disk.id: disk.io_limits.read_iops for disk in row.spec.disks}
    there_disks = {disk.disk_id: disk.limits.read_iops for disk in config.disks}
    if recorded_disks != there_disks:
        yield f"the disks are {recorded_disks}, on the host {there_disks}"
    recorded_nics = {nic.id: (nic.mac_address, nic.link_down) for nic in row.spec.nics}
    there_nics = {nic.nic_id: (nic.mac_address, not nic.is_link_up) for nic in config.nics}
    if recorded_nics != there_nics:
        yield f"the network cards are {recorded_nics}, on the host {there_nics}"
    recorded_drives = {drive.id: drive.iso_path.rpartition("/")[2] for drive in row.spec.cdroms}
    there_drives = {drive.cdrom_id: drive.iso_path.name if drive.iso_path else "" for drive in config.cdroms}
    if recorded_drives != there_drives:
        yield f"the drives are {recorded_drives}, on the host {there_drives}"
