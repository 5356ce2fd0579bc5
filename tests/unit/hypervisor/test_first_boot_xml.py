"""First-boot media in a domain's definition, valid by libvirt's own schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.libvirt.domain_metadata import fingerprint
from hypervisor.libvirt.domain_xml import HostTraits, build_domain
from hypervisor.types import (
    Accelerator,
    CdromConfig,
    CpuTopology,
    DiskBus,
    DiskConfig,
    FirstBootMedium,
    MediumKind,
    VmConfig,
)

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
TCG = HostTraits(Accelerator.TCG, Path("/var/log/limiquantix/console"))
PLAIN = VmConfig(
    "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11",
    "web-1",
    CpuTopology(),
    512,
    disks=(DiskConfig("d1", Path("/srv/vm/1.qcow2")), DiskConfig("d2", Path("/srv/vm/2.qcow2"), bus=DiskBus.SATA)),
    cdroms=(CdromConfig("c1"),),
)
SEED = dataclasses.replace(PLAIN, first_boot=FirstBootMedium(Path("/srv/vm/seed.iso"), MediumKind.CDROM, "d1"))
IGNITION = dataclasses.replace(
    PLAIN, first_boot=FirstBootMedium(Path("/srv/vm/a'><&b/ignition.json"), MediumKind.FIRMWARE, "d1")
)


SATA_SEED = dataclasses.replace(
    PLAIN, first_boot=FirstBootMedium(Path("/srv/vm/seed.iso"), MediumKind.CDROM, "d1", DiskBus.SATA)
)


@pytest.mark.parametrize("config", [SEED, SATA_SEED, IGNITION], ids=["seed", "seed on SATA", "ignition"])
def test_domain_with_first_boot_medium_is_valid_by_libvirts_schema(config: VmConfig) -> None:
    if not SCHEMA.is_file():
        pytest.skip(f"libvirt's schema is not installed at {SCHEMA}")
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    assert schema.validate(build_domain(config, TCG)), schema.error_log


def names_of(drives: list[etree._Element]) -> list[str | None]:
    return [target.get("dev") for drive in drives for target in drive.findall("target")]


@pytest.mark.parametrize("config", [SEED, SATA_SEED], ids=["SCSI", "SATA"])
def test_seed_has_a_drive_of_its_own_behind_the_vms(config: VmConfig) -> None:
    before, after = (build_domain(each, TCG).findall("devices/disk") for each in (PLAIN, config))
    seed = next(drive for drive in after if drive.find("source[@file='/srv/vm/seed.iso']") is not None)
    places = [
        (target.get("bus"), *sorted(address.attrib.items()))
        for drive in after
        for target in drive.findall("target")
        for address in drive.findall("address")
    ]

    assert names_of([drive for drive in after if drive is not seed]) == names_of(before)
    assert seed.get("device") == "cdrom"
    assert seed.find("readonly") is not None
    assert seed.find("alias") is None, "it is not one of the VM's devices"
    assert len(set(names_of(after))) == len(after)
    assert seed.find("boot") is None
    assert len(set(places)) == len(places)


def test_ignition_is_an_entry_of_the_firmware_and_no_drive() -> None:
    domain = build_domain(IGNITION, TCG)
    (entry,) = domain.findall("sysinfo[@type='fwcfg']/entry")
    assert entry.get("name") == "opt/com.coreos/config"
    assert entry.get("file") == "/srv/vm/a'><&b/ignition.json"
    assert domain.find("devices/controller[@type='scsi']") is None
    assert len(domain.findall("devices/disk")) == len(build_domain(PLAIN, TCG).findall("devices/disk"))


def test_fingerprint_tells_contents_apart_and_leaves_old_vms_alone() -> None:
    other = dataclasses.replace(SEED, first_boot=FirstBootMedium(Path("/srv/vm/seed.iso"), MediumKind.CDROM, "d2"))
    assert fingerprint(SEED) != fingerprint(other)
    assert fingerprint(PLAIN) == fingerprint(dataclasses.replace(SEED, first_boot=None))
