"""The small language of scenario files: a cluster and what is asked of it, `----`, and the plan as text.

Lines before the dashes; words are `key=value` or flags, `#` begins a comment:

    strategy pack
    ranked 2
    node n1 cpu=8 mem=8192 used=2/1024 phase=OFFLINE cordoned storage-only taint=gpu=1:NO_SCHEDULE label=zone=a pool=p
    vm web cpu=2 mem=1024 require=n1 exclude=n2 prefer=n3 label=zone=a beside=db apart=db pool=p pin=n1 tolerate=gpu
    vm-on db n1

Memory is in MiB, `used` is vCPUs/MiB. A node without words has 8 vCPUs and 8192 MiB, all free, and is willing.
Words may be repeated where several make sense. `vm-on` says where a VM that is already placed runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.node import Phase
from controlplane.scheduler.plan import Placement, RankedNode, SchedulerConfig, Unplaced, plan
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, Toleration
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint

Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A parsed scenario file."""

    candidates: tuple[Candidate, ...]
    requests: tuple[PlacementRequest, ...]
    config: SchedulerConfig
    expected: str


def parse(text: str) -> Scenario:
    """Read a scenario file.

    Raises:
        ValueError: a line or word is not of the language; a typing error must not weaken a test.
    """
    body, _, expected = text.partition("\n----\n")
    strategy, ranked_count = Strategy.SPREAD, 8
    candidates: list[Candidate] = []
    vm_lines: list[tuple[str, Words]] = []
    node_of_vm: dict[str, str] = {}
    for line in body.splitlines():
        match line.partition("#")[0].split():
            case []:
                continue
            case ["strategy", name]:
                strategy = Strategy(name)
            case ["ranked", count]:
                ranked_count = int(count)
            case ["node", node_id, *words]:
                candidates.append(_candidate(node_id, _words(words)))
            case ["vm", vm_id, *words]:
                vm_lines.append((vm_id, _words(words)))
            case ["vm-on", vm_id, node_id]:
                node_of_vm[vm_id] = node_id
            case _:
                raise ValueError(f"not a scenario line: {line!r}")
    requests = tuple(_request(vm_id, words, node_of_vm) for vm_id, words in vm_lines)
    return Scenario(tuple(candidates), requests, SchedulerConfig(strategy, ranked_count), expected)


def run(scenario: Scenario) -> str:
    """Plan the scenario and write the outcome down."""
    outcomes = plan(scenario.candidates, scenario.requests, scenario.config).outcomes
    return "".join(_outcome_text(outcome) for outcome in outcomes)


def _words(words: Sequence[str]) -> Words:
    found: dict[str, list[str]] = defaultdict(list)
    for word in words:
        key, _, value = word.partition("=")
        found[key].append(value)
    return found


def _only_known(words: Words, known: set[str]) -> None:
    if unknown := words.keys() - known:
        raise ValueError(f"not scenario words: {', '.join(sorted(unknown))}")


def _pairs(values: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in values)}


def _candidate(node_id: str, words: Words) -> Candidate:
    _only_known(words, {"cpu", "mem", "used", "phase", "cordoned", "storage-only", "taint", "label", "pool"})
    used_vcpus, _, used_memory_mib = words.get("used", ["0/0"])[0].partition("/")
    return a_candidate(
        node_id,
        vcpus=int(words.get("cpu", ["8"])[0]),
        memory_mib=int(words.get("mem", ["8192"])[0]),
        used_vcpus=int(used_vcpus),
        used_memory_mib=int(used_memory_mib),
        phase=Phase.Value(words.get("phase", ["READY"])[0]),
        schedulable="cordoned" not in words,
        is_compute="storage-only" not in words,
        taints=[a_taint(text) for text in words.get("taint", [])],
        labels=_pairs(words.get("label", [])),
        pools=words.get("pool", []),
    )


def _request(vm_id: str, words: Words, node_of_vm: Mapping[str, str]) -> PlacementRequest:
    _only_known(
        words,
        {"cpu", "mem", "require", "exclude", "prefer", "label", "beside", "apart", "pool", "pin", "tolerate"},
    )
    beside, apart = words.get("beside", []), words.get("apart", [])
    return PlacementRequest(
        vcpus=int(words["cpu"][0]),
        memory_bytes=int(words["mem"][0]) * MIB,
        policy=PlacementPolicy(
            required_nodes=words.get("require", []),
            excluded_nodes=words.get("exclude", []),
            preferred_nodes=words.get("prefer", []),
            required_labels=_pairs(words.get("label", [])),
            affinity_vms=beside,
            anti_affinity_vms=apart,
        ),
        storage_pool_ids=frozenset(words.get("pool", [])),
        tolerations=tuple(Toleration(key) for key in words.get("tolerate", [])),
        pinned_node_id=words.get("pin", [""])[0],
        affinity_nodes=frozenset(node_of_vm[vm] for vm in beside if vm in node_of_vm),
        anti_affinity_nodes=frozenset(node_of_vm[vm] for vm in apart if vm in node_of_vm),
        vm_id=vm_id,
    )


def _outcome_text(outcome: Placement | Unplaced) -> str:
    name = outcome.request.vm_id
    if isinstance(outcome, Placement):
        return f"{name} -> " + ", then ".join(_ranked_text(ranked) for ranked in outcome.ranked) + "\n"
    lines = [f"{name}: {outcome.summary}", *(f"  {host}: {reason}" for host, reason in outcome.per_node)]
    return "\n".join(lines) + "\n"


def _ranked_text(ranked: RankedNode) -> str:
    parts = ", ".join(f"{part.name} {part.points:+.1f}" for part in ranked.parts)
    return f"{ranked.node_id} {ranked.score:.1f} ({parts})"
