"""Say of every node what a decision thought of it, and what would have to change for a VM to fit.

What would help is not guessed from reasons: each change is made, and the decision made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from controlplane.domain.node import Phase
from controlplane.domain.vm import BYTES_PER_MIB
from controlplane.scheduler.decide import decide
from controlplane.scheduler.filters import checks_for, rejections_of
from controlplane.scheduler.filters_host import MACHINE
from controlplane.scheduler.filters_node import PHASE, SCHEDULABLE, TAINTS, rule_text
from controlplane.scheduler.filters_room import CPU, MEMORY
from controlplane.scheduler.outcomes import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.rejection import Rejection
from controlplane.scheduler.scores import ScorePart, parts_of, scorers_for
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, Toleration
from controlplane.scheduler.view import ClusterView
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmAffinityRule

MAX_SUGGESTIONS = 5
_MAX_TRIED_NODES = 3
"""Nodes of one sort of obstacle that are tried: more of them would all be told the same way."""
_NODE_COST, _TAINT_COST, _RULE_COST, _MACHINE_COST = 1.0, 1.5, 2.0, 3.0
"""How large a change is, told smallest first. That of a smaller size is the part that is given up, below 1."""


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """What is thought of one node: rejections, or if there are none the points and what they are for."""

    node_id: str
    hostname: str
    score: float
    parts: tuple[ScorePart, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and how it came about: nodes that may take the VM, best first, then the others by host name."""

    outcome: Placement | Unplaced
    nodes: tuple[NodeVerdict, ...]
    would_fit_if: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Change:
    """Something that might help: what it is called, how large it is, and the decision with it made."""

    text: str
    cost: float
    helps: Callable[[], bool]


def explain(view: ClusterView, request: PlacementRequest, config: SchedulerConfig | None = None) -> Explanation:
    """Explain where a VM would go. One that the view has somewhere is treated as if it were nowhere."""
    chosen = config or SchedulerConfig()
    with _aside(view, request.vm_id):
        outcome = decide(view, request, chosen)
        seen = outcome.request
        checks, scorers = checks_for(seen), scorers_for(chosen.strategy, seen)
        verdicts = []
        for candidate in view.candidates:
            rejections = rejections_of(candidate, seen, checks)
            parts = () if rejections else parts_of(candidate, seen, scorers)
            score = sum(part.points for part in parts)
            verdicts.append(NodeVerdict(candidate.id, candidate.hostname, score, parts, rejections))
        able = sorted((each for each in verdicts if not each.rejections), key=lambda each: (-each.score, each.node_id))
        unable = sorted((each for each in verdicts if each.rejections), key=lambda each: (each.hostname, each.node_id))
        helpful = () if isinstance(outcome, Placement) else _would_fit_if(view, request, unable, chosen)
    return Explanation(outcome, (*able, *unable), helpful)


@contextmanager
def _aside(view: ClusterView, vm_id: str) -> Iterator[None]:
    """Take a VM out of the view for as long as the context lasts."""
    vm = view.unplace(vm_id) if vm_id and view.vm(vm_id) is not None else None
    try:
        yield
    finally:
        if vm is not None:
            view.restore(vm)


def _would_fit_if(
    view: ClusterView, request: PlacementRequest, refused: Sequence[NodeVerdict], config: SchedulerConfig
) -> tuple[str, ...]:
    """Find single changes with which the VM fits, smallest first."""

    def fits(changed: PlacementRequest) -> bool:
        return isinstance(decide(view, changed, config), Placement)

    changes = [
        *_smaller(view, request, refused, fits),
        *_other_nodes(view, request, refused, config),
        *_tolerating(view, request, refused, fits),
        *_without_rules(request, fits),
        *_other_machine(request, refused, fits),
    ]
    helpful: list[str] = []
    for change in sorted(changes, key=lambda change: (change.cost, change.text)):
        if change.text not in helpful and change.helps():
            helpful.append(change.text)
        if len(helpful) == MAX_SUGGESTIONS:
            break
    return tuple(helpful)


