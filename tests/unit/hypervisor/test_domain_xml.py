"""Domain definitions: golden files of whole documents, each valid by libvirt's own schema, and the rules behind them.

After a change on purpose, `UPDATE_GOLDEN=1 pytest tests/unit/hypervisor/test_domain_xml.py` writes the files anew; read
the difference before committing it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.errors import Refused
from hypervisor.libvirt import device_xml, domain_xml
from hypervisor.libvirt.domain_xml import HostTraits
from hypervisor.types import (
    Accelerator,
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
    VmConfig,
    VncConsole,
)

GOLDEN = Path(__file__).with_name("golden")
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
TCG = HostTraits(Accelerator.TCG, Path("/var/log/limiquantix/console"))
KVM = dataclasses.replace(TCG, accelerator=Accelerator.KVM)

MINIMAL = VmConfig("5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11", "web-1", CpuTopology(), 512)


def disk(number: int, bus: DiskBus = DiskBus.VIRTIO) -> DiskConfig:
    return DiskConfig(f"disk-{number}", Path(f"/srv/vm/{number}.qcow2"), bus=bus)


def nic(number: int, model: NicModel = NicModel.VIRTIO) -> NicConfig:
    return NicConfig(f"nic-{number}", f"52:54:00:00:00:{number:02x}", model)


CONFIGS = {
    "minimal": MINIMAL,
    "cpu_topology_and_model": dataclasses.replace(MINIMAL, cpu=CpuTopology(2, 2, 2, "Westmere")),
    "disks_on_every_bus": dataclasses.replace(
        MINIMAL,
        disks=(
            disk(1),
            disk(2, DiskBus.SCSI),
            disk(3, DiskBus.SATA),
            disk(4, DiskBus.IDE),
            disk(5, DiskBus.SCSI),
            disk(6),
        ),
    ),
    "disk_options": dataclasses.replace(
        MINIMAL,
        disks=(
            DiskConfig("c9b8a1f0-3a55-4a3f-8e0e-5d2f3b6c7d80", Path("/srv/vm/data.raw"), DiskFormat.RAW, discard=True),
            dataclasses.replace(disk(2), cache=DiskCache.WRITEBACK, readonly=True),
            dataclasses.replace(disk(3), cache=DiskCache.WRITETHROUGH),
        ),
    ),
    "cdroms": dataclasses.replace(
        MINIMAL, disks=(disk(1),), cdroms=(CdromConfig("cd-1", Path("/srv/iso/install.iso")), CdromConfig("cd-2"))
    ),
    "uefi": dataclasses.replace(MINIMAL, firmware=Firmware.UEFI, disks=(disk(1),)),
    "direct_boot": dataclasses.replace(
        MINIMAL,
        direct_boot=DirectBoot(Path("/srv/boot/vmlinuz"), Path("/srv/boot/initrd"), "console=ttyS0 root=/dev/vda"),
        disks=(disk(1),),
        nics=(nic(1),),
    ),
    "nics": dataclasses.replace(
        MINIMAL,
        nics=(
            dataclasses.replace(nic(1), bridge="virbr0"),
            dataclasses.replace(nic(2, NicModel.E1000), network="default"),
            nic(3, NicModel.E1000E),
            nic(4, NicModel.RTL8139),
        ),
    ),
    "boot_order_by_class": dataclasses.replace(
        MINIMAL,
        boot_order=(BootDevice.NETWORK, BootDevice.CDROM, BootDevice.DISK),
        disks=(disk(1), disk(2)),
        cdroms=(CdromConfig("cd-1"),),
        nics=(nic(1),),
    ),
    "boot_order_by_device": dataclasses.replace(
        MINIMAL,
        disks=(disk(1), dataclasses.replace(disk(2), boot_index=2)),
        cdroms=(CdromConfig("cd-1", Path("/srv/iso/rescue.iso"), boot_index=1),),
    ),
    "vnc_with_password": dataclasses.replace(MINIMAL, vnc=VncConsole("s3cr3t<>")),
    "hostile_names": dataclasses.replace(
        MINIMAL,
        name="'><&\"]]>\n</title><x/>\u202e\u0000",
        disks=(dataclasses.replace(disk(1), path=Path("/srv/vm/a'><&\"b c.qcow2")),),
    ),
}


@functools.cache
def schema() -> etree.RelaxNG:
    if not SCHEMA.is_file():
        pytest.skip(f"libvirt's schema is not installed at {SCHEMA}")
    return etree.RelaxNG(etree.parse(SCHEMA))


def document(tree: etree._Element) -> str:
    return etree.tostring(tree, encoding="unicode", pretty_print=True)


def one(tree: etree._Element, path: str) -> etree._Element:
    found = tree.find(path)
    assert found is not None, path
    return found


def build(config: VmConfig, host: HostTraits = TCG) -> etree._Element:
    return domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, host, vnc_password="made4you")))


@pytest.mark.parametrize("name", CONFIGS)
def test_definition_of_a_configuration_is_the_golden_one(name: str) -> None:
    written = document(domain_xml.build_domain(CONFIGS[name], TCG, vnc_password="made4you"))
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written)
    assert written == golden.read_text()


def test_definition_for_kvm_is_the_golden_one() -> None:
    written = document(domain_xml.build_domain(CONFIGS["disks_on_every_bus"], KVM))
    golden = GOLDEN / "kvm.xml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written)
    assert written == golden.read_text()


def test_golden_files_are_those_of_the_configurations() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == {*CONFIGS, "kvm"}


@pytest.mark.parametrize("host", [TCG, KVM], ids=["tcg", "kvm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_definition_is_valid_by_libvirts_schema(name: str, host: HostTraits) -> None:
    schema().assertValid(build(CONFIGS[name], host))


def test_schema_refuses_what_is_wrong() -> None:
    tree = build(MINIMAL)
    etree.SubElement(one(tree, "devices"), "disk", {"device": "nonsense"})
    assert not schema().validate(tree)


def test_definition_for_old_libvirt_leaves_the_emulators_cache_alone() -> None:
    assert build(MINIMAL, dataclasses.replace(TCG, supports_tcg_cache=False)).find("features/tcg") is None


def test_target_names_of_many_disks_never_collide() -> None:
    buses = [DiskBus.VIRTIO, DiskBus.SCSI, DiskBus.SATA, DiskBus.IDE] * 20
    config = dataclasses.replace(
        MINIMAL,
        disks=tuple(disk(number, bus) for number, bus in enumerate(buses)),
        cdroms=tuple(CdromConfig(f"cd-{number}") for number in range(9)),
    )
    tree = build(config)
    schema().assertValid(tree)
    names = [target.get("dev") for target in tree.findall("devices/disk/target")]
    assert len(names) == len(set(names)) == 89
    places = [
        (one(found, "target").get("bus"), *sorted(one(found, "address").items()))
        for found in tree.findall("devices/disk")
        if found.find("address") is not None
    ]
    assert len(places) == len(set(places)) == 69


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "vda"), (25, "vdz"), (26, "vdaa"), (51, "vdaz"), (52, "vdba"), (701, "vdzz"), (702, "vdaaa")],
)
def test_device_name_counts_as_linux_does(index: int, name: str) -> None:
    assert device_xml.device_name("vd", index) == name


def test_boot_orders_with_the_same_index_twice_stay_distinct() -> None:
    config = dataclasses.replace(
        MINIMAL, disks=tuple(dataclasses.replace(disk(number), boot_index=1) for number in range(3))
    )
    assert [boot.get("order") for boot in build(config).findall("devices/disk/boot")] == ["1", "2", "3"]


def test_boot_without_any_disk_is_from_the_network() -> None:
    assert one(build(dataclasses.replace(MINIMAL, nics=(nic(1),))), "devices/interface/boot").get("order") == "1"


def test_vnc_without_a_password_gets_the_one_made_for_it() -> None:
    graphics = one(build(dataclasses.replace(MINIMAL, vnc=VncConsole())), "devices/graphics")
    assert {str(key): str(value) for key, value in graphics.items()} == {"type": "vnc", "passwd": "made4you"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dataclasses.replace(MINIMAL, vm_id="../../etc/passwd"), "must be a UUID"),
        (dataclasses.replace(MINIMAL, vm_id=MINIMAL.vm_id.upper()), "must be a UUID in lower case"),
        (dataclasses.replace(MINIMAL, cpu=CpuTopology(model="host-passthrough")), "needs KVM"),
        (dataclasses.replace(MINIMAL, cpu=CpuTopology(model="a\0b")), "character that libvirt cannot store"),
        (
            dataclasses.replace(MINIMAL, disks=(dataclasses.replace(disk(1), path=Path("/srv/a\x01b")),)),
            "character that libvirt cannot store",
        ),
        (
            dataclasses.replace(MINIMAL, nics=(dataclasses.replace(nic(1), bridge="br0", network="default"),)),
            "both a bridge and a network",
        ),
        (
            dataclasses.replace(MINIMAL, disks=tuple(disk(number, DiskBus.SCSI) for number in range(257))),
            "room for 256 SCSI disks",
        ),
    ],
)
def test_configuration_that_no_definition_can_say_is_refused(config: VmConfig, words: str) -> None:
    with pytest.raises(Refused, match=words):
        domain_xml.build_domain(config, TCG)


def test_max_vcpus_are_read_from_the_domain_capabilities() -> None:
    assert domain_xml.read_max_vcpus("<domainCapabilities><vcpu max='288'/></domainCapabilities>") == 288
    assert domain_xml.read_max_vcpus("<domainCapabilities/>") == 0


def test_parse_does_not_read_files_that_a_document_names() -> None:
    hostile = '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]><d>&e;</d>'
    assert "root:" not in etree.tostring(domain_xml.parse(hostile), encoding="unicode").partition("]>")[2]
