"""What of a domain's definition is another one at the target."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import read_mark
from hypervisor.libvirt.migration import uri_obstacle
from hypervisor.libvirt.migration_xml import keeps_state_on_host, ties_of, translate
from hypervisor.migration import Places, Route, obstacles_of
from hypervisor.types import (
    Accelerator,
    CdromConfig,
    CpuTopology,
    DirectBoot,
    DiskCache,
    DiskConfig,
    FirstBootMedium,
    MediumKind,
    VmConfig,
)

VM_ID = str(uuid.uuid4())
HERE = Places(Path("/srv/a"), Path("/var/log/a"))
THERE = Places(Path("/mnt/b"), Path("/var/log/b"))
ROUTE = Route("qemu+tls://10.0.0.2/system", HERE, THERE)
CONFIG = VmConfig(
    VM_ID,
    "web",
    CpuTopology(),
    64,
    direct_boot=DirectBoot(Path("/srv/a/kernel"), Path("/boot/initrd")),
    disks=(DiskConfig(str(uuid.uuid4()), Path(f"/srv/a/{VM_ID}/d.qcow2")),),
    cdroms=(CdromConfig(str(uuid.uuid4()), Path("/srv/a/iso/x.iso")), CdromConfig(str(uuid.uuid4()))),
    first_boot=FirstBootMedium(Path(f"/srv/a/{VM_ID}/seed.iso"), MediumKind.CDROM, "digest"),
)


def domain_of(config: VmConfig) -> etree._Element:
    return domain_xml.build_domain(config, domain_xml.HostTraits(Accelerator.TCG, HERE.console_log_dir))


def test_paths_of_both_places_become_the_targets_and_others_stay() -> None:
    domain = domain_of(CONFIG)

    translate(domain, ROUTE, copies_disks=False)

    files = [element.get("file") for element in domain.iterfind("devices/disk/source")]
    assert files == [f"/mnt/b/{VM_ID}/d.qcow2", "/mnt/b/iso/x.iso", f"/mnt/b/{VM_ID}/seed.iso"]
    assert [log.get("file") for log in domain.iterfind("devices/*/log")] == [f"/var/log/b/{VM_ID}.log"]
    assert (domain.findtext("os/kernel"), domain.findtext("os/initrd")) == ("/mnt/b/kernel", "/boot/initrd")
    assert read_mark(domain).is_managed
    assert b"/srv/a" not in etree.tostring(domain)


def test_a_definition_with_the_same_paths_stays_what_it_was_made_from() -> None:
    domain, before = domain_of(CONFIG), domain_of(CONFIG)

    translate(domain, Route(ROUTE.peer_uri, HERE, HERE), copies_disks=False)

    assert etree.tostring(domain) == etree.tostring(before)


def test_copies_are_built_upon_nothing() -> None:
    domain = domain_of(CONFIG)
    disk = domain.find("devices/disk[@device='disk']")
    assert disk is not None
    chain = etree.SubElement(disk, "backingStore", {"type": "file"})
    etree.SubElement(chain, "source", {"file": "/srv/a/templates/t.raw"})

    translate(domain, ROUTE, copies_disks=True)

    assert domain.find("devices/disk/backingStore") is None


@pytest.mark.parametrize("qemu_version", [3_001_000, 4_000_000, 7_002_000])
@pytest.mark.parametrize("mode", list(DiskCache))
def test_a_cached_disk_ties_a_vm_only_while_it_runs_on_shared_storage_of_an_old_qemu(
    mode: DiskCache, qemu_version: int
) -> None:
    disk = DiskConfig(str(uuid.uuid4()), Path("/srv/a/d.qcow2"), cache=mode)
    domain = domain_of(VmConfig(VM_ID, "web", CpuTopology(), 64, disks=(disk,)))
    ties = ties_of(domain, has_snapshots=False, qemu_version=qemu_version)

    assert ties.has_cached_disks is (mode is not DiskCache.NONE and qemu_version < 4_000_000)
    assert bool(obstacles_of(ties, is_off=False, copies_disks=False)) is ties.has_cached_disks
    assert obstacles_of(ties, is_off=True, copies_disks=False) == []
    assert obstacles_of(ties, is_off=False, copies_disks=True) == []


def test_firmware_variables_and_a_tpm_are_kept_on_the_host() -> None:
    domain = domain_of(VmConfig(VM_ID, "web", CpuTopology(), 64))
    assert not keeps_state_on_host(domain)
    devices = domain.find("devices")
    assert devices is not None
    etree.SubElement(devices, "tpm")
    assert keeps_state_on_host(domain)


@pytest.mark.parametrize(
    ("uri", "is_good"),
    [
        ("qemu+tls://10.0.0.2/system", True),
        ("qemu+tls://[fd00::2]/system", True),
        ("qemu+tcp://10.0.0.2/system", False),  # ours is encrypted
        ("qemu+ssh://10.0.0.2/system?command=/bin/sh", False),
        ("qemu+tls://10.0.0.2/system?no_verify=1", False),
        ("qemu+ext:///system?command=/bin/sh", False),
        ("qemu:///system", False),
        ("mock:///x", False),
        ("", False),
    ],
)
def test_only_plain_addresses_of_libvirt_daemons_are_called(uri: str, is_good: bool) -> None:
    assert (uri_obstacle(uri, "qemu+tls://10.0.0.1/system") == "") is is_good
    assert uri_obstacle("qemu+tcp://127.0.0.2/system", "qemu+tcp://127.0.0.1/system") == ""
