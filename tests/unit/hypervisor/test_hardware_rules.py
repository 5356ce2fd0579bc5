"""What a host can build, and what can be changed while a VM runs: pure decisions, shared by all backends."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest

from hypervisor.abilities import Abilities, DeviceKind, DisplayKind, HostDevice, HugePages, NumaNode
from hypervisor.guest_profiles import GuestFamily
from hypervisor.hardware import (
    CpuLimits,
    GuestChoices,
    Hardware,
    MediatedDevice,
    PciDevice,
    TpmVersion,
    UsbDevice,
    Video,
    VideoModel,
)
from hypervisor.hardware_rules import asks_for_anything, obstacles
from hypervisor.resizing import Machine, Plan, plan_resize
from hypervisor.types import Accelerator, CpuTopology, Firmware, SpiceConsole, VmConfig, VncConsole

PLAIN = VmConfig("5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11", "web-1", CpuTopology(2), 512)
GPU = HostDevice(DeviceKind.PCI, "0000:3b:00.0", iommu_group=7)
STICK = HostDevice(DeviceKind.USB, "1:4", "0951", "1666")
SLICE = HostDevice(DeviceKind.MEDIATED, "4b20d080-1b54-4048-85b3-a6a62d165c01", profiles=("nvidia-35",))
ALL = Abilities(
    has_uefi=True,
    has_secure_boot=True,
    tpm_versions=tuple(TpmVersion),
    displays=tuple(DisplayKind),
    video_models=tuple(VideoModel),
    cpu_models=("Nehalem", "Westmere"),
    known_cpu_models=("Nehalem", "Skylake-Server", "Westmere"),
    known_cpu_features=("aes", "avx", "avx2"),
    hyperv_features=("relaxed",),
    huge_pages=(HugePages(2048, 256, 0),),
    numa_nodes=(NumaNode(0, (0, 1), 4096),),
    has_iommu=True,
    has_nested_virtualization=True,
    can_limit_cpu=True,
    can_add_vcpus=True,
    can_remove_vcpus=True,
    can_add_memory=True,
)


def having(**hardware: Any) -> VmConfig:
    return dataclasses.replace(PLAIN, hardware=Hardware(**hardware))


def lacking(**abilities: Any) -> Abilities:
    return dataclasses.replace(ALL, **abilities)


def found(config: VmConfig, abilities: Abilities = ALL, *devices: HostDevice) -> list[str]:
    return list(obstacles(config, abilities, devices, Accelerator.KVM))


UEFI = dataclasses.replace(PLAIN, firmware=Firmware.UEFI)
DISPLAYED = dataclasses.replace(PLAIN, vnc=VncConsole(), hardware=Hardware(video=Video(VideoModel.QXL)))


@pytest.mark.parametrize(
    ("config", "abilities", "words"),
    [
        (UEFI, lacking(has_uefi=False), "OVMF"),
        (
            dataclasses.replace(UEFI, hardware=Hardware(secure_boot=True)),
            lacking(has_secure_boot=False),
            "enrolled keys",
        ),
        (having(tpm=TpmVersion.V2_0), lacking(tpm_versions=()), "swtpm is not installed"),
        (having(tpm=TpmVersion.V1_2), lacking(tpm_versions=(TpmVersion.V2_0,)), "it has TPM 2.0 only"),
        (dataclasses.replace(PLAIN, spice=SpiceConsole()), lacking(displays=(DisplayKind.VNC,)), "no SPICE"),
        (DISPLAYED, lacking(video_models=(VideoModel.VGA,)), "no graphics card qxl; it has vga"),
        (
            having(huge_page_kib=2048),
            lacking(huge_pages=(HugePages(2048, 255, 255),)),
            "255 huge pages of 2 MiB, .* 256",
        ),
        (having(huge_page_kib=2048), lacking(huge_pages=()), "has 0 huge pages"),
        (having(nested_virtualization=True), lacking(has_nested_virtualization=False), "VMs of their own"),
        (having(guest_choices=GuestChoices(hyperv_features=True)), lacking(hyperv_features=()), "enlightenments"),
        (having(cpu_limits=CpuLimits(weight=100)), lacking(can_limit_cpu=False), "cgroup"),
        (having(pci_devices=(PciDevice(GPU.address),)), lacking(has_iommu=False), "no IOMMU"),
    ],
)
def test_host_that_lacks_something_says_what(config: VmConfig, abilities: Abilities, words: str) -> None:
    assert asks_for_anything(config)
    (obstacle,) = found(config, abilities, GPU)
    assert re.search(words, obstacle)
    assert found(config, ALL, GPU) == []


@pytest.mark.parametrize(
    ("hardware", "device"),
    [
        ({"pci_devices": (PciDevice("0000:3B:00.0"),)}, GPU),
        ({"usb_devices": (UsbDevice("0951", "1666"),)}, STICK),
        ({"usb_devices": (UsbDevice(bus=1, number=4),)}, STICK),
        ({"mediated_devices": (MediatedDevice("nvidia-35", SLICE.address),)}, SLICE),
    ],
)
def test_device_is_passed_on_unless_another_vm_has_it(hardware: dict[str, Any], device: HostDevice) -> None:
    config = having(**hardware)
    assert found(config, ALL, device) == []
    taken = dataclasses.replace(device, used_by="another", obstacle="VM another has it")
    (obstacle,) = found(config, ALL, taken)
    assert obstacle.endswith("VM another has it")
    assert found(config, ALL, dataclasses.replace(taken, used_by=PLAIN.vm_id)) == []
    assert len(found(config, ALL)) == 1


def test_mediated_device_without_a_name_is_refused_with_those_there_are() -> None:
    (obstacle,) = found(having(mediated_devices=(MediatedDevice("nvidia-35"),)), ALL, SLICE)
    assert SLICE.address in obstacle


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Skylake-Server", "cannot run CPU model Skylake-Server; it can run Nehalem, Westmere"),
        ("skylake", "near are Skylake-Server"),
        ("xyz", "no CPU model is called 'xyz'"),
    ],
)
def test_cpu_model_that_cannot_be_had_is_told_from_one_that_nobody_knows(model: str, words: str) -> None:
    (obstacle,) = found(dataclasses.replace(PLAIN, cpu=CpuTopology(model=model)))
    assert obstacle.endswith(words)


@pytest.mark.parametrize("model", ["", "Nehalem", "host-passthrough", "host-model", "maximum"])
def test_cpu_model_of_the_host_is_no_obstacle(model: str) -> None:
    assert found(dataclasses.replace(PLAIN, cpu=CpuTopology(model=model))) == []


def test_plain_vm_asks_for_nothing_that_would_have_to_be_looked_up() -> None:
    assert not asks_for_anything(dataclasses.replace(PLAIN, vnc=VncConsole("x"), cpu=CpuTopology(8, 2)))


# -- what can be changed while a VM runs

RUNNING = Machine(
    vcpu_count=2, max_vcpu_count=4, socket_count=1, thread_count=1, memory_mib=512, plugged_mib=512, max_memory_mib=1024
)
BALLOONED = dataclasses.replace(RUNNING, memory_mib=384)


def asked(vcpu_count: int = 2, memory_mib: int = 512, **hardware: Any) -> VmConfig:
    return dataclasses.replace(
        PLAIN, cpu=CpuTopology(vcpu_count), memory_mib=memory_mib, hardware=Hardware(may_balloon=True, **hardware)
    )


@pytest.mark.parametrize(
    ("machine", "config", "plan"),
    [
        (RUNNING, asked(), Plan()),
        (RUNNING, asked(4), Plan(4)),
        (RUNNING, asked(1), Plan(1)),
        (RUNNING, asked(memory_mib=768), Plan(plug_mib=256)),
        (RUNNING, asked(memory_mib=256), Plan(balloon_mib=256)),
        (BALLOONED, asked(memory_mib=512), Plan(balloon_mib=512)),
        (BALLOONED, asked(memory_mib=448), Plan(balloon_mib=448)),
        (BALLOONED, asked(memory_mib=640), Plan(plug_mib=128, balloon_mib=640)),
        (RUNNING, asked(3, 1024), Plan(3, 512)),
    ],
)
def test_size_within_the_room_is_had_at_once(machine: Machine, config: VmConfig, plan: Plan) -> None:
    assert plan_resize(machine, config, ALL) == plan


@pytest.mark.parametrize(
    ("machine", "config", "abilities", "words"),
    [
        (RUNNING, asked(5), ALL, "room for 4 vCPUs"),
        (RUNNING, asked(1), lacking(can_remove_vcpus=False), "takes no vCPUs away"),
        (RUNNING, asked(3), lacking(can_add_vcpus=False), "adds no vCPUs"),
        (RUNNING, asked(3, guest=GuestFamily.OPENBSD), ALL, "family openbsd takes no vCPUs"),
        (dataclasses.replace(RUNNING, socket_count=2), asked(), ALL, "sockets and threads"),
        (RUNNING, asked(memory_mib=2048), ALL, "room for 1024 MiB"),
        (dataclasses.replace(RUNNING, max_memory_mib=0), asked(memory_mib=640), ALL, "room for 512 MiB"),
        (RUNNING, asked(memory_mib=600), ALL, "steps of 128 MiB, which 88 MiB more is not"),
        (RUNNING, asked(memory_mib=640), lacking(can_add_memory=False), "adds no memory"),
        (RUNNING, asked(memory_mib=640, guest=GuestFamily.WINDOWS_LEGACY), ALL, "takes no memory"),
        (dataclasses.replace(RUNNING, is_paused=True), asked(memory_mib=256), ALL, "paused"),
        (dataclasses.replace(RUNNING, used_mib=300), asked(memory_mib=256), ALL, "uses 300 MiB"),
    ],
)
def test_what_cannot_be_had_at_once_waits_and_says_why(
    machine: Machine, config: VmConfig, abilities: Abilities, words: str
) -> None:
    plan = plan_resize(machine, config, abilities)
    assert dataclasses.replace(plan, obstacles=()) == Plan()
    assert words in plan.obstacles[0]


def test_plan_never_asks_for_more_than_the_room_nor_leaves_a_difference_unsaid() -> None:
    sizes = itertools.product(range(1, 7), range(128, 1300, 64), (RUNNING, BALLOONED))
    for vcpu_count, memory_mib, machine in sizes:
        plan = plan_resize(machine, asked(vcpu_count, memory_mib), ALL)
        assert (plan.vcpu_count or machine.vcpu_count) <= machine.max_vcpu_count
        assert machine.plugged_mib + plan.plug_mib <= machine.max_memory_mib
        has_vcpus = (plan.vcpu_count or machine.vcpu_count) == vcpu_count
        reached_mib = plan.balloon_mib or machine.memory_mib + plan.plug_mib
        assert (has_vcpus and reached_mib == memory_mib) == (not plan.obstacles)
