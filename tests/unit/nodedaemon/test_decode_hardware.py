"""The hardware part of a VM's spec, decoded for the hypervisor layer."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from hypervisor.guest_profiles import GuestFamily
from hypervisor.hardware import (
    PLAIN,
    CpuLimits,
    Entropy,
    EntropySource,
    GuestChoices,
    MediatedDevice,
    NumaCell,
    PciDevice,
    TpmVersion,
    UsbDevice,
    Video,
    VideoModel,
    Watchdog,
    WatchdogAction,
    WatchdogModel,
)
from hypervisor.types import DiskBus, DiskCache, Firmware, NicModel, VmConfig
from limiquantix.errors import InvalidArgument
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.decode import decode_vm
from nodedaemon.storage_paths import StoragePaths

VM_ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"
DISK_ID = "2d8b2b7e-5a8c-4a53-9a1c-8d3c1d6f4a10"


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path)


def decoded(paths: StoragePaths, text: str) -> VmConfig:
    spec = pb.VMSpec(cpu_cores=2, cpu_sockets=1, cpu_threads_per_core=1, memory_mib=512)
    text_format.Merge(text, spec)
    return decode_vm(VM_ID, "web", spec, paths).config


def faults(paths: StoragePaths, text: str) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        decoded(paths, text)
    return [violation.field for violation in caught.value.violations]


def test_plain_spec_has_plain_hardware(paths: StoragePaths) -> None:
    assert decoded(paths, "rng { enabled: true } tpm {} watchdog {} numa {}").hardware == PLAIN


def test_all_hardware_is_decoded(paths: StoragePaths) -> None:
    config = decoded(
        paths,
        """
        firmware: FIRMWARE_UEFI_SECURE_BOOT console { spice_enabled: true vnc_password: "x" } guest_os: "suse"
        tpm { enabled: true version: TPM_2_0 } watchdog { enabled: true model: IB700 action: PAUSE }
        rng { rate_bytes: 4096 period_ms: 100 backend: "/dev/hwrng" } memory_hugepages: true huge_page_size: SIZE_1GB
        numa { enabled: true nodes { node_id: 1 vcpus: 1 memory_mib: 256 }
               nodes { node_id: 0 vcpus: 0 memory_mib: 256 host_nodes: 0 } }
        max_vcpus: 8 max_memory_mib: 2048 ballooning_enabled: true cpu_shares: 512 cpu_limit_mhz: 900
        cpu_features { aes_ni: true avx512: true nested_virt: true custom_flags: "pdpe1gb" custom_flags: "aes" }
        serial { count: 3 } boot_menu_timeout_sec: 2 gpu: QXL video_memory_mib: 64 displays: 2
        pci_devices { host_address: "0000:3B:00.0" rom_bar: true } usb_devices { host_bus: "2" host_device: "5" }
        usb_devices { vendor_id: "0951" product_id: "16AB" }
        vgpu_devices { profile: "p" gpu_uuid: "4B20D080-1b54-4048-85b3-a6a62d165c01" }
        """,
    )
    hardware = config.hardware
    assert config.firmware is Firmware.UEFI
    assert config.spice is not None
    assert config.spice.password == "x"
    assert (hardware.secure_boot, hardware.tpm, hardware.guest) == (True, TpmVersion.V2_0, GuestFamily.SUSE)
    assert hardware.watchdog == Watchdog(WatchdogModel.IB700, WatchdogAction.PAUSE)
    assert hardware.entropy == Entropy(EntropySource.HWRNG, 4096, 100)
    assert hardware.numa == (NumaCell(0, (0,), 256, (0,)), NumaCell(1, (1,), 256))
    assert (hardware.huge_page_kib, hardware.max_vcpu_count, hardware.max_memory_mib) == (1048576, 8, 2048)
    assert hardware.may_balloon
    assert hardware.cpu_features == ("aes", "avx512f", "pdpe1gb")
    assert hardware.nested_virtualization
    assert hardware.cpu_limits == CpuLimits(512, 900)
    assert hardware.video == Video(VideoModel.QXL, 64, 2)
    assert (hardware.serial_port_count, hardware.boot_menu_ms) == (3, 2000)
    assert hardware.pci_devices == (PciDevice("0000:3b:00.0", has_rom=True),)
    assert hardware.usb_devices == (UsbDevice(bus=2, number=5), UsbDevice("0951", "16ab"))
    assert hardware.mediated_devices == (MediatedDevice("p", "4b20d080-1b54-4048-85b3-a6a62d165c01"),)


def test_numa_without_nodes_is_one_a_socket(paths: StoragePaths) -> None:
    config = decoded(paths, "numa { enabled: true } cpu_sockets: 2 max_vcpus: 8 memory_mib: 513")
    assert config.hardware.numa == (NumaCell(0, (0, 1, 2, 3), 257), NumaCell(1, (4, 5, 6, 7), 256))


def test_overrides_win_over_profile_and_fill_in_what_the_spec_leaves_open(paths: StoragePaths) -> None:
    config = decoded(
        paths,
        f"""
        guest_os: "windows_server" firmware: FIRMWARE_UEFI
        guest_os_overrides {{ hpet_enabled: true hyperv_timers: false kvmclock: false hyperv_features: true
          nested_virt: false cpu_mode: "host-model" video_model: "qxl" video_vram_kb: 65536 disk_bus: "sata"
          disk_cache: "none" nic_model: "e1000e" machine_type: "q35" tpm_required: true secure_boot: true }}
        disks {{ id: "{DISK_ID}" size_gib: 1 cache: DISK_CACHE_WRITEBACK }} nics {{ id: "{VM_ID}" }}
        """,
    )
    hardware = config.hardware
    assert hardware.guest_choices == GuestChoices(True, True, False, False)
    assert (hardware.nested_virtualization, hardware.tpm, hardware.secure_boot) == (False, TpmVersion.V2_0, True)
    assert config.cpu.model == "host-model"
    assert hardware.video == Video(VideoModel.QXL, 64)
    assert (config.disks[0].bus, config.disks[0].cache) == (DiskBus.SATA, DiskCache.NONE)
    assert config.nics[0].model is NicModel.E1000E


@pytest.mark.parametrize(
    ("family", "bus", "model"),
    [
        ("windows_legacy", DiskBus.SATA, NicModel.E1000),
        ("solaris", DiskBus.SATA, NicModel.E1000),
        ("windows_server", DiskBus.VIRTIO, NicModel.VIRTIO),
        ("debian", DiskBus.VIRTIO, NicModel.VIRTIO),
        ("", DiskBus.VIRTIO, NicModel.VIRTIO),
    ],
)
def test_guest_without_virtio_drivers_gets_devices_that_it_sees(
    paths: StoragePaths, family: str, bus: DiskBus, model: NicModel
) -> None:
    text = f'guest_os: "{family}" disks {{ id: "{DISK_ID}" size_gib: 1 }} nics {{ id: "{VM_ID}" }}'
    config = decoded(paths, text)
    assert (config.disks[0].bus, config.nics[0].model) == (bus, model)
    scsi = decoded(paths, text.replace("size_gib: 1", "size_gib: 1 bus: DISK_BUS_SCSI"))
    assert scsi.disks[0].bus is DiskBus.SCSI


def test_every_contradiction_and_unknown_name_is_named_at_once(paths: StoragePaths) -> None:
    found = faults(
        paths,
        """
        guest_os: "beos" rng { rate_bytes: 1 backend: "/dev/sda" } cpu_model: "Nehalem"
        console { vnc_enabled: true spice_enabled: true }
        guest_os_overrides { machine_type: "pc" secure_boot: true cpu_mode: "EPYC" video_model: "vesa"
          video_vram_kb: 1000 disk_bus: "floppy" disk_cache: "much" nic_model: "ne2k" }
        """,
    )
    assert sorted(found) == sorted(
        [
            "spec.guest_os",
            "spec.rng.backend",
            "spec.console.spice_enabled",
            *(
                f"spec.guest_os_overrides.{name}"
                for name in (
                    "machine_type",
                    "secure_boot",
                    "cpu_mode",
                    "video_model",
                    "video_vram_kb",
                    "disk_bus",
                    "disk_cache",
                    "nic_model",
                )
            ),
        ]
    )


def test_secure_boot_that_is_chosen_and_overridden_contradicts_itself(paths: StoragePaths) -> None:
    text = "firmware: FIRMWARE_UEFI_SECURE_BOOT guest_os_overrides { secure_boot: false }"
    assert faults(paths, text) == ["spec.guest_os_overrides.secure_boot"]
