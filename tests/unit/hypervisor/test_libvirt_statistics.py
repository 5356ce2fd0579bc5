"""From the names of libvirt's counters to ours: which device is which, and what is missing where QEMU is not asked."""

from __future__ import annotations

from typing import Any

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.statistics import read_identity, to_statistics
from hypervisor.statistics import DiskStatistics, NicStatistics

VM = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
DOMAIN = f"""<domain type='qemu' id='7'><name>web</name><uuid>{VM}</uuid><devices>
  <disk type='file' device='disk'><target dev='vda' bus='virtio'/><alias name='ua-disk-d1'/></disk>
  <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><alias name='ua-cdrom-c1'/></disk>
  <disk type='file' device='disk'><target dev='vdb' bus='virtio'/><alias name='virtio-disk1'/></disk>
  <interface type='user'><mac address='52:54:00:00:00:01'/><alias name='ua-nic-n1'/></interface>
  <interface type='bridge'><mac address='52:54:00:00:00:02'/><target dev='vnet3'/><alias name='ua-nic-n2'/></interface>
  <serial type='pty'><target port='0'/><alias name='ua-disk-decoy'/></serial>
</devices></domain>"""
COUNTERS: dict[str, Any] = {
    "cpu.time": 5 * 10**9,
    "vcpu.current": 2,
    "balloon.current": 1024,
    "balloon.rss": 512,
    "block.count": 3,
    "block.0.name": "vda",
    "block.0.path": "/d1",
    "block.0.rd.bytes": 10,
    "block.0.wr.bytes": 20,
    "block.0.rd.reqs": 1,
    "block.0.wr.reqs": 2,
    "block.1.name": "sda",
    "block.2.name": "vdb",
    "block.2.path": "/d2",
    "block.2.wr.bytes": 7,
    "net.count": 2,
    "net.1.name": "vnet3",
    "net.1.rx.bytes": 100,
    "net.1.tx.pkts": 5,
    "net.1.rx.errs": 1,
}
IDENTITY = read_identity(domain_xml.parse(DOMAIN), (7, ()))


def test_fault_16_counters_go_to_the_device_they_are_of() -> None:
    statistics = to_statistics(VM, IDENTITY, COUNTERS)
    assert statistics.disks == (
        DiskStatistics("d1", "vda", 10, 20, 1, 2),
        DiskStatistics("c1", "sda"),
        DiskStatistics("", "vdb", write_bytes=7),
    )
    assert statistics.nics == (NicStatistics("n2", "52:54:00:00:00:02", rx_bytes=100, tx_packets=5, rx_errors=1),)
    assert (statistics.name, statistics.vcpu_count, statistics.cpu_time_ns) == ("web", 2, 5 * 10**9)
    assert statistics.is_complete


def test_memory_in_use_is_the_guests_word_if_it_gave_one_and_else_the_processes() -> None:
    assert to_statistics(VM, IDENTITY, COUNTERS).memory_used_bytes == 512 * 1024
    said = COUNTERS | {"balloon.available": 1000, "balloon.usable": 400, "balloon.last-update": 1}
    assert to_statistics(VM, IDENTITY, said).memory_used_bytes == 600 * 1024
    lies = said | {"balloon.usable": 2000}
    assert to_statistics(VM, IDENTITY, lies).memory_used_bytes == 512 * 1024


def test_counters_without_those_of_qemu_are_not_complete() -> None:
    names_only = {name: value for name, value in COUNTERS.items() if ".rd." not in name and ".wr." not in name}
    for kept in (
        {name: value for name, value in COUNTERS.items() if not name.startswith("block")},
        names_only,
    ):
        statistics = to_statistics(VM, IDENTITY, kept)
        assert (statistics.is_complete, statistics.disks) == (False, ())
        assert statistics.cpu_time_ns == 5 * 10**9
    drive_only = {"block.count": 1, "block.0.name": "sda"}
    assert to_statistics(VM, IDENTITY, drive_only).is_complete
