"""Decide what a host's report of one VM means. Pure: records and a report in, a verdict out.

Hosts own the observed state, so a report is believed unless a newer one is stored. It is never believed of a VM that is
placed on another node: two hosts that claim one VM are a conflict for a person to see, and nothing that is overwritten
by whoever speaks last.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.daemons.node_spec import STATE_OF_REPORT
from controlplane.domain.event import Event, EventType, Severity, event_of_state
from controlplane.domain.guests import with_guest
from controlplane.domain.migration import Migration
from controlplane.domain.node import Capacity
from controlplane.domain.operation import DepartedVm
from controlplane.domain.pending import freed
from controlplane.domain.vm import ALIVE_STATES, DEFAULT_PROJECT_ID, PowerState, Vm, lost, observed
from limiquantix.compute.v1.node_service_pb2 import VMStatusReport
from limiquantix.compute.v1.vm_pb2 import (
    VM_ORIGIN_HOST_DISCOVERED,
    CpuConfig,
    GuestInfo,
    MemoryConfig,
    VmSpec,
    VmStatus,
)

LOST_REASON = "removed on its host outside the control plane"


class Finding(enum.StrEnum):
    """What a report turned out to be; also what a daemon is told."""

    UPDATED = "UPDATED"
    STALE = "STALE"
    LOST = "LOST"
    HALF_DELETED = "HALF_DELETED"
    KEPT = "KEPT"
    ABANDONED = "ABANDONED"
    MISPLACED = "MISPLACED"
    GONE_ELSEWHERE = "GONE_ELSEWHERE"
    DISCOVERED = "DISCOVERED"
    IGNORED = "IGNORED"
    LEFTOVER = "LEFTOVER"
    LEFT_BEHIND = "LEFT_BEHIND"
    """Of a VM that was started elsewhere because this host failed: only its definition, off."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a report.

    Attributes:
        vm: the record to write, None if there is nothing to write.
        event: what the log says of it.
        removes: whether the VM's row goes, with its claim.
        freed: what the VM no longer needs on its node, None if that is nothing.
        claimed: what it needs on its node from now on and did not before, None if that is nothing.
    """

    finding: Finding
    vm: Vm | None = None
    event: Event | None = None
    removes: bool = False
    freed: Capacity | None = None
    claimed: Capacity | None = None


def reported_state(report: VMStatusReport) -> VmStatus.PowerState.ValueType:
    """Say in our words which state a host reports."""
    return STATE_OF_REPORT.get(report.state, PowerState.UNKNOWN)


def judge_present(vm: Vm, node_id: str, report: VMStatusReport, now: datetime) -> Verdict:
    """Judge a VM that a host says it has."""
    state = reported_state(report)
    if not vm.node_id and vm.power_state == PowerState.LOST:
        return _found_again(vm, node_id, report, now)
    if vm.node_id != node_id:
        if is_left_behind(vm, state):
            return replace(_gone_elsewhere(vm, node_id, now), finding=Finding.LEFT_BEHIND)
        return _misplaced(vm, node_id, state, now)
    if report.state_change_count < vm.reported_change_count:
        return Verdict(Finding.STALE)
    told = with_guest_of(vm, report)
    if state == vm.power_state:
        return _guest_told(told, report, now) if told is not vm else Verdict(Finding.UPDATED)
    seen = observed(told, state, report.state_change_count, now)
    event, rest = event_of_state(vm.name, vm.power_state, state), freed(vm, seen)
    return Verdict(Finding.UPDATED, seen, event, freed=rest if rest.vcpus or rest.memory_bytes else None)


def with_guest_of(vm: Vm, report: VMStatusReport) -> Vm:
    """Return the VM with what its guest's agent told; the same object if there is nothing new."""
    if not report.HasField("guest") or reported_state(report) not in ALIVE_STATES:
        return vm
    guest = report.guest
    info = GuestInfo(
        os_name=guest.os_name,
        os_version=guest.os_version,
        kernel_version=guest.kernel_version,
        hostname=guest.hostname,
        agent_version=guest.agent_version,
        uptime_seconds=guest.uptime_seconds,
        last_heartbeat=Timestamp(seconds=guest.as_of_unix),
    )
    details = with_guest(vm.details, info, report.ip_addresses)
    return vm if details is vm.details else replace(vm, details=details)


def _guest_told(told: Vm, report: VMStatusReport, now: datetime) -> Verdict:
    addresses = ", ".join(told.details.ip_addresses)
    text = f"the guest of VM {told.name} has " + (f"the addresses {addresses}" if addresses else "no address")
    if not told.details.HasField("guest_info"):
        text = f"the guest of VM {told.name} has no agent any more"
    seen = replace(told, last_seen_at=now, reported_change_count=report.state_change_count)
    return Verdict(Finding.UPDATED, seen, Event(EventType.VM_GUEST_CHANGED, text))


def is_left_behind(vm: Vm, state: VmStatus.PowerState.ValueType) -> bool:
    """Whether what a host has of a VM that is placed elsewhere is harmless and to be released there. Pure."""
    was_failed_over = vm.is_managed and bool(vm.details.last_fence_id) and bool(vm.node_id)
    return was_failed_over and state in (PowerState.STOPPED, PowerState.CRASHED)


