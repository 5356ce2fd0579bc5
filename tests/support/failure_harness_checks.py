"""What must be so when everything is over, whatever went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.event import Change, LoggedEvent
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import DepartedVm, Operation, OperationState
from controlplane.domain.vm import PowerState, Vm
from hypervisor import types as hv
from hypervisor.mock.store import MockVm
from limiquantix.errors import ApiError, Reason

RECORDED_STATES = {
    hv.PowerState.RUNNING: PowerState.RUNNING,
    hv.PowerState.STOPPED: PowerState.STOPPED,
    hv.PowerState.PAUSED: PowerState.PAUSED,
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
        wanted = sorted(disk.path.name for disk in domain.config.disks)
        if sorted(everything.images.get(vm_id, ())) != wanted:
            yield f"a domain's images are {everything.images.get(vm_id)}, not {wanted}"
    if departed.keys() - kept:
        yield "something is still noted as to be removed from the host"


def _states(everything: Everything) -> Iterator[str]:
    for vm_id, row in everything.rows.items():
        domain = everything.domains.get(vm_id)
        if domain is None:
            continue
        if RECORDED_STATES[domain.state] != row.power_state:
            yield f"the state is {PowerState.Name(row.power_state)}, on the host {domain.state.value}"
        size = (domain.config.cpu.vcpu_count, domain.config.memory_mib)
        if size != (row.vcpu_count, row.spec.memory.size_mib):
            yield f"the size is {row.vcpu_count} vCPUs, {row.spec.memory.size_mib} MiB; on the host {size}"


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
