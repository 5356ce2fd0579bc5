"""The VM record and the rules of its life.

`VmSpec`, the contract's message, is the document of what a VM should be: it is stored and passed as it is. Around it
stand the few fields that decisions need. Records are frozen; a change makes a new one with `dataclasses.replace`, and
the message inside is never modified in place.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain import errors
from controlplane.domain.guests import without_guest
from limiquantix.compute.v1.vm_pb2 import VM_ORIGIN_CONTROL_PLANE, CpuConfig, TemplateConfig, VMOrigin, VmSpec, VmStatus

DEFAULT_PROJECT_ID = "00000000-0000-0000-0000-000000000001"

PowerState = VmStatus.PowerState
"""The contract's enum of power states; values are plain ints in records."""

BYTES_PER_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM as the control plane knows it.

    `power_state` is what the host last reported (PROVISIONING until it first did), never what was wished.
    `reported_change_count` orders such reports: one with a smaller count than the stored one is old and dropped.
    `version` counts changes of the row; an update of a stale record is refused. `generation` numbers the operations on
    the VM and the processes that take them up; commands to its host carry it. `wanted_state` is RUNNING or STOPPED,
    what was asked for last, UNKNOWN if nothing was. `sightings` are other nodes that say they have this VM too, each
    with the power state it has there. `restart_count` counts restarts that nobody asked for since somebody last did.
    `is_protected` says that it runs on its node only while the host knows that it ends with the host's lease, see
    decision 23.
    """

    id: str
    name: str
    project_id: str
    spec: VmSpec
    node_id: str
    power_state: VmStatus.PowerState.ValueType
    created_at: datetime
    updated_at: datetime
    state_changed_at: datetime
    last_seen_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    folder_id: str = ""
    created_by: str = ""
    origin: VMOrigin.ValueType = VM_ORIGIN_CONTROL_PLANE
    is_managed: bool = True
    error_message: str = ""
    lost_reason: str = ""
    reported_change_count: int = 0
    generation: int = 1
    wanted_state: VmStatus.PowerState.ValueType = VmStatus.PowerState.UNKNOWN
    sightings: Mapping[str, VmStatus.PowerState.ValueType] = field(default_factory=dict)
    restart_count: int = 0
    details: VmStatus = field(default_factory=VmStatus)
    is_protected: bool = False
    version: int = 1

    @property
    def vcpu_count(self) -> int:
        """vCPUs this VM claims on its node, running or not; while a change waits, the larger number."""
        return max(vcpu_count(self.spec.cpu), self.details.running_vcpus)

    @property
    def linked_to(self) -> str:
        """Id of the template whose disks are behind this VM's own; "" for a VM that stands alone."""
        template = self.spec.template
        return template.source_template_id if template.clone_type == TemplateConfig.LINKED else ""

    @property
    def memory_bytes(self) -> int:
        """Memory this VM claims on its node, running or not; while a change waits, the larger amount."""
        return max(self.spec.memory.size_mib, self.details.running_memory_mib) * BYTES_PER_MIB


def vcpu_count(cpu: CpuConfig) -> int:
    """Count vCPUs: cores x sockets x threads, where 0 means 1."""
    return max(cpu.cores, 1) * max(cpu.sockets, 1) * max(cpu.threads_per_core, 1)


class PowerOperation(enum.Enum):
    """What a caller may ask of a VM's power; the value completes the sentence "cannot ... VM"."""

    START = "start"
    STOP = "stop"
    FORCE_STOP = "stop by force"
    REBOOT = "reboot"
    PAUSE = "pause"
    RESUME = "resume"
    SUSPEND = "suspend"
    DELETE = "delete"
    RESIZE = "change CPU or memory of"
    RECONFIGURE = "change devices of"
    ATTACH = "attach or change a device of"
    DETACH = "detach a device from"
    UPDATE = "change the machine of"
    CLONE = "clone"
    SNAPSHOT = "take a snapshot of"
    SNAPSHOT_MEMORY = "save the memory of"
    QUIESCE = "quiesce"
    REVERT = "revert"
    DELETE_SNAPSHOT = "delete a snapshot of"
    MIGRATE = "migrate"
    CONVERT = "make a template of, or an ordinary VM of,"


_OFF = frozenset({PowerState.STOPPED, PowerState.SUSPENDED, PowerState.CRASHED})
ALIVE_STATES = frozenset({PowerState.RUNNING, PowerState.PAUSED})
"""States with a guest in memory."""

