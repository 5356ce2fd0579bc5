"""What the domains of this host are now: few bulk calls, whatever their number. Runs in worker threads.

Two facts are remembered between calls, each with what makes it safe. Names and marks, which are in the definitions, are
dropped at any event that tells of a changed definition. The start time of a process is kept together with libvirt's
number of that run, which a later run does not share.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import DomainMark, read_mark
from hypervisor.libvirt.domain_state import DomainState, Lifecycle, RawEvent, RawKind, is_active, power_state
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.process_start import find_start_times
from hypervisor.types import VmStatus

_KIB: Final = 1024


class Inventory:
    """Reads statuses; may be used by several threads at once."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._groups = (
            library.VIR_DOMAIN_STATS_STATE
            | library.VIR_DOMAIN_STATS_CPU_TOTAL
            | library.VIR_DOMAIN_STATS_BALLOON
            | library.VIR_DOMAIN_STATS_VCPU
        )
        self._lock = threading.Lock()
        self._marks: dict[str, DomainMark] = {}
        self._change_count = 0
        self._starts: dict[str, tuple[int, float]] = {}

    def read_all(self, connection: Any) -> list[VmStatus]:
        """Return every domain's status.

        NOWAIT: of a domain that another call works on, libvirt answers what it knows without asking QEMU.
        """
        records = connection.getAllDomainStats(self._groups, self._library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
        saved_ids: set[str] = set()
        if any(_state_of(counters) == DomainState.SHUTOFF for _, counters in records):
            saved = connection.listAllDomains(self._library.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            saved_ids = {domain.UUIDString() for domain in saved}
        return self._statuses(records, saved_ids)

    def read_one(self, domain: Any) -> VmStatus:
        """Return one domain's status."""
        # A handle has no link back in Python's binding but this one.
        connection = domain.connect()
        records = connection.domainListGetStats(
            [domain], self._groups, self._library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        )
        is_off = any(_state_of(counters) == DomainState.SHUTOFF for _, counters in records)
        saved_ids = {domain.UUIDString()} if is_off and domain.hasManagedSaveImage() else set()
        statuses = self._statuses(records, saved_ids)
        if not statuses:
            domain.state()  # raises that the domain does not exist, since it vanished after it was looked up
        return statuses[0]

    def forget(self, event: RawEvent) -> None:
        """Drop what an event makes stale."""
        changes = (Lifecycle.DEFINED, Lifecycle.UNDEFINED)
        if event.kind is RawKind.METADATA or (event.kind is RawKind.LIFECYCLE and event.number in changes):
            self.forget_vm(event.vm_id)

    def forget_vm(self, vm_id: str) -> None:
        """Drop what is known of a VM's definition."""
        with self._lock:
            self._marks.pop(vm_id, None)
            self._starts.pop(vm_id, None)
            self._change_count += 1

    def clear(self) -> None:
        """Drop everything: events were missed."""
        with self._lock:
            self._marks.clear()
            self._starts.clear()
            self._change_count += 1

    def _statuses(self, records: Iterable[tuple[Any, Mapping[str, Any]]], saved_ids: Collection[str]) -> list[VmStatus]:
        found = [(domain, counters, self._mark(domain)) for domain, counters in records]
        present = [(domain, counters, mark) for domain, counters, mark in found if mark is not None]
        runs = {domain.UUIDString(): domain.ID() for domain, counters, _ in present if is_active(_state_of(counters))}
        starts = self._start_times(runs)
        statuses = []
        for domain, counters, mark in present:
            vm_id = domain.UUIDString()
            status = _status(vm_id, mark, counters, is_saved=vm_id in saved_ids, started_at_s=starts.get(vm_id))
            statuses.append(status)
        return statuses

    def _mark(self, domain: Any) -> DomainMark | None:
        """Return a domain's mark; None, if it vanished just now."""
        vm_id = domain.UUIDString()
        with self._lock:
            known, change_count = self._marks.get(vm_id), self._change_count
        if known is not None:
            return known
        try:
            mark = read_mark(domain_xml.parse(domain.XMLDesc(self._library.VIR_DOMAIN_XML_INACTIVE)))
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN):
                return None
            raise
        with self._lock:
            if change_count == self._change_count:  # else what we read may be from before the change
                self._marks[vm_id] = mark
        return mark

    def _start_times(self, runs: Mapping[str, int]) -> dict[str, float]:
        """Return when each running VM's process started.

        Args:
            runs: libvirt's number of the current run, by VM id.
        """
        with self._lock:
            known = {vm_id: start for vm_id, start in self._starts.items() if runs.get(vm_id) == start[0]}
        unknown = runs.keys() - known.keys()
        if unknown:
            found = find_start_times(unknown)
            known |= {vm_id: (runs[vm_id], started_at_s) for vm_id, started_at_s in found.items()}
            with self._lock:
                self._starts |= known
        return {vm_id: started_at_s for vm_id, (_, started_at_s) in known.items()}


def _state_of(counters: Mapping[str, Any]) -> int:
    return int(counters.get("state.state", DomainState.NOSTATE))


def _status(
    vm_id: str, mark: DomainMark, counters: Mapping[str, Any], *, is_saved: bool, started_at_s: float | None
) -> VmStatus:
    """Make a status of libvirt's counters. Source of their names: virConnectGetAllDomainStats."""
    number = _state_of(counters)
    state = power_state(number, int(counters.get("state.reason", 0)), is_saved=is_saved)
    vcpu_count = int(counters.get("vcpu.current", counters.get("vcpu.maximum", 0)))
    if not is_active(number):
        return VmStatus(vm_id, mark.vm_name, state, mark.is_managed, vcpu_count=vcpu_count)
    return VmStatus(
        vm_id,
        mark.vm_name,
        state,
        mark.is_managed,
        vcpu_count=vcpu_count,
        memory_total_bytes=int(counters.get("balloon.maximum", 0)) * _KIB,
        memory_used_bytes=_memory_used_kib(counters) * _KIB,
        cpu_time_ns=int(counters.get("cpu.time", 0)),
        started_at_s=started_at_s,
    )


def _memory_used_kib(counters: Mapping[str, Any]) -> int:
    """What the guest says it uses; until its balloon driver has reported, what its process holds on the host."""
    available = int(counters.get("balloon.available", 0))
    free = int(counters.get("balloon.usable", counters.get("balloon.unused", -1)))
    if available > 0 and 0 <= free <= available and int(counters.get("balloon.last-update", 0)) > 0:
        return available - free
    return int(counters.get("balloon.rss", 0))
