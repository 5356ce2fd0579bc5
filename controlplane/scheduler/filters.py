"""Which nodes may take a VM, and why the others may not.

A filter is a function from a candidate and a request to None (it may) or a `Rejection`. Adding one is this function
with its words above it, one line in `FILTERS` and one test. `FILTERS` is in the order
in which reasons are told: first what the request itself asked for, then what keeps the node from taking any VM, then
what this node does not have, and capacity last, because free memory on a node that is down helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from controlplane.domain.node import Phase
from controlplane.domain.vm import BYTES_PER_MIB
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import Taint

_READY = Phase.READY
_HARD_EFFECTS = frozenset({Taint.NO_SCHEDULE, Taint.NO_EXECUTE})
_MAX_NAMED = 3
"""Names a message spells out; the rest are counted, since a policy may list a thousand."""


@dataclass(frozen=True, slots=True)
class Words:
    """A filter's stable name, and how a summary speaks of the nodes it refused.

    `one` and `many` follow their count, `found_format` has one `{}` for what they have: "2 lack memory (need 8192 MiB;
    free 4096/2048 MiB)".
    """

    name: str
    one: str
    many: str
    found_format: str = "{}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one node may not take a VM; `message` has the numbers of this node.

    For the summary: `wanted` is what the request asked for, the same for every node; `found` is what the node has
    instead, where numbers are listed largest first, texts alphabetically, and None not at all.
    """

    words: Words
    message: str
    wanted: str = ""
    found: int | str | None = None

    @property
    def filter(self) -> str:
        """Stable name of the filter that refused."""
        return self.words.name


Check = Callable[[Candidate, PlacementRequest], Rejection | None]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter and the requests it concerns; with others it is not run at all, which keeps a decision short."""

    check: Check
    concerns: Callable[[PlacementRequest], bool] = lambda _request: True


PINNED_NODE = Words("pinned node", "is not the node asked for", "are not the node asked for")


def pinned_node(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse every node but the one the caller chose."""
    if candidate.id == request.pinned_node_id:
        return None
    wanted = request.pinned_node_id
    return Rejection(PINNED_NODE, f"the VM was asked for on node {wanted}", f"need {wanted}")


REQUIRED_NODES = Words("required nodes", "is not a required node", "are not required nodes")


