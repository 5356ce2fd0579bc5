"""Turn a VM of the contract (node.v1) into what the hypervisor layer takes, or say everything that is wrong with it.

The contract's own rules (ranges, formats) were checked before; here is what needs this host: files, and combinations.
Settings of the contract that this version does not act on are refused, never ignored.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hypervisor.types import (
    BootDevice,
    CdromConfig,
    CpuTopology,
    DirectBoot,
    DiskBus,
    DiskCache,
    DiskConfig,
    DiskFormat,
    Firmware,
    NicConfig,
    NicModel,
    SpiceConsole,
    VmConfig,
    VncConsole,
)
from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.decode_hardware import HardwareDecoder
from nodedaemon.device_limits import bandwidth_of, disk_limit_faults, io_limits_of, nic_faults
from nodedaemon.disk_copies import CopyPlan, find_source
from nodedaemon.disk_images import ImagePlan
from nodedaemon.first_boot import Faults, FirstBoot, first_boot_of
from nodedaemon.first_boot_media import medium_of
from nodedaemon.image_inspector import MAX_UNSTATED_BYTES, SourceFormat
from nodedaemon.storage_paths import PathRefused, StoragePaths, Template

GIB = 2**30

_FIRMWARE = {
    pb.FIRMWARE_BIOS: Firmware.BIOS,
    pb.FIRMWARE_UEFI: Firmware.UEFI,
    pb.FIRMWARE_UEFI_SECURE_BOOT: Firmware.UEFI,
}
_BOOT_DEVICES = {
    pb.BOOT_DEVICE_DISK: BootDevice.DISK,
    pb.BOOT_DEVICE_CDROM: BootDevice.CDROM,
    pb.BOOT_DEVICE_NETWORK: BootDevice.NETWORK,
}
_BUSES = {
    pb.DISK_BUS_VIRTIO: DiskBus.VIRTIO,
    pb.DISK_BUS_SCSI: DiskBus.SCSI,
    pb.DISK_BUS_SATA: DiskBus.SATA,
    pb.DISK_BUS_IDE: DiskBus.IDE,
}
_CDROM_BUSES = {pb.CDROM_BUS_SATA: DiskBus.SATA, pb.CDROM_BUS_SCSI: DiskBus.SCSI}
_SOURCE_FORMATS: Mapping[int, SourceFormat] = {
    pb.SOURCE_FORMAT_QCOW2: SourceFormat.QCOW2,
    pb.SOURCE_FORMAT_RAW: SourceFormat.RAW,
    pb.SOURCE_FORMAT_VMDK: SourceFormat.VMDK,
}
_FORMATS = {pb.DISK_FORMAT_QCOW2: DiskFormat.QCOW2, pb.DISK_FORMAT_RAW: DiskFormat.RAW}
_CACHES = {
    pb.DISK_CACHE_NONE: DiskCache.NONE,
    pb.DISK_CACHE_WRITEBACK: DiskCache.WRITEBACK,
    pb.DISK_CACHE_WRITETHROUGH: DiskCache.WRITETHROUGH,
}
_NIC_MODELS = {
    pb.NIC_MODEL_VIRTIO: NicModel.VIRTIO,
    pb.NIC_MODEL_E1000: NicModel.E1000,
    pb.NIC_MODEL_RTL8139: NicModel.RTL8139,
    pb.NIC_MODEL_E1000E: NicModel.E1000E,
}

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, slots=True)
class DecodedVm:
    """What to define, and the images that must exist before."""

    config: VmConfig
    images: tuple[ImagePlan, ...]
    copies: tuple[CopyPlan, ...] = ()
    first_boot: FirstBoot | None = None
    is_template: bool = False


def decode_vm(vm_id: str, name: str, spec: pb.VMSpec, paths: StoragePaths) -> DecodedVm:
    """Decode a VM. Looks at files, so it blocks.

    Raises:
        InvalidArgument: with every violation, named by field path from `spec`.
    """
    return _Decoder(vm_id, paths).decode(name, spec)


def decode_disk(vm_id: str, disk: pb.DiskSpec, paths: StoragePaths) -> tuple[DiskConfig, tuple[ImagePlan, ...]]:
    """Decode one disk, to be attached, and the image it needs. Looks at files, so it blocks.

    Raises:
        InvalidArgument: with every violation, named by field path from `disk`.
    """
    return _Decoder(vm_id, paths).decode_disk(disk)


def decode_cdrom(vm_id: str, cdrom: pb.CdromSpec, paths: StoragePaths) -> CdromConfig:
    """Decode one CD-ROM drive, to be attached; otherwise like `decode_disk`."""
    return _Decoder(vm_id, paths).decode_cdrom(cdrom)


def decode_nic(nic: pb.NicSpec) -> NicConfig:
    """Decode one network card, to be attached or changed.

    Raises:
        InvalidArgument: with every violation, named by field path from `nic`.
    """
    faults = [*nic_faults("nic", nic), *_attach_faults("nic", nic.boot_index)]
    if faults:
        raise InvalidArgument.from_violations(faults)
    return _nic(nic)


def _attach_faults(field: str, boot_index: int) -> Iterable[FieldViolation]:
    if boot_index:
        yield FieldViolation(
            f"{field}.boot_index", "cannot be given for a device that is attached; it comes after the others"
        )


def stable_mac(nic_id: str) -> str:
    """Derive a MAC address of QEMU's range that is always the same for a NIC."""
    tail = hashlib.sha256(nic_id.encode()).digest()[:3]
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + tail)