_Fits = Callable[[PlacementRequest], bool]


def _smaller(
    view: ClusterView, request: PlacementRequest, refused: Sequence[NodeVerdict], fits: _Fits
) -> Iterator[_Change]:
    """Offer the size for which some node has room that only lacks room."""
    sizes: set[tuple[int, int]] = set()
    for verdict in refused:
        candidate = view.candidate(verdict.node_id)
        if candidate is None or any(rejection.words not in (CPU, MEMORY) for rejection in verdict.rejections):
            continue
        free_vcpus = candidate.capacity.vcpus - candidate.allocated.vcpus
        free_mib = (candidate.capacity.memory_bytes - candidate.allocated.memory_bytes) // BYTES_PER_MIB
        sizes.add((min(request.vcpus, free_vcpus), min(request.memory_bytes, free_mib * BYTES_PER_MIB)))
    for vcpus, memory_bytes in _largest(sizes):
        if vcpus < min(request.vcpus, 1) or memory_bytes < min(request.memory_bytes, 1):
            continue
        texts, given_up = [], 0.0
        if vcpus < request.vcpus:
            fewer = request.vcpus - vcpus
            texts.append(f"{fewer} fewer vCPU{'' if fewer == 1 else 's'}")
            given_up += (request.vcpus - vcpus) / request.vcpus
        if memory_bytes < request.memory_bytes:
            texts.append(f"{-(-(request.memory_bytes - memory_bytes) // BYTES_PER_MIB)} MiB less memory")
            given_up += (request.memory_bytes - memory_bytes) / request.memory_bytes
        smaller = replace(request, vcpus=vcpus, memory_bytes=memory_bytes)
        yield _Change("with " + " and ".join(texts), given_up / 2, partial(fits, smaller))


