"""The machine in domain definitions: golden files for each guest family and piece of hardware, valid by the schema.

After a change on purpose, `UPDATE_GOLDEN=1 pytest tests/unit/hypervisor/test_hardware_xml.py` writes the files anew.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.abilities import NumaNode
from hypervisor.errors import Refused
from hypervisor.guest_profiles import HYPERV_FEATURES, PROFILES, GuestFamily
from hypervisor.hardware import (
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
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import fingerprint
from hypervisor.libvirt.hardware_xml import HostTraits, ranges
from hypervisor.libvirt.resizing import is_roomy
from hypervisor.types import Accelerator, CpuTopology, Firmware, SpiceConsole, VmConfig, VncConsole

GOLDEN = Path(__file__).with_name("golden") / "hardware"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
TCG = HostTraits(
    Accelerator.TCG, Path("/var/log/limiquantix/console"), cpu_mhz=2600, numa_nodes=(NumaNode(0, (0, 1), 4096),)
)
KVM = dataclasses.replace(TCG, accelerator=Accelerator.KVM, hyperv_features=HYPERV_FEATURES, virtualization_flag="vmx")
PLAIN = VmConfig("5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11", "web-1", CpuTopology(2), 512)
FAMILIES = [family for family in GuestFamily if not PROFILES[family].refusal]


def having(config: VmConfig = PLAIN, **hardware: object) -> VmConfig:
    return dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, **hardware))  # type: ignore[arg-type]


CONFIGS = {
    "secure_boot_and_tpm": having(
        dataclasses.replace(PLAIN, firmware=Firmware.UEFI), secure_boot=True, tpm=TpmVersion.V2_0
    ),
    "tpm_1_2": having(tpm=TpmVersion.V1_2),
    "watchdog": having(watchdog=Watchdog(WatchdogModel.IB700, WatchdogAction.PAUSE)),
    "entropy": having(entropy=Entropy(EntropySource.HWRNG, 4096, 1000)),
    "numa": having(
        numa=(NumaCell(0, (0,), 256, (0,)), NumaCell(1, (1,), 256)),
    ),
    "huge_pages": having(huge_page_kib=2048),
    "room_to_grow": having(max_vcpu_count=8, max_memory_mib=4096),
    "cpu_model_and_features": having(
        dataclasses.replace(PLAIN, cpu=CpuTopology(2, model="Westmere")),
        cpu_features=("aes", "pdpe1gb"),
        nested_virtualization=True,
    ),
    "cpu_limits": having(cpu_limits=CpuLimits(2048, 1300)),
    "serial_ports": having(serial_port_count=4),
    "boot_menu": having(boot_menu_ms=5000),
    "host_devices": having(
        pci_devices=(PciDevice("0000:3b:00.1"), PciDevice("0000:3b:00.0", has_rom=True)),
        usb_devices=(UsbDevice("0951", "1666"), UsbDevice(bus=2, number=5)),
        mediated_devices=(MediatedDevice("nvidia-35", "4b20d080-1b54-4048-85b3-a6a62d165c01"),),
    ),
    "spice_with_qxl": having(
        dataclasses.replace(PLAIN, spice=SpiceConsole("s3cr3t")), video=Video(VideoModel.QXL, 64, 2)
    ),
    "vnc_with_cirrus": having(dataclasses.replace(PLAIN, vnc=VncConsole("s3cr3t")), video=Video(VideoModel.CIRRUS, 8)),
    "virtio_gpu": having(dataclasses.replace(PLAIN, vnc=VncConsole("s3cr3t")), video=Video(VideoModel.VIRTIO, 0, 4)),
    "choices_over_a_profile": having(
        guest=GuestFamily.WINDOWS_SERVER,
        guest_choices=GuestChoices(hpet=True, hyperv_features=False, hyperv_timers=False, kvmclock=False),
    ),
    "host_passthrough_nested_off": having(nested_virtualization=False),
}


@functools.cache
def schema() -> etree.RelaxNG:
    if not SCHEMA.is_file():
        pytest.skip(f"libvirt's schema is not installed at {SCHEMA}")
    return etree.RelaxNG(etree.parse(SCHEMA))


def build(config: VmConfig, host: HostTraits = TCG) -> etree._Element:
    return domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, host, vnc_password="made4you")))


def require_golden(config: VmConfig, host: HostTraits, name: str) -> None:
    written = etree.tostring(
        domain_xml.build_domain(config, host, vnc_password="made4you"), encoding="unicode", pretty_print=True
    )
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(written)
    assert written == golden.read_text()


def of_family(family: GuestFamily) -> VmConfig:
    return having(dataclasses.replace(PLAIN, vnc=VncConsole("s3cr3t")), guest=family)


@pytest.mark.parametrize("name", CONFIGS)
def test_definition_with_hardware_is_the_golden_one(name: str) -> None:
    host = KVM if name.startswith("host_passthrough") else TCG
    require_golden(CONFIGS[name], host, name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.value or "unspecified")
@pytest.mark.parametrize("host", [TCG, KVM], ids=["tcg", "kvm"])
def test_definition_for_a_guest_family_is_the_golden_one(family: GuestFamily, host: HostTraits) -> None:
    require_golden(of_family(family), host, f"guest_{family.value or 'unspecified'}_{host.accelerator.value}")


@pytest.mark.parametrize("host", [TCG, KVM], ids=["tcg", "kvm"])
def test_definitions_are_valid_by_libvirts_schema(host: HostTraits) -> None:
    for config in (*CONFIGS.values(), *(of_family(family) for family in FAMILIES)):
        schema().assertValid(build(config, host))


def test_golden_files_are_those_of_the_configurations() -> None:
    families = {f"guest_{family.value or 'unspecified'}_{kind}" for family in FAMILIES for kind in ("tcg", "kvm")}
    assert {file.stem for file in GOLDEN.glob("*.xml")} == {*CONFIGS, *families}


def test_emulated_windows_gets_the_enlightenments_that_need_no_kvm_only() -> None:
    features = build(having(guest=GuestFamily.WINDOWS_SERVER)).find("features/hyperv")
    assert features is not None
    assert [str(each.tag) for each in features] == ["relaxed", "vapic", "spinlocks"]


def test_windows_on_a_host_that_lacks_some_enlightenments_gets_the_others() -> None:
    host = dataclasses.replace(KVM, hyperv_features=("relaxed", "vapic", "spinlocks", "vpindex"))
    features = build(having(guest=GuestFamily.WINDOWS_SERVER), host).find("features/hyperv")
    assert features is not None
    assert [str(each.tag) for each in features] == ["relaxed", "vapic", "spinlocks", "vpindex"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (having(secure_boot=True), "part of UEFI"),
        (having(pci_devices=(PciDevice("3b:00.0"),)), "no PCI address"),
        (having(max_vcpu_count=3, max_memory_mib=0), None),
        (having(dataclasses.replace(PLAIN, cpu=CpuTopology(2, 2)), max_vcpu_count=7), "multiple of sockets"),
    ],
)
def test_machine_that_no_definition_can_say_is_refused(config: VmConfig, words: str | None) -> None:
    if words is None:
        assert build(config).findtext("vcpu") == "3"
        return
    with pytest.raises(Refused, match=words):
        build(config)


@pytest.mark.parametrize(
    ("told", "is_free"),
    [
        ("gen code size       72976611/134053888\nTB count", True),
        ("gen code size       100540417/134053888", False),
        ("gen code size       0/134053888", True),
        ("Translation buffer state:\n[accelerator does not support it]", False),
        ("", False),
    ],
)
def test_vcpu_is_added_to_an_emulated_machine_only_if_its_cache_surely_has_room(told: str, is_free: bool) -> None:
    assert is_roomy(told) == is_free


def test_machine_that_may_grow_has_cache_for_all_vcpus_and_another_only_the_usual() -> None:
    assert build(having(max_vcpu_count=8)).findtext("features/tcg/tb-cache") == "256"
    assert build(having(max_vcpu_count=2)).findtext("features/tcg/tb-cache") == "32"


def test_ceiling_without_the_hosts_clock_rate_is_refused() -> None:
    with pytest.raises(Refused, match="clock rate"):
        build(having(cpu_limits=CpuLimits(ceiling_mhz=100)), dataclasses.replace(TCG, cpu_mhz=0))


def test_plain_hardware_changes_no_fingerprint_of_a_vm_made_before_there_was_any() -> None:
    # Computed by the version that knew none of these fields.
    old = VmConfig("5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11", "web-1", CpuTopology(), 512, vnc=VncConsole(""))
    assert fingerprint(old) == "fe126ba7b31a244e02bbb1845cdb96bf365e657f5f2b8a83de6946cc8c177198"
    assert fingerprint(having(old, serial_port_count=1)) != fingerprint(old)


@pytest.mark.parametrize(
    ("numbers", "text"), [((0,), "0"), ((3, 1, 2, 8), "1-3,8"), ((5, 5, 6), "5-6"), (range(4), "0-3")]
)
def test_ranges_are_written_as_libvirt_does(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text
