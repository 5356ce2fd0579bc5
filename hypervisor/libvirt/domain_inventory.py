"""What the domains of this host are now: few bulk calls, whatever their number. Runs in worker threads.

States come from calls that libvirt answers without QEMU's help, and counters from the kernel, so that one guest whose
process hangs, as all do when their storage is gone, keeps nobody from seeing the others. libvirt's own counters would
ask QEMU, even those of the processor. What guests say of their memory does need QEMU, and is read apart
(`read_guest_memory`), to take the place of what their processes hold.

Two facts are remembered between calls, each with what makes it safe. What definitions say is dropped at any event that
tells of a changed one. A process is kept together with libvirt's number of that run, which a later run does not share.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import DomainMark, read_mark
from hypervisor.libvirt.domain_notes import read_notes
from hypervisor.libvirt.domain_state import DomainState, Lifecycle, RawEvent, RawKind, is_active, power_state
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.qemu_process import ProcessUsage, QemuProcess, find_processes, read_usage
from hypervisor.types import VmNotes, VmStatus

GuestMemory = Mapping[str, int]
"""Bytes that guests say they use, by VM id; guests that say nothing are left out."""
Record = tuple[Any, Mapping[str, Any]]
"""A domain and its counters, as libvirt's bulk calls return them."""

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class _Definition:
    """What a definition says; of a running domain, the one that its next start will use."""

    mark: DomainMark
    notes: VmNotes
    vcpu_count: int
    memory_kib: int