def required_nodes(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that the policy's list of required ones does not name by id or host name."""
    if candidate.id in request.required_nodes or candidate.hostname in request.required_nodes:
        return None
    names = _listed(request.required_nodes)
    return Rejection(REQUIRED_NODES, f"the VM may run only on {names}", f"need {names}")


EXCLUDED_NODES = Words("excluded nodes", "excluded by the policy", "excluded by the policy")


def excluded_nodes(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that the policy excludes by id or host name."""
    if candidate.id not in request.excluded_nodes and candidate.hostname not in request.excluded_nodes:
        return None
    return Rejection(EXCLUDED_NODES, "the VM's placement policy excludes this node")


PHASE = Words("phase", "not READY", "not READY")


def phase(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that are not READY."""
    if candidate.phase == _READY:
        return None
    name = Phase.Name(candidate.phase)
    return Rejection(PHASE, f"is {name}, must be READY", found=name)


COMPUTE_ROLE = Words("compute role", "lacks the compute role", "lack the compute role")


def compute_role(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not run VMs."""
    return None if candidate.is_compute else Rejection(COMPUTE_ROLE, "does not have the compute role")


SCHEDULABLE = Words("schedulable", "cordoned", "cordoned")


def schedulable(candidate: Candidate, _request: PlacementRequest) -> Rejection | None:
    """Refuse cordoned nodes."""
    return None if candidate.schedulable else Rejection(SCHEDULABLE, "is cordoned; enable the node first")


TAINTS = Words("taints", "tainted", "tainted")


def taints(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with a NO_SCHEDULE or NO_EXECUTE taint that the request does not tolerate."""
    if not candidate.taints:
        return None
    refusing = [taint for taint in candidate.taints if taint.effect in _HARD_EFFECTS and not request.tolerates(taint)]
    if not refusing:
        return None
    names = _listed({f"{taint.key}={taint.value}:{Taint.Effect.Name(taint.effect)}" for taint in refusing})
    return Rejection(TAINTS, f"has {names}, which the VM does not tolerate", found=names)


REQUIRED_LABELS = Words("required labels", "lacks labels", "lack labels", "have {}")


def required_labels(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes without all the labels that the policy requires."""
    labels = candidate.labels
    required = request.required_labels
    unmet = [key for key, value in required.items() if labels.get(key) != value]
    if not unmet:
        return None
    missing = _listed({f"{key}={required[key]}" for key in unmet})
    found = _listed({f"{key}={labels[key]}" if key in labels else f"no {key}" for key in unmet})
    wanted = _listed({f"{key}={value}" for key, value in required.items()})
    return Rejection(REQUIRED_LABELS, f"needs {missing} but has {found}", f"need {wanted}", found)


AFFINITY = Words("affinity VMs", "does not run its affinity VMs", "do not run its affinity VMs")


def affinity(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not run all the VMs this one must run beside."""
    nodes = request.affinity_nodes
    if len(nodes) == 1 and candidate.id in nodes:
        return None
    if not nodes:
        where = "on no node"
    elif len(nodes) == 1:
        where = f"on node {_listed(nodes)}"
    else:
        where = f"apart, on nodes {_listed(nodes)}"
    return Rejection(AFFINITY, f"the VMs it must run beside are {where}", f"they are {where}")


ANTI_AFFINITY = Words("anti-affinity VMs", "runs a VM it must not run beside", "run VMs it must not run beside")


def anti_affinity(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that run a VM this one must not run beside."""
    if candidate.id not in request.anti_affinity_nodes:
        return None
    return Rejection(ANTI_AFFINITY, "runs a VM that this one must not run beside")


STORAGE_POOLS = Words(
    "storage pools", "does not reach its storage pools", "do not reach its storage pools", "missing {}"
)


def storage_pools(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not reach the storage pool of every disk."""
    missing = request.storage_pool_ids - candidate.storage_pool_ids
    if not missing:
        return None
    names = _listed(missing)
    return Rejection(STORAGE_POOLS, f"does not reach storage pool {names}", found=names)


CPU = Words("cpu", "lacks CPU", "lack CPU", "free {}")


def cpu(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with fewer unclaimed vCPUs than the VM has."""
    free = candidate.capacity.vcpus - candidate.allocated.vcpus
    if request.vcpus <= free:
        return None
    free = max(free, 0)
    need = "1 vCPU" if request.vcpus == 1 else f"{request.vcpus} vCPUs"
    return Rejection(CPU, f"needs {need}, {free} of {candidate.capacity.vcpus} free", f"need {need}", free)


MEMORY = Words("memory", "lacks memory", "lack memory", "free {} MiB")


def memory(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with less unclaimed memory than the VM has."""
    free_bytes = candidate.capacity.memory_bytes - candidate.allocated.memory_bytes
    if request.memory_bytes <= free_bytes:
        return None
    # The need is rounded up and the rest down, so that a message never claims to lack what it says is free.
    need_mib = -(-request.memory_bytes // BYTES_PER_MIB)
    free_mib = max(free_bytes, 0) // BYTES_PER_MIB
    capacity_mib = candidate.capacity.memory_bytes // BYTES_PER_MIB
    message = f"needs {need_mib} MiB, {free_mib} of {capacity_mib} MiB free"
    return Rejection(MEMORY, message, f"need {need_mib} MiB", free_mib)


FILTERS: tuple[Filter, ...] = (
    Filter(pinned_node, lambda request: bool(request.pinned_node_id)),
    Filter(required_nodes, lambda request: bool(request.required_nodes)),
    Filter(excluded_nodes, lambda request: bool(request.excluded_nodes)),
    Filter(phase),
    Filter(compute_role),
    Filter(schedulable),
    Filter(taints),
    Filter(required_labels, lambda request: bool(request.required_labels)),
    Filter(affinity, lambda request: request.wants_company),
    Filter(anti_affinity, lambda request: bool(request.anti_affinity_nodes)),
    Filter(storage_pools, lambda request: bool(request.storage_pool_ids)),
    Filter(cpu),
    Filter(memory),
)
"""All filters, most telling reason first."""


def checks_for(request: PlacementRequest) -> tuple[Check, ...]:
    """The filters that concern a request, in their order."""
    return tuple(entry.check for entry in FILTERS if entry.concerns(request))


def fitting(
    candidates: Sequence[Candidate], request: PlacementRequest, checks: tuple[Check, ...]
) -> Sequence[Candidate]:
    """The candidates that every filter lets through, in their order."""
    remaining = candidates
    for check in checks:
        remaining = [candidate for candidate in remaining if check(candidate, request) is None]
    return remaining


def rejections_of(candidate: Candidate, request: PlacementRequest, checks: tuple[Check, ...]) -> tuple[Rejection, ...]:
    """Every reason why a node may not take the VM, most telling first; empty when it may."""
    found = (check(candidate, request) for check in checks)
    return tuple(rejection for rejection in found if rejection is not None)


def _listed(names: Collection[str]) -> str:
    """Join names in order, the first few spelled out."""
    ordered = sorted(names)
    text = ", ".join(ordered[:_MAX_NAMED])
    more_count = len(ordered) - _MAX_NAMED
    return f"{text} and {more_count} more" if more_count > 0 else text
