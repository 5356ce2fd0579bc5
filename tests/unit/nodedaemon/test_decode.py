"""From the contract's VM to the hypervisor's records, and every way to be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor.types import BootDevice, DiskBus, DiskCache, DiskFormat, Firmware, NicModel
from limiquantix.errors import InvalidArgument
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.decode import GIB, decode_vm, stable_mac
from nodedaemon.storage_paths import StoragePaths

VM_ID = "11111111-1111-4111-8111-111111111111"
DISK_ID = "22222222-2222-4222-8222-222222222222"
OTHER_ID = "33333333-3333-4333-8333-333333333333"


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    for name in ("boot/vmlinuz", "boot/initrd", "iso/debian.iso", f"{OTHER_ID}/disk.qcow2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "templates").mkdir()
    with (tmp_path / "templates/base.raw").open("wb") as template:
        template.truncate(3 * GIB)
    return StoragePaths(tmp_path)


def minimal() -> pb.VMSpec:
    return pb.VMSpec(cpu_cores=1, memory_mib=64)


def fields_of(spec: pb.VMSpec, paths: StoragePaths) -> set[str]:
    with pytest.raises(InvalidArgument) as caught:
        decode_vm(VM_ID, "web", spec, paths)
    return {violation.field for violation in caught.value.violations}


def test_decode_of_a_full_spec_keeps_every_setting(paths: StoragePaths) -> None:
    spec = pb.VMSpec(
        cpu_cores=2,
        cpu_sockets=2,
        cpu_threads_per_core=2,
        cpu_model="qemu64",
        memory_mib=512,
        firmware=pb.FIRMWARE_UEFI,
        boot_order=[pb.BOOT_DEVICE_CDROM, pb.BOOT_DEVICE_DISK, pb.BOOT_DEVICE_NETWORK],
        disks=[
            pb.DiskSpec(
                id=DISK_ID, size_gib=2, bus=pb.DISK_BUS_SCSI, cache=pb.DISK_CACHE_WRITEBACK, discard=True, boot_index=1
            )
        ],
        cdroms=[pb.CdromSpec(id=OTHER_ID, iso_path="iso/debian.iso", connected=True)],
        nics=[pb.NicSpec(id=OTHER_ID, mac_address="52:54:00:AB:CD:EF", bridge="br0", model=pb.NIC_MODEL_E1000E)],
        console=pb.ConsoleSpec(vnc_enabled=True, vnc_password="secret12"),
        direct_boot=pb.DirectKernelBoot(kernel_path="boot/vmlinuz", initrd_path="boot/initrd", cmdline="quiet"),
    )
    decoded = decode_vm(VM_ID, "web", spec, paths)
    config = decoded.config
    assert (config.vm_id, config.name, config.memory_mib) == (VM_ID, "web", 512)
    assert (config.cpu.vcpu_count, config.cpu.model, config.firmware) == (8, "qemu64", Firmware.UEFI)
    assert config.boot_order == (BootDevice.CDROM, BootDevice.DISK, BootDevice.NETWORK)
    (disk,) = config.disks
    assert disk.path == paths.root / VM_ID / f"{DISK_ID}.qcow2"
    assert (disk.bus, disk.cache, disk.discard, disk.boot_index) == (DiskBus.SCSI, DiskCache.WRITEBACK, True, 1)
    assert config.cdroms[0].iso_path == paths.root / "iso/debian.iso"
    assert (config.nics[0].mac_address, config.nics[0].model) == ("52:54:00:ab:cd:ef", NicModel.E1000E)
    assert config.vnc is not None
    assert config.vnc.password == "secret12"
    assert config.direct_boot is not None
    assert config.direct_boot.initrd_path == paths.root / "boot/initrd"
    (plan,) = decoded.images
    assert (plan.path, plan.size_bytes, plan.template) == (disk.path, 2 * GIB, None)


def test_decode_defaults_are_one_vcpu_and_no_console(paths: StoragePaths) -> None:
    config = decode_vm(VM_ID, "web", minimal(), paths).config
    assert config.cpu.vcpu_count == 1
    assert (config.vnc, config.direct_boot, config.disks) == (None, None, ())


def test_nic_without_mac_gets_a_stable_one_of_qemus_range(paths: StoragePaths) -> None:
    spec = minimal()
    spec.nics.add(id=OTHER_ID)
    first = decode_vm(VM_ID, "web", spec, paths).config.nics[0].mac_address
    assert first == decode_vm(VM_ID, "web", spec, paths).config.nics[0].mac_address == stable_mac(OTHER_ID)
    assert first.startswith("52:54:00:")
    assert stable_mac(DISK_ID) != first


def test_cdrom_that_is_not_connected_is_an_empty_drive(paths: StoragePaths) -> None:
    spec = minimal()
    spec.cdroms.add(id=OTHER_ID, iso_path="iso/debian.iso")
    assert decode_vm(VM_ID, "web", spec, paths).config.cdroms[0].iso_path is None


def test_disk_from_a_template_takes_its_size_and_format(paths: StoragePaths) -> None:
    spec = minimal()
    spec.disks.add(id=DISK_ID, backing_file="templates/base.raw")
    (plan,) = decode_vm(VM_ID, "web", spec, paths).images
    assert plan.size_bytes == 3 * GIB
    assert plan.template is not None
    assert plan.template.format is DiskFormat.RAW


def test_bootable_devices_are_numbered_disks_first(paths: StoragePaths) -> None:
    spec = minimal()
    spec.cdroms.add(id=OTHER_ID, bootable=True)
    spec.disks.add(id=OTHER_ID, size_gib=1)
    spec.disks.add(id=DISK_ID, size_gib=1, bootable=True)
    config = decode_vm(VM_ID, "web", spec, paths).config
    assert [disk.boot_index for disk in config.disks] == [0, 1]
    assert [cdrom.boot_index for cdrom in config.cdroms] == [2]


def test_bootable_gives_way_to_an_explicit_boot_index(paths: StoragePaths) -> None:
    spec = minimal()
    spec.disks.add(id=DISK_ID, size_gib=1, bootable=True)
    spec.nics.add(id=OTHER_ID, boot_index=1)
    assert decode_vm(VM_ID, "web", spec, paths).config.disks[0].boot_index == 0


def test_every_fault_is_named_at_once(paths: StoragePaths) -> None:
    spec = minimal()
    spec.disks.add(id=DISK_ID)
    spec.disks.add(id=DISK_ID, size_gib=1, iops_limit=5, io_limits={"read_iops": 1}, pool_id=OTHER_ID)
    spec.disks.add(id=OTHER_ID, path=f"{OTHER_ID}/disk.qcow2")
    spec.cdroms.add(id=OTHER_ID, iso_path="/etc/passwd")
    spec.nics.add(id=OTHER_ID, mac_address="52:54:00:00:00:01", bridge="a", network="b")
    spec.nics.add(id=DISK_ID, mac_address="52:54:00:00:00:01", bandwidth_mbps=1)
    spec.console.spice_enabled = spec.console.vnc_enabled = True
    spec.console.vnc_port = 5901
    spec.cloud_init.meta_data = "no map"
    spec.direct_boot.kernel_path = "boot/none"
    assert fields_of(spec, paths) == {
        "spec.disks[0].size_gib",
        "spec.disks[1].id",
        "spec.disks[1].iops_limit",
        "spec.disks[1].pool_id",
        "spec.disks[2].path",
        "spec.cdroms[0].iso_path",
        "spec.nics[0].network",
        "spec.nics[1].mac_address",
        "spec.nics[1].bandwidth_mbps",
        "spec.console.spice_enabled",
        "spec.console.vnc_port",
        "spec.cloud_init.meta_data",
        "spec.direct_boot.kernel_path",
    }


@pytest.mark.parametrize(
    ("disk", "field"),
    [
        (pb.DiskSpec(backing_file="templates/base.raw", size_gib=2), "size_gib"),
        (pb.DiskSpec(backing_file="templates/base.raw", format=pb.DISK_FORMAT_RAW), "format"),
        (pb.DiskSpec(backing_file="iso/debian.iso"), "backing_file"),
        (pb.DiskSpec(path="templates/base.raw", format=pb.DISK_FORMAT_RAW), "path"),
        (pb.DiskSpec(path="iso/debian.iso", format=pb.DISK_FORMAT_QCOW2), "path"),
        (pb.DiskSpec(path="iso", format=pb.DISK_FORMAT_RAW), "path"),
    ],
)
def test_disk_that_cannot_be_had_is_named_by_field(paths: StoragePaths, disk: pb.DiskSpec, field: str) -> None:
    disk.id = DISK_ID
    spec = minimal()
    spec.disks.append(disk)
    assert fields_of(spec, paths) == {f"spec.disks[0].{field}"}


def test_two_devices_with_one_boot_index_are_refused(paths: StoragePaths) -> None:
    spec = minimal()
    spec.disks.add(id=DISK_ID, size_gib=1, boot_index=1)
    spec.nics.add(id=OTHER_ID, boot_index=1)
    assert fields_of(spec, paths) == {"spec.nics[0].boot_index"}
