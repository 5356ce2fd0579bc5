"""`Statistics` by libvirt's one bulk call.

Source of the names of counters: virConnectGetAllDomainStats. What belongs to which of our ids is read from a domain's
definition, and again only when the names in its counters say that its devices changed, or when it was started anew.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lxml import etree

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.domain_metadata import read_mark
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.worker_pool import Lane
from hypervisor.statistics import DiskStatistics, NicStatistics, Statistics, VmStatistics

DEADLINE_S: Final = 5.0
"""Some 3 ms a VM; a guest whose process hangs makes the call wait for good, and this reading fail."""

_KIB: Final = 1024
_ALIAS: Final = re.compile(r"ua-(?:disk|cdrom|nic)-(.+)")
_Counters = Mapping[str, Any]
_Shape = tuple[int, tuple[str, ...]]
"""Which run of a domain, and the names of its devices."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What a running domain's definition says: disks by target, cards by the host's interface."""

    shape: _Shape
    name: str
    disk_ids: Mapping[str, str]
    nics: Mapping[str, tuple[str, str]]


class DomainStatistics(Statistics):
    """See `Statistics`."""

    def __init__(self, connection: LibvirtConnection) -> None:
        self._connection = connection
        self._library = connection.library
        self._lock = threading.Lock()
        self._identities: dict[str, _Identity] = {}

    async def read_all(self) -> Sequence[VmStatistics]:
        """See `Statistics`."""
        return await self._connection.run(self._read_all, lane=Lane.GUEST, deadline_s=DEADLINE_S)

    # in a worker thread

    def _read_all(self, connection: Any) -> list[VmStatistics]:
        library = self._library
        groups = (
            library.VIR_DOMAIN_STATS_STATE
            | library.VIR_DOMAIN_STATS_CPU_TOTAL
            | library.VIR_DOMAIN_STATS_VCPU
            | library.VIR_DOMAIN_STATS_BALLOON
            | library.VIR_DOMAIN_STATS_BLOCK
            | library.VIR_DOMAIN_STATS_INTERFACE
        )
        # NOWAIT: of a domain that another call is busy with, there is what needs no answer from its QEMU.
        flags = library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        found = []
        with self._lock:
            identities: dict[str, _Identity] = {}
            for domain, counters in connection.getAllDomainStats(groups, flags):
                vm_id = domain.UUIDString()
                identity = self._identity(vm_id, domain, counters)
                if identity is not None:
                    identities[vm_id] = identity
                    found.append(to_statistics(vm_id, identity, counters))
            self._identities = identities  # those of VMs that run no more are dropped
        return found

    def _identity(self, vm_id: str, domain: Any, counters: _Counters) -> _Identity | None:
        """Return what a domain's definition says; None, if it has stopped just now."""
        known = self._identities.get(vm_id)
        shape = _shape(domain, counters)
        if known is not None and (known.shape == shape or (known.shape[0] == shape[0] and not _is_complete(counters))):
            return known
        try:
            return read_identity(domain_xml.parse(domain.XMLDesc()), shape)
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN):
                return None
            raise


def _is_complete(counters: _Counters) -> bool:
    """Tell whether QEMU was asked: without it there are names of disks, and none of their counters.

    A drive without a medium may have none in any case.
    """
    blocks = [prefix for prefix in _numbered(counters, "block") if f"{prefix}.path" in counters]
    return "block.count" in counters and (not blocks or any(f"{prefix}.rd.reqs" in counters for prefix in blocks))


def _numbered(counters: _Counters, group: str) -> Iterator[str]:
    return (f"{group}.{number}" for number in range(int(counters.get(f"{group}.count", 0))))


def _shape(domain: Any, counters: _Counters) -> _Shape:
    names = [
        f"{counters.get(f'{prefix}.name', '')} {counters.get(f'{prefix}.path', '')}"
        for group in ("block", "net")
        for prefix in _numbered(counters, group)
    ]
    return domain.ID(), tuple(names)


def read_identity(tree: etree._Element, shape: _Shape) -> _Identity:
    """Read names and ids out of a running domain's definition."""
    disk_ids, nics = {}, {}
    for device in tree.iterfind("devices/*"):
        target, alias = device.find("target"), device.find("alias")
        if target is None or device.tag not in ("disk", "interface"):
            continue
        match = _ALIAS.fullmatch("" if alias is None else alias.get("name", ""))
        device_id = "" if match is None else match[1]
        if device.tag == "disk":
            disk_ids[target.get("dev", "")] = device_id
        else:
            mac = device.find("mac")
            nics[target.get("dev", "")] = (device_id, "" if mac is None else mac.get("address", ""))
    return _Identity(shape, read_mark(tree).vm_name, disk_ids, nics)


def to_statistics(vm_id: str, identity: _Identity, counters: _Counters) -> VmStatistics:
    """Say counters in our words."""

    def count(name: str) -> int:
        return int(counters.get(name, 0))

    is_complete = _is_complete(counters)
    disks = tuple(
        DiskStatistics(
            identity.disk_ids.get(str(counters.get(f"{prefix}.name", "")), ""),
            str(counters.get(f"{prefix}.name", "")),
            read_bytes=count(f"{prefix}.rd.bytes"),
            write_bytes=count(f"{prefix}.wr.bytes"),
            read_count=count(f"{prefix}.rd.reqs"),
            write_count=count(f"{prefix}.wr.reqs"),
        )
        for prefix in _numbered(counters, "block")
        if is_complete
    )
    nics = tuple(
        NicStatistics(
            *identity.nics.get(str(counters[f"{prefix}.name"]), ("", "")),
            rx_bytes=count(f"{prefix}.rx.bytes"),
            tx_bytes=count(f"{prefix}.tx.bytes"),
            rx_packets=count(f"{prefix}.rx.pkts"),
            tx_packets=count(f"{prefix}.tx.pkts"),
            rx_errors=count(f"{prefix}.rx.errs"),
            tx_errors=count(f"{prefix}.tx.errs"),
        )
        for prefix in _numbered(counters, "net")
        if is_complete and f"{prefix}.name" in counters  # user-mode cards are counted, and not told of
    )
    available, free = (
        count("balloon.available"),
        int(counters.get("balloon.usable", counters.get("balloon.unused", -1))),
    )
    has_said = 0 <= free < available and count("balloon.last-update") > 0
    return VmStatistics(
        vm_id,
        identity.name,
        vcpu_count=count("vcpu.current"),
        cpu_time_ns=count("cpu.time"),
        memory_total_bytes=count("balloon.current") * _KIB,
        memory_used_bytes=(available - free if has_said else count("balloon.rss")) * _KIB,
        disks=disks,
        nics=nics,
        is_complete=is_complete,
    )