ALLOWED_FROM: Mapping[PowerOperation, frozenset[int]] = {
    PowerOperation.START: _OFF,
    PowerOperation.STOP: ALIVE_STATES,
    PowerOperation.FORCE_STOP: ALIVE_STATES | {PowerState.SUSPENDED},
    PowerOperation.REBOOT: frozenset({PowerState.RUNNING}),
    PowerOperation.PAUSE: frozenset({PowerState.RUNNING}),
    PowerOperation.RESUME: frozenset({PowerState.PAUSED}),
    PowerOperation.SUSPEND: frozenset({PowerState.RUNNING}),
    PowerOperation.SNAPSHOT: ALIVE_STATES | {PowerState.STOPPED, PowerState.CRASHED},
    PowerOperation.SNAPSHOT_MEMORY: ALIVE_STATES,
    PowerOperation.QUIESCE: frozenset({PowerState.RUNNING}),
    PowerOperation.REVERT: ALIVE_STATES | _OFF,
    PowerOperation.DELETE_SNAPSHOT: ALIVE_STATES | _OFF,
    PowerOperation.DELETE: _OFF | {PowerState.LOST, PowerState.UNKNOWN},
    PowerOperation.RESIZE: ALIVE_STATES | {PowerState.STOPPED, PowerState.CRASHED},
    PowerOperation.UPDATE: ALIVE_STATES | {PowerState.STOPPED, PowerState.CRASHED},
    PowerOperation.RECONFIGURE: frozenset({PowerState.STOPPED, PowerState.CRASHED}),
    PowerOperation.ATTACH: ALIVE_STATES | {PowerState.STOPPED, PowerState.CRASHED},
    PowerOperation.DETACH: frozenset({PowerState.RUNNING, PowerState.STOPPED, PowerState.CRASHED}),
    PowerOperation.MIGRATE: ALIVE_STATES | {PowerState.STOPPED, PowerState.CRASHED},
    PowerOperation.CLONE: frozenset({PowerState.STOPPED, PowerState.CRASHED}),
    PowerOperation.CONVERT: frozenset({PowerState.STOPPED, PowerState.CRASHED}),
}
"""States each operation may begin in (behaviour of the documented system, section 2)."""

_FOR_TEMPLATES = frozenset({PowerOperation.DELETE, PowerOperation.CLONE, PowerOperation.CONVERT})
"""All that may be asked of a template; everything else could write to disks that others are built upon."""

_HINTS: Mapping[PowerOperation, str] = {
    PowerOperation.CLONE: "stop it first, since a guest that writes would leave a copy of no moment",
    PowerOperation.CONVERT: "stop it first",
    PowerOperation.MIGRATE: "start it, or stop it, first",
    PowerOperation.DELETE: "stop it first or set force",
    PowerOperation.RESIZE: "start it, or stop it, first",
    PowerOperation.UPDATE: "start it, or stop it, first",
    PowerOperation.RECONFIGURE: "stop it first",
    PowerOperation.ATTACH: "start it, or stop it, first",
    PowerOperation.DETACH: "resume it or stop it first: its guest has to let go of the device",
}


def require_state(vm: Vm, operation: PowerOperation) -> None:
    """Check that the operation may begin now.

    Raises:
        FailedPrecondition: names the state the VM is in and those it would have to be in, or says that it is a
            template.
    """
    if vm.spec.template.is_template and operation not in _FOR_TEMPLATES:
        raise errors.vm_is_template(vm.id, operation.value)
    allowed = ALLOWED_FROM[operation]
    if vm.power_state not in allowed:
        raise errors.vm_state_forbids(
            vm.id,
            operation.value,
            PowerState.Name(vm.power_state),
            sorted(PowerState.Name(state) for state in allowed),  # type: ignore[arg-type]
            _HINTS.get(operation, ""),
        )


def require_managed(vm: Vm) -> None:
    """Check that the VM is ours to change.

    Raises:
        FailedPrecondition: it was found on its host, and nobody took it over.
    """
    if not vm.is_managed:
        raise errors.vm_not_managed(vm.id)


_PENDING_FIELDS = ("pending_changes", "pending_reasons", "running_vcpus", "running_memory_mib")


def settled(vm: Vm) -> Vm:
    """Return the VM with no change waiting for its next start, as one that is off has it; see `domain.pending`."""
    if not any(getattr(vm.details, name) for name in _PENDING_FIELDS):
        return vm
    details = VmStatus()
    details.CopyFrom(vm.details)
    for name in _PENDING_FIELDS:
        details.ClearField(name)  # type: ignore[arg-type]
    return replace(vm, details=details)


def with_failover(vm: Vm) -> Vm:
    """Return the VM as one that is to be defined anew where it is before it starts."""
    details = VmStatus()
    details.CopyFrom(vm.details)
    details.failover_unfinished = True
    return replace(vm, details=details)


def without_failover(vm: Vm) -> Vm:
    """Return the VM as one that ran since it was moved away from a host that failed."""
    details = VmStatus()
    details.CopyFrom(vm.details)
    details.failover_unfinished = False
    return replace(vm, details=details)


def observed(vm: Vm, state: VmStatus.PowerState.ValueType, change_count: int, now: datetime) -> Vm:
    """Return the VM as its host reports it. The last error stays until an operation succeeds.

    What waited for the next start of one that is off waits no more: its host has the new definition. What a guest said
    of itself holds while it is in memory.
    """
    is_off = state in (PowerState.STOPPED, PowerState.CRASHED)
    seen = settled(vm) if is_off else vm
    if state in ALIVE_STATES and seen.details.failover_unfinished:
        seen = without_failover(seen)
    return replace(
        seen,
        details=seen.details if state in ALIVE_STATES else without_guest(seen.details),
        power_state=state,
        state_changed_at=now if state != vm.power_state else vm.state_changed_at,
        last_seen_at=now,
        reported_change_count=change_count,
        lost_reason="",
        updated_at=now if state != vm.power_state else vm.updated_at,
    )


def lost(vm: Vm, reason: str, now: datetime) -> Vm:
    """Return the VM as gone from its host without our doing."""
    return replace(
        vm,
        power_state=PowerState.LOST,
        lost_reason=reason,
        state_changed_at=now,
        updated_at=now,
        details=without_guest(vm.details),
    )


def without_node(vm: Vm) -> Vm:
    """Return the VM on no node: what its host last said of it, and how often it had then, is of no use any more."""
    return replace(vm, node_id="", sightings={}, reported_change_count=0, is_protected=False)