class Inventory:
    """Reads statuses; may be used by several threads at once."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._nowait = library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        self._lock = threading.Lock()
        self._definitions: dict[str, _Definition] = {}
        self._change_count = 0
        self._processes: dict[str, tuple[int, QemuProcess]] = {}

    def read_all(self, connection: Any) -> list[VmStatus]:
        """Return every domain's status; memory in use is what its process holds on the host."""
        records = connection.getAllDomainStats(self._library.VIR_DOMAIN_STATS_STATE)
        saved_ids: set[str] = set()
        if any(_state_of(counters) == DomainState.SHUTOFF for _, counters in records):
            saved = connection.listAllDomains(self._library.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            saved_ids = {domain.UUIDString() for domain in saved}
        return self._statuses(records, saved_ids)

    def read_one(self, domain: Any) -> VmStatus:
        """Return one domain's status, as `read_all` does."""
        records = domain.connect().domainListGetStats([domain], self._library.VIR_DOMAIN_STATS_STATE)
        is_off = any(_state_of(counters) == DomainState.SHUTOFF for _, counters in records)
        saved_ids = {domain.UUIDString()} if is_off and domain.hasManagedSaveImage() else set()
        statuses = self._statuses(records, saved_ids)
        if not statuses:
            domain.state()  # raises that it does not exist: it vanished after it was looked up
        return statuses[0]

    def read_guest_memory(self, connection: Any) -> GuestMemory:
        """Ask all running guests what they use. Blocks while a QEMU hangs that did not hang the last time.

        NOWAIT skips domains with whose QEMU another call is talking, as one that hung the last time still is.
        """
        flags = self._nowait | self._library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        return _reported(connection.getAllDomainStats(self._library.VIR_DOMAIN_STATS_BALLOON, flags))

    def read_guest_memory_of(self, domain: Any) -> GuestMemory:
        """Ask one guest what it uses; see `read_guest_memory`."""
        group = self._library.VIR_DOMAIN_STATS_BALLOON
        return _reported(domain.connect().domainListGetStats([domain], group, self._nowait))

    def forget(self, event: RawEvent) -> None:
        """Drop what an event makes stale."""
        changes = (Lifecycle.DEFINED, Lifecycle.UNDEFINED, Lifecycle.STOPPED)  # one that migrates is gone with its stop
        if event.kind is RawKind.METADATA or (event.kind is RawKind.LIFECYCLE and event.number in changes):
            self.forget_vm(event.vm_id)

    def forget_vm(self, vm_id: str) -> None:
        """Drop what is known of a VM."""
        with self._lock:
            self._definitions.pop(vm_id, None)
            self._processes.pop(vm_id, None)
            self._change_count += 1

    def clear(self) -> None:
        """Drop everything: events were missed."""
        with self._lock:
            self._definitions.clear()
            self._processes.clear()
            self._change_count += 1

    def _statuses(self, records: Iterable[Record], saved_ids: Collection[str]) -> list[VmStatus]:
        runs = {domain.UUIDString(): domain.ID() for domain, counters in records if is_active(_state_of(counters))}
        processes = self._find_processes(runs)
        statuses = []
        for domain, counters in records:
            vm_id = domain.UUIDString()
            definition = self._definition(domain)
            if definition is None:
                continue
            state = power_state(_state_of(counters), int(counters.get("state.reason", 0)), is_saved=vm_id in saved_ids)
            mark = definition.mark
            off = VmStatus(
                vm_id,
                mark.vm_name,
                state,
                mark.is_managed,
                vcpu_count=definition.vcpu_count,
                memory_mib=-(-definition.memory_kib // _KIB),  # rounded up: another tool's need not be whole MiB
                notes=definition.notes,
            )
            if vm_id not in runs:
                statuses.append(off)
                continue
            process = processes.get(vm_id)
            usage = ProcessUsage(0, 0) if process is None else read_usage(process)
            status = dataclasses.replace(
                off,
                memory_total_bytes=definition.memory_kib * _KIB,
                memory_used_bytes=usage.resident_bytes,
                cpu_time_ns=usage.cpu_time_ns,
                started_at_s=None if process is None else process.started_at_s,
            )
            statuses.append(status)
        return statuses

    def _definition(self, domain: Any) -> _Definition | None:
        """Return what a domain's definition says; None, if it vanished just now."""
        vm_id = domain.UUIDString()
        with self._lock:
            known, change_count = self._definitions.get(vm_id), self._change_count
        if known is not None:
            return known
        try:
            tree = domain_xml.parse(domain.XMLDesc(self._library.VIR_DOMAIN_XML_INACTIVE))
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN):
                return None
            raise
        definition = _Definition(
            read_mark(tree),
            read_notes(tree),
            vcpu_count=_vcpu_count(tree),
            memory_kib=int(tree.findtext("memory") or 0),  # libvirt always answers in KiB
        )
        with self._lock:
            if change_count == self._change_count:  # else what we read may be from before the change
                self._definitions[vm_id] = definition
        return definition

    def _find_processes(self, runs: Mapping[str, int]) -> dict[str, QemuProcess]:
        """Return each running VM's process.

        Args:
            runs: libvirt's number of the current run, by VM id.
        """
        with self._lock:
            known = {vm_id: entry for vm_id, entry in self._processes.items() if runs.get(vm_id) == entry[0]}
        unknown = runs.keys() - known.keys()
        if unknown:
            found = find_processes(unknown)
            known |= {vm_id: (runs[vm_id], process) for vm_id, process in found.items()}
            with self._lock:
                self._processes |= known
        return {vm_id: process for vm_id, (_, process) in known.items()}


def _vcpu_count(tree: Any) -> int:
    """Return how many vCPUs a definition begins with; it may have room for more."""
    vcpu = tree.find("vcpu")
    return 0 if vcpu is None else int(vcpu.get("current") or vcpu.text or 0)


def _state_of(counters: Mapping[str, Any]) -> int:
    return int(counters.get("state.state", DomainState.NOSTATE))


def _reported(records: Iterable[Record]) -> GuestMemory:
    """Return what the guests' balloon drivers have reported. Source of the names: virConnectGetAllDomainStats."""
    used_bytes = {}
    for domain, counters in records:
        available_kib = int(counters.get("balloon.available", 0))
        free_kib = int(counters.get("balloon.usable", counters.get("balloon.unused", -1)))
        if 0 <= free_kib < available_kib and int(counters.get("balloon.last-update", 0)) > 0:
            used_bytes[domain.UUIDString()] = (available_kib - free_kib) * _KIB
    return used_bytes