class _Decoder:
    """One request's decoding; gathers violations."""

    def __init__(self, vm_id: str, paths: StoragePaths) -> None:
        self._vm_id = vm_id
        self._paths = paths
        self._violations: list[FieldViolation] = []
        self._images: list[ImagePlan] = []
        self._copies: list[CopyPlan] = []

    def decode(self, name: str, spec: pb.VMSpec) -> DecodedVm:
        self._refuse_unsupported(spec)
        self._refuse_duplicates(spec)
        disks = tuple(self._disk(f"spec.disks[{i}]", disk) for i, disk in enumerate(spec.disks))
        cdroms = tuple(self._cdrom(f"spec.cdroms[{i}]", cdrom) for i, cdrom in enumerate(spec.cdroms))
        disks, cdroms = _number_bootable(spec, disks, cdroms)
        first_boot = self._first_boot(name, spec)
        machine = HardwareDecoder(spec)
        config = VmConfig(
            vm_id=self._vm_id,
            name=name,
            cpu=CpuTopology(
                spec.cpu_cores, spec.cpu_sockets or 1, spec.cpu_threads_per_core or 1, model=machine.cpu_model()
            ),
            memory_mib=spec.memory_mib,
            firmware=_FIRMWARE[spec.firmware],
            boot_order=tuple(_BOOT_DEVICES[device] for device in spec.boot_order),
            direct_boot=self._direct_boot(spec),
            disks=disks,
            cdroms=cdroms,
            nics=tuple(_nic(nic) for nic in spec.nics),
            vnc=VncConsole(spec.console.vnc_password) if spec.console.vnc_enabled else None,
            first_boot=medium_of(self._vm_id, first_boot, self._paths),
            spice=SpiceConsole(spec.console.vnc_password) if spec.console.spice_enabled else None,
            hardware=machine.decode(),
        )
        config = machine.suited(config)
        self._violations += machine.violations
        if self._violations:
            raise InvalidArgument.from_violations(self._violations)
        return DecodedVm(config, tuple(self._images), tuple(self._copies), first_boot, spec.is_template)

    def decode_disk(self, disk: pb.DiskSpec) -> tuple[DiskConfig, tuple[ImagePlan, ...]]:
        self._violations += _attach_faults("disk", disk.boot_index)
        for name, is_set in (("pool_id", disk.pool_id), ("bootable", disk.bootable), ("clone_of", disk.clone_of.vm_id)):
            if is_set:
                self._violate(f"disk.{name}", "cannot be given for a disk that is attached; leave it out")
        config = self._disk("disk", disk)
        if self._violations:
            raise InvalidArgument.from_violations(self._violations)
        return config, tuple(self._images)

    def decode_cdrom(self, cdrom: pb.CdromSpec) -> CdromConfig:
        self._violations += _attach_faults("cdrom", cdrom.boot_index)
        config = self._cdrom("cdrom", cdrom)
        if self._violations:
            raise InvalidArgument.from_violations(self._violations)
        return config

    def _first_boot(self, name: str, spec: pb.VMSpec) -> FirstBoot | None:
        try:
            return first_boot_of(self._vm_id, name, spec)
        except Faults as faults:
            self._violations += faults.violations
            return None

    def _violate(self, field: str, description: str) -> None:
        self._violations.append(FieldViolation(field, description))

    def _refuse_unsupported(self, spec: pb.VMSpec) -> None:
        unsupported: list[tuple[str, object]] = []
        for i, disk in enumerate(spec.disks):
            unsupported.append((f"spec.disks[{i}].pool_id", disk.pool_id))
        for field, is_set in unsupported:
            if is_set:
                self._violate(field, "is documented but not in this version; leave it out")
        if spec.console.vnc_enabled and spec.console.spice_enabled:
            self._violate("spec.console.spice_enabled", "cannot be given together with vnc_enabled")
        if spec.console.vnc_port:
            self._violate("spec.console.vnc_port", "is not used, since a display listens on no port; leave it out")
        for i, nic in enumerate(spec.nics):
            self._violations += nic_faults(f"spec.nics[{i}]", nic)

    def _refuse_duplicates(self, spec: pb.VMSpec) -> None:
        groups: list[tuple[str, Iterable[tuple[str, object]]]] = [
            ("id", ((f"spec.disks[{i}].id", disk.id.lower()) for i, disk in enumerate(spec.disks))),
            ("id", ((f"spec.cdroms[{i}].id", cdrom.id.lower()) for i, cdrom in enumerate(spec.cdroms))),
            ("id", ((f"spec.nics[{i}].id", nic.id.lower()) for i, nic in enumerate(spec.nics))),
            (
                "MAC address",
                ((f"spec.nics[{i}].mac_address", nic.mac_address.lower()) for i, nic in enumerate(spec.nics)),
            ),
            ("boot index", _boot_indexes(spec)),
        ]
        for what, values in groups:
            seen: set[object] = set()
            for field, value in values:
                if value and value in seen:
                    self._violate(field, f"repeats the {what} of another device")
                seen.add(value)

    def _disk(self, field: str, disk: pb.DiskSpec) -> DiskConfig:
        image_format = _FORMATS[disk.format]
        self._violations += disk_limit_faults(field, disk)
        if disk.path:
            path = self._existing_disk(field, disk, image_format)
        else:
            path = self._paths.image_path(self._vm_id, disk.id, image_format)
            self._plan_image(field, disk, path, image_format)
        return DiskConfig(
            disk_id=disk.id,
            path=path,
            format=image_format,
            bus=_BUSES[disk.bus],
            cache=_CACHES[disk.cache],
            readonly=disk.readonly,
            discard=disk.discard,
            boot_index=disk.boot_index,
            limits=io_limits_of(disk),
        )

    def _existing_disk(self, field: str, disk: pb.DiskSpec, image_format: DiskFormat) -> Path:
        if disk.backing_file:
            self._violate(f"{field}.backing_file", "cannot be given together with path")
        return self._find(
            f"{field}.path",
            lambda: self._paths.resolve_disk(disk.path, self._vm_id, image_format, readonly=disk.readonly),
            Path(),
        )

    def _plan_image(self, field: str, disk: pb.DiskSpec, path: Path, image_format: DiskFormat) -> None:
        size_bytes, template = disk.size_gib * GIB, None
        if disk.HasField("clone_of"):
            self._plan_clone(field, disk, path, image_format)
            return
        if disk.source_file:
            self._plan_import(field, disk, path, image_format)
            return
        if disk.backing_file and path.exists():
            # It stands for itself: one that was copied from another host is whole and has no template here.
            if size_bytes:
                self._images.append(ImagePlan(disk.id, path, image_format, size_bytes))
            return
        if disk.backing_file:
            nothing = Template(Path(), DiskFormat.RAW, 0)
            template = self._find(
                f"{field}.backing_file", lambda: self._paths.resolve_template(disk.backing_file), nothing
            )
            if image_format is not DiskFormat.QCOW2:
                self._violate(f"{field}.format", "must be QCOW2 for a disk with a backing file")
            if 0 < size_bytes < template.virtual_size_bytes:
                self._violate(
                    f"{field}.size_gib", f"is smaller than the backing file's {template.virtual_size_bytes} bytes"
                )
            size_bytes = size_bytes or template.virtual_size_bytes
        elif not size_bytes:
            self._violate(f"{field}.size_gib", "must be at least 1 for a disk without path or backing_file")
        self._images.append(ImagePlan(disk.id, path, image_format, size_bytes, template))

    def _plan_import(self, field: str, disk: pb.DiskSpec, path: Path, image_format: DiskFormat) -> None:
        """Plan a disk whose contents are copied. One that is there stands for itself: its source may be gone by now."""
        if disk.backing_file:
            self._violate(f"{field}.backing_file", "cannot be given together with source_file")
        size_bytes = disk.size_gib * GIB
        if path.exists():
            if size_bytes:
                self._images.append(ImagePlan(disk.id, path, image_format, size_bytes))
            return
        stated = _SOURCE_FORMATS.get(disk.source_format)
        if stated is None:
            self._violate(f"{field}.source_format", "must be stated with source_file; formats are never guessed")
            return
        source = self._find(
            f"{field}.source_file", lambda: self._paths.resolve_source(disk.source_file, self._vm_id, stated), None
        )
        if source is None:
            return
        if 0 < size_bytes < source.virtual_size_bytes:
            self._violate(f"{field}.size_gib", f"is smaller than the source's {source.virtual_size_bytes} bytes")
        if not size_bytes and source.virtual_size_bytes > MAX_UNSTATED_BYTES:
            self._violate(
                f"{field}.size_gib", f"must be given for a source of {source.virtual_size_bytes} bytes, which is large"
            )
        size_bytes = size_bytes or source.virtual_size_bytes
        self._images.append(ImagePlan(disk.id, path, image_format, size_bytes, source=source))

    def _plan_clone(self, field: str, disk: pb.DiskSpec, path: Path, image_format: DiskFormat) -> None:
        """Plan a disk made from another VM's. One that is there stands for itself: its source may be gone by now."""
        if disk.backing_file:
            self._violate(f"{field}.backing_file", "cannot be given together with clone_of")
        size_bytes, origin = disk.size_gib * GIB, disk.clone_of
        if path.exists():
            if size_bytes:
                self._images.append(ImagePlan(disk.id, path, image_format, size_bytes))
            return
        nothing = Template(Path(), image_format, 0)
        source = self._find(f"{field}.clone_of", lambda: find_source(self._paths, origin), nothing)
        if origin.linked and image_format is not DiskFormat.QCOW2:
            self._violate(f"{field}.format", "must be QCOW2 for a disk that is built upon another")
        if 0 < size_bytes < source.virtual_size_bytes:
            self._violate(f"{field}.size_gib", f"is smaller than the source's {source.virtual_size_bytes} bytes")
        size_bytes = size_bytes or source.virtual_size_bytes
        self._copies.append(CopyPlan(origin.vm_id.lower(), source, path, image_format, size_bytes, origin.linked))
        self._images.append(ImagePlan(disk.id, path, image_format, size_bytes, source if origin.linked else None))

    def _cdrom(self, field: str, cdrom: pb.CdromSpec) -> CdromConfig:
        iso_path = None
        if cdrom.iso_path:
            iso_path = self._find(
                f"{field}.iso_path", lambda: self._paths.resolve_file(cdrom.iso_path, self._vm_id), None
            )
        return CdromConfig(
            cdrom.id, iso_path if cdrom.connected else None, cdrom.boot_index, bus=_CDROM_BUSES[cdrom.bus]
        )

    def _direct_boot(self, spec: pb.VMSpec) -> DirectBoot | None:
        if not spec.HasField("direct_boot"):
            return None
        boot = spec.direct_boot
        kernel = self._find(
            "spec.direct_boot.kernel_path", lambda: self._paths.resolve_file(boot.kernel_path, self._vm_id), Path()
        )
        initrd = None
        if boot.initrd_path:
            initrd = self._find(
                "spec.direct_boot.initrd_path", lambda: self._paths.resolve_file(boot.initrd_path, self._vm_id), None
            )
        return DirectBoot(kernel, initrd, boot.cmdline)

    def _find(self, field: str, find: Callable[[], FoundT], otherwise: FoundT) -> FoundT:
        """Look a file up; a refusal becomes a violation, and decoding goes on to find the others."""
        try:
            return find()
        except PathRefused as refused:
            self._violate(field, str(refused))
            return otherwise