def judge_absent(vm: Vm, node_id: str, change_count: int, now: datetime, *, is_busy: bool) -> Verdict:
    """Judge a VM that a host says it does not have.

    Args:
        change_count: as of which count the host says so; 0 if it does not tell.
        is_busy: whether an operation on the VM is unfinished: then its outcome tells, and not this.
    """
    if vm.node_id != node_id:
        return _gone_elsewhere(vm, node_id, now)
    if change_count and vm.reported_change_count > change_count:
        return Verdict(Finding.STALE)
    if is_busy or vm.power_state == PowerState.LOST or vm.details.failover_unfinished:
        return Verdict(Finding.KEPT)
    if vm.power_state == PowerState.PROVISIONING:
        # Left by a program that did not record its operations yet: no host ever had it.
        return Verdict(Finding.ABANDONED, vm, Event(EventType.VM_DELETED, "its creation was abandoned"), removes=True)
    if not vm.is_managed:
        gone = Event(EventType.VM_DELETED, f"VM {vm.name}, which was only shown, is gone from its host")
        return Verdict(Finding.LOST, vm, gone, removes=True)
    missing = replace(lost(vm, LOST_REASON, now), reported_change_count=max(change_count, vm.reported_change_count))
    return Verdict(
        Finding.LOST, missing, Event(EventType.VM_LOST, f"VM {vm.name} was {LOST_REASON}", Severity.CRITICAL)
    )


def is_left_to_migration(vm: Vm, node_id: str, migration: Migration | None, *, is_alive: bool, is_busy: bool) -> bool:
    """Whether what a node says of a VM is no news, since a migration tells where the VM is, or settling it will.

    Args:
        migration: the VM's last one, None if nothing of it is left.
        is_alive: whether the node says that the VM is in memory there.
        is_busy: whether an operation on the VM is unfinished.
    """
    if migration is None or node_id not in migration.node_ids:
        return False
    if migration.is_settled:  # what is left at the other host is removed there, unless it is alive
        return node_id != vm.node_id and (is_busy or not is_alive)
    if node_id != vm.node_id:
        return True
    return not is_busy or vm.power_state in (PowerState.MIGRATING, PowerState.UNKNOWN)


def judge_unknown(departed: DepartedVm | None, *, was_ours: bool) -> Finding:
    """Judge a VM that a host has and the inventory does not.

    Args:
        was_ours: whether its deletion, or a creation of it that failed, is on record.
    """
    if departed is not None:
        return Finding.IGNORED if departed.is_kept else Finding.LEFTOVER
    return Finding.LEFTOVER if was_ours else Finding.DISCOVERED


def discovered(report: VMStatusReport, node_id: str, name: str, now: datetime) -> Vm:
    """Make the record of a VM that a host has and nobody knows: shown, but left alone until it is taken over."""
    state = reported_state(report)
    return Vm(
        id=report.id,
        name=name,
        project_id=DEFAULT_PROJECT_ID,
        spec=VmSpec(
            cpu=CpuConfig(cores=max(report.vcpu_count, 1)), memory=MemoryConfig(size_mib=max(report.memory_mib, 1))
        ),
        node_id=node_id,
        power_state=state,
        created_at=now,
        updated_at=now,
        state_changed_at=now,
        last_seen_at=now,
        origin=VM_ORIGIN_HOST_DISCOVERED,
        is_managed=False,
        reported_change_count=report.state_change_count,
        generation=max(report.generation, 1),
    )


def _found_again(vm: Vm, node_id: str, report: VMStatusReport, now: datetime) -> Verdict:
    """Take a VM back that was lost with its node, where its host came back as another one."""
    seen = observed(replace(vm, node_id=node_id), reported_state(report), report.state_change_count, now)
    event = Event(EventType.VM_DISCOVERED, f"VM {vm.name}, which was lost with its node, was found on node {node_id}")
    return Verdict(Finding.UPDATED, seen, event, claimed=Capacity(seen.vcpu_count, seen.memory_bytes))


def _misplaced(vm: Vm, node_id: str, state: VmStatus.PowerState.ValueType, now: datetime) -> Verdict:
    if vm.sightings.get(node_id) == state:
        return Verdict(Finding.MISPLACED)
    runs_twice = state in ALIVE_STATES
    text = (
        f"VM {vm.name} belongs to node {vm.node_id}, where it is {PowerState.Name(vm.power_state)}, but node {node_id} "
        f"has it too, {PowerState.Name(state)}; nothing is done about it: remove it where it is wrong"
    )
    facts = {"node_id": vm.node_id, "other_node_id": node_id, "other_state": PowerState.Name(state)}
    event = Event(EventType.VM_CONFLICT, text, Severity.CRITICAL if runs_twice else Severity.WARNING, metadata=facts)
    return Verdict(Finding.MISPLACED, _with_sightings(vm, {**vm.sightings, node_id: state}, now), event)


def _gone_elsewhere(vm: Vm, node_id: str, now: datetime) -> Verdict:
    if node_id not in vm.sightings:
        return Verdict(Finding.GONE_ELSEWHERE)
    rest = {other: state for other, state in vm.sightings.items() if other != node_id}
    event = Event(EventType.VM_CONFLICT_ENDED, f"node {node_id} no longer has VM {vm.name}, which belongs elsewhere")
    return Verdict(Finding.GONE_ELSEWHERE, _with_sightings(vm, rest, now), event)


def _with_sightings(vm: Vm, sightings: Mapping[str, VmStatus.PowerState.ValueType], now: datetime) -> Vm:
    return replace(vm, sightings=sightings, updated_at=now)