def _largest(sizes: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Leave out sizes that are no larger than another in anything: with that one less is given up."""
    most_memory = -1
    for vcpus, memory_bytes in sorted(sizes, reverse=True):
        if memory_bytes > most_memory:
            most_memory = memory_bytes
            yield vcpus, memory_bytes


def _other_nodes(
    view: ClusterView, request: PlacementRequest, refused: Sequence[NodeVerdict], config: SchedulerConfig
) -> Iterator[_Change]:
    """Offer nodes that are only cordoned or not READY."""

    def fits_on(changed: Candidate) -> bool:
        before = view.candidate(changed.id)
        assert before is not None  # noqa: S101 - it was refused, so it is there
        view.upsert_node(changed)
        try:
            return isinstance(decide(view, request, config), Placement)
        finally:
            view.upsert_node(before)

    tried = 0
    for verdict in refused:
        words = {rejection.words for rejection in verdict.rejections}
        candidate = view.candidate(verdict.node_id)
        if candidate is None or not words <= {SCHEDULABLE, PHASE} or tried >= _MAX_TRIED_NODES:
            continue
        tried += 1
        wishes = []
        if SCHEDULABLE in words:
            wishes.append("enabled")
        if PHASE in words:
            wishes.append(f"READY (it is {Phase.Name(candidate.phase)})")
        willing = replace(candidate, schedulable=True, phase=Phase.READY)
        text = f"if node {verdict.hostname} were {' and '.join(wishes)}"
        yield _Change(text, _NODE_COST * len(wishes), partial(fits_on, willing))


def _tolerating(
    view: ClusterView, request: PlacementRequest, refused: Sequence[NodeVerdict], fits: _Fits
) -> Iterator[_Change]:
    """Offer to tolerate the taints of nodes that only have these against them."""
    seen: set[tuple[tuple[str, str, int], ...]] = set()
    for verdict in refused:
        candidate = view.candidate(verdict.node_id)
        if candidate is None or any(rejection.words is not TAINTS for rejection in verdict.rejections):
            continue
        hard = [
            taint
            for taint in candidate.taints
            if taint.effect != Taint.PREFER_NO_SCHEDULE and not request.tolerates(taint)
        ]
        key = tuple(sorted((taint.key, taint.value, taint.effect) for taint in hard))
        if key in seen or len(seen) >= _MAX_TRIED_NODES:
            continue
        seen.add(key)
        tolerations = tuple(Toleration(*each) for each in key)
        names = " and ".join(f"{taint}={value}:{Taint.Effect.Name(effect)}" for taint, value, effect in key)
        tolerant = replace(request, tolerations=(*request.tolerations, *tolerations))
        cost = _TAINT_COST * len(key)
        yield _Change(f"if the VM tolerated {names}", cost, partial(fits, tolerant))


def _without_rules(request: PlacementRequest, fits: _Fits) -> Iterator[_Change]:
    """Offer to do without each rule of the VM that must hold."""
    if request.pinned_node_id:
        free = replace(request, pinned_node_id="")
        yield _Change(f"on another node than {request.pinned_node_id}", _NODE_COST, partial(fits, free))
    for text, policy in _lesser_policies(request.policy):
        lenient = replace(request, policy=policy)
        if not policy.affinity_vms:
            lenient = replace(lenient, affinity_nodes=frozenset())
        if not policy.anti_affinity_vms:
            lenient = replace(lenient, anti_affinity_nodes=frozenset())
        yield _Change(f"without {text}", _RULE_COST, partial(fits, lenient))


def _lesser_policies(policy: PlacementPolicy) -> Iterator[tuple[str, PlacementPolicy]]:
    """Take one thing out of a policy at a time."""
    for name, text in (
        ("required_nodes", "the list of required nodes"),
        ("excluded_nodes", "the list of excluded nodes"),
        ("affinity_vms", "the list of VMs it must run beside"),
        ("anti_affinity_vms", "the list of VMs it must not run beside"),
    ):
        if getattr(policy, name):
            lesser = _copy(policy)
            lesser.ClearField(name)  # type: ignore[arg-type]
            yield text, lesser
    for key, value in sorted(policy.required_labels.items()):
        lesser = _copy(policy)
        del lesser.required_labels[key]
        yield f"the required label {key}={value}", lesser
    for number, vm_rule in enumerate(policy.vm_rules):
        if not vm_rule.weight:
            lesser = _copy(policy)
            del lesser.vm_rules[number]
            yield f"rule vm_rules[{number}] ({VmAffinityRule.Kind.Name(vm_rule.kind)})", lesser
    for number, node_rule in enumerate(policy.node_rules):
        if not node_rule.weight:
            lesser = _copy(policy)
            del lesser.node_rules[number]
            yield f"rule node_rules[{number}] ({rule_text(node_rule)})", lesser
    for number, spread_rule in enumerate(policy.spread_rules):
        if not spread_rule.weight:
            lesser = _copy(policy)
            del lesser.spread_rules[number]
            yield f"rule spread_rules[{number}] (over {spread_rule.topology_key or 'nodes'})", lesser


def _other_machine(request: PlacementRequest, refused: Sequence[NodeVerdict], fits: _Fits) -> Iterator[_Change]:
    """Offer to do without what hosts cannot build."""
    if not any(rejection.words is MACHINE for verdict in refused for rejection in verdict.rejections):
        return
    needs = request.needs
    if needs.tpm_version:
        plain = replace(request, needs=replace(needs, tpm_version=""))
        yield _Change("without a TPM", _MACHINE_COST, partial(fits, plain))
    if needs.needs_secure_boot:
        insecure = replace(request, needs=replace(needs, needs_secure_boot=False))
        yield _Change("without secure boot", _MACHINE_COST, partial(fits, insecure))


def _copy(policy: PlacementPolicy) -> PlacementPolicy:
    copied = PlacementPolicy()
    copied.CopyFrom(policy)
    return copied