def _nic(nic: pb.NicSpec) -> NicConfig:
    return NicConfig(
        nic_id=nic.id,
        mac_address=nic.mac_address.lower() or stable_mac(nic.id),
        model=_NIC_MODELS[nic.model],
        bridge=nic.bridge,
        network=nic.network,
        boot_index=nic.boot_index,
        is_link_up=not nic.link_down,
        bandwidth=bandwidth_of(nic),
    )


def _boot_indexes(spec: pb.VMSpec) -> Iterable[tuple[str, object]]:
    yield from ((f"spec.disks[{i}].boot_index", disk.boot_index) for i, disk in enumerate(spec.disks))
    yield from ((f"spec.cdroms[{i}].boot_index", cdrom.boot_index) for i, cdrom in enumerate(spec.cdroms))
    yield from ((f"spec.nics[{i}].boot_index", nic.boot_index) for i, nic in enumerate(spec.nics))


def _number_bootable(
    spec: pb.VMSpec, disks: tuple[DiskConfig, ...], cdroms: tuple[CdromConfig, ...]
) -> tuple[tuple[DiskConfig, ...], tuple[CdromConfig, ...]]:
    """Number `bootable` devices from 1, disks first; where any device has a boot index of its own, those decide."""
    if any(index for _, index in _boot_indexes(spec)):
        return disks, cdroms
    numbers = itertools.count(1)
    numbered_disks = tuple(
        replace(config, boot_index=next(numbers)) if disk.bootable else config
        for disk, config in zip(spec.disks, disks, strict=True)
    )
    numbered_cdroms = tuple(
        replace(config, boot_index=next(numbers)) if cdrom.bootable else config
        for cdrom, config in zip(spec.cdroms, cdroms, strict=True)
    )
    return numbered_disks, numbered_cdroms
