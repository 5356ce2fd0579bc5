"""What must be so when everything is over, whatever went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain import pending
from controlplane.domain.event import Change, EventType, LoggedEvent
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import DepartedVm, Operation, OperationState
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm
from hypervisor import types as hv
from hypervisor.mock.store import MockVm
from limiquantix.errors import ApiError, Reason
from tests.support.failure_harness_device_checks import differences

RECORDED_STATES = {
    hv.PowerState.RUNNING: PowerState.RUNNING,
    hv.PowerState.STOPPED: PowerState.STOPPED,
    hv.PowerState.PAUSED: PowerState.PAUSED,
    hv.PowerState.SUSPENDED: PowerState.SUSPENDED,
    hv.PowerState.CRASHED: PowerState.CRASHED,
}


@dataclass(frozen=True)
class End:
    """What is there of the one VM that the case is about.

    `answer` is what its caller heard in the end, None if that was not an error. `intrusion` is what somebody else asked
    for meanwhile.
    """

    row: Vm | None
    domain: MockVm | None
    has_images: bool
    departed: DepartedVm | None
    operation: Operation | None
    answer: ApiError | None
    intrusion: Operation | None = None


@dataclass(frozen=True)
class Everything:
    """What is there of all of them. `images` are the VM ids that have a directory on the host."""

    nodes: Sequence[Node]
    rows: Mapping[str, Vm]
    domains: Mapping[str, MockVm]
    images: Mapping[str, Sequence[str]]
    departed: Mapping[str, DepartedVm]
    operations: Sequence[Operation]
    events: Sequence[LoggedEvent]
    asks_for_full_sync: bool


def faults_of(everything: Everything) -> Iterator[str]:
    """Name whatever is there without what belongs to it, or twice."""
    yield from _pairs(everything)
    yield from _states(everything)
    for node in everything.nodes:
        here = [vm for vm in everything.rows.values() if vm.node_id == node.id]
        needed = Capacity(sum(vm.vcpu_count for vm in here), sum(vm.memory_bytes for vm in here))
        if node.allocated != needed:
            yield f"claims are {node.allocated}, the VMs' sizes {needed}"
    for operation in everything.operations:
        if not operation.has_ended:
            yield f"{operation.kind} did not end: {OperationState.Name(operation.state)}, {operation.waiting_for!r}"
        if operation.fault is not None and operation.fault.reason == Reason.INTERNAL:
            yield f"{operation.kind} met a defect: {operation.fault.message}"
    yield from _snapshots(everything)
    yield from _events(everything)
    if everything.asks_for_full_sync:
        yield "the host's digest is not that of what is recorded"


def _pairs(everything: Everything) -> Iterator[str]:
    rows, domains, departed = everything.rows, everything.domains, everything.departed
    kept = {vm_id for vm_id, each in departed.items() if each.is_kept}
    if domains.keys() - rows.keys() - kept:
        yield "a domain has no row"
    for vm_id in rows.keys() - domains.keys():
        yield f"a row has no domain: {PowerState.Name(rows[vm_id].power_state)}"
    for vm_id in everything.images.keys() - domains.keys():
        yield f"images have no domain: {len(everything.images[vm_id])} of them"
    for vm_id, domain in domains.items():
        wanted = sorted([disk.path.name for disk in domain.config.disks] + _beside_disks(rows.get(vm_id), domain))
        wanted = sorted(wanted + _detached_images(everything, vm_id, wanted))
        if sorted(everything.images.get(vm_id, ())) != wanted:
            yield f"a domain's images are {everything.images.get(vm_id)}, not {wanted}"
    if departed.keys() - kept:
        yield "something is still noted as to be removed from the host"


def _detached_images(everything: Everything, vm_id: str, wanted: Sequence[str]) -> list[str]:
    """Images that stay, of disks that were detached."""
    detached = {
        logged.event.metadata["device_id"]
        for logged in everything.events
        if logged.event.type == EventType.VM_DISK_DETACHED
    }
    images = everything.images.get(vm_id, ())
    return [name for name in images if name not in wanted and name.partition(".")[0] in detached]


def _beside_disks(row: Vm | None, domain: MockVm) -> list[str]:
    """What else lies with a VM's images: the mark of a template, and what the guest is told at its first boot."""
    medium = domain.config.first_boot
    names = [] if medium is None else [medium.path.name]
    return [*names, ".template"] if row is not None and row.spec.template.is_template else names


def _states(everything: Everything) -> Iterator[str]:
    for vm_id, row in everything.rows.items():
        domain = everything.domains.get(vm_id)
        if domain is None:
            continue
        if RECORDED_STATES[domain.state] != row.power_state:
            yield f"the state is {PowerState.Name(row.power_state)}, on the host {domain.state.value}"
        size = (domain.config.cpu.vcpu_count, domain.config.memory_mib)
        asked = pending.size_of_spec(row.spec)
        if size != (asked.vcpu_count, asked.memory_mib):
            yield f"the size is {asked}; on the host {size}"
        yield from _running_size(row, domain)
        if row.is_managed:
            yield from differences(row, domain.config)
        if row.details.devices_in_doubt:
            yield "devices are in doubt"


def _running_size(row: Vm, domain: MockVm) -> Iterator[str]:
    """What runs needs no more room than is kept for it, and what waits is shown."""
    if row.power_state not in ALIVE_STATES:
        if row.details.pending_changes or row.details.running_vcpus or row.details.running_memory_mib:
            yield "changes wait for the next start of a VM that is off"
        return
    live = domain.live_config
    if live.cpu.vcpu_count > row.vcpu_count or live.memory_mib * 2**20 > row.memory_bytes:
        yield f"{live.cpu.vcpu_count} vCPUs and {live.memory_mib} MiB run, which is more than is claimed"
    if (live.cpu, live.memory_mib) != (domain.config.cpu, domain.config.memory_mib) and not row.details.pending_changes:
        yield "a change waits for the next start, and nothing shows it"


def _snapshots(everything: Everything) -> Iterator[str]:
    for vm_id, row in everything.rows.items():
        recorded = {each.id for each in row.details.snapshots.snapshots}
        domain = everything.domains.get(vm_id)
        there = {each.snapshot_id for each in domain.snapshots} if domain is not None else recorded
        if recorded != there:
            yield f"{len(recorded)} snapshots are recorded, the host has {len(there)}"
        if domain is not None and domain.is_frozen:
            yield "the guest is frozen"


def _events(everything: Everything) -> Iterator[str]:
    of_vms = [event for event in everything.events if event.resource_type == "vm"]
    counts = Counter((event.resource_id, event.change) for event in of_vms)
    for vm_id in {event.resource_id for event in of_vms} | everything.rows.keys():
        if counts[vm_id, Change.ADDED] != 1:
            yield f"a VM was created {counts[vm_id, Change.ADDED]} times in the log"
        if counts[vm_id, Change.DELETED] != (vm_id not in everything.rows):
            yield f"a VM was deleted {counts[vm_id, Change.DELETED]} times in the log"
    versions = [(event.resource_id, event.resource_version) for event in of_vms if event.change != Change.NONE]
    if len(versions) != len(set(versions)):
        yield "two events of a VM have the same version"
