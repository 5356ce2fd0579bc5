"""Scenarios as data: what a cluster is, what happens to it, and where everything shall be when it is quiet again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.ha.model import ShutdownPolicy


@dataclass(frozen=True, slots=True)
class VmSetting:
    """What is configured of a VM. Its id begins with its kind: `vm:`, `ct:` or `fa:`."""

    id: str
    node_id: str
    state: str = "disabled"
    max_restarts: int = 1
    max_relocations: int = 1
    is_failback: bool = True
    priority: int = 0
    starts_after: Sequence[str] = ()
    lock: str = ""


@dataclass(frozen=True, slots=True)
class NodeRule:
    """VMs belong on nodes, those with a higher number rather; `is_strict` forbids all others."""

    vm_ids: frozenset[str]
    priorities: Mapping[str, int]
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class VmRule:
    """VMs belong together on one node, or apart on different ones."""

    vm_ids: frozenset[str]
    is_together: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        on: nodes that are powered on, with network, at the beginning.
        errors: VMs that an earlier manager gave up; `homes` the nodes that VMs left for their maintenance.
        in_maintenance: nodes that are in maintenance at the beginning.
        script: batches of commands, one each 100 s.
        final: node and state of each VM; `final_nodes` the state of each node.
    """

    name: str
    node_ids: Sequence[str]
    vms: Sequence[VmSetting] = ()
    on: frozenset[str] = frozenset()
    node_rules: Sequence[NodeRule] = ()
    vm_rules: Sequence[VmRule] = ()
    shutdown_policy: ShutdownPolicy = ShutdownPolicy.CONDITIONAL
    errors: frozenset[str] = frozenset()
    homes: Mapping[str, str] = field(default_factory=dict)
    in_maintenance: frozenset[str] = frozenset()
    script: Sequence[Sequence[str]] = ()
    final: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    final_nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where everything was when the site was quiet.

    Attributes:
        vms: node and state of each; `running` those that really run there.
        proofs: by which methods each node was proven dead.
        restarts: VMs that were started elsewhere after a proof, in order.
    """

    vms: Mapping[str, tuple[str, str]]
    nodes: Mapping[str, str]
    running: frozenset[str]
    proofs: Mapping[str, Sequence[str]]
    restarts: Sequence[str]


def read_text(path: Path) -> tuple[Scenario, str]:
    """Read one of our own: settings, a line `script`, commands with `wait` between batches, `----`, the outcome."""
    settings, _, rest = path.read_text().partition("\nscript\n")
    commands, _, expected = rest.partition("\n----\n")
    node_ids, vms, policy, rules = list[str](), list[VmSetting](), "conditional", list[list[str]]()
    for line in settings.splitlines():
        word, *rest_of_line = line.split("#")[0].split() or [""]
        if word == "nodes":
            node_ids = rest_of_line
        elif word == "vm":
            vms.append(_own_setting(rest_of_line))
        elif word == "shutdown-policy":
            policy = rest_of_line[0]
        elif word in ("only", "prefer", "together", "apart"):
            rules.append([word, *rest_of_line])
    batches: list[list[str]] = [[]]
    for line in commands.splitlines():
        command = line.split("#")[0].strip()
        if command == "wait":
            batches.append([])
        elif command:
            batches[-1].append(command)
    scenario = Scenario(
        name=path.stem,
        node_ids=node_ids,
        vms=vms,
        on=frozenset(node_ids),
        node_rules=[
            NodeRule(frozenset([vm_id]), _priorities(nodes), word == "only")
            for word, vm_id, *nodes in rules
            if word in ("only", "prefer")
        ],
        vm_rules=[
            VmRule(frozenset(vm_ids), word == "together") for word, *vm_ids in rules if word in ("together", "apart")
        ],
        shutdown_policy=ShutdownPolicy(policy),
        script=batches,
    )
    return scenario, expected.strip()


def _priorities(nodes: Sequence[str]) -> dict[str, int]:
    return {node: int(priority or 0) for node, _, priority in (each.partition(":") for each in nodes)}


def _own_setting(words: Sequence[str]) -> VmSetting:
    """Read `ID NODE STATE [priority=N] [restarts=N] [relocations=N] [failback=0] [after=ID,ID]`."""
    vm_id, node_id, state, *more = words
    facts = dict(word.split("=", 1) for word in more)
    return VmSetting(
        id=vm_id,
        node_id=node_id,
        state=state,
        max_restarts=int(facts.get("restarts", 1)),
        max_relocations=int(facts.get("relocations", 1)),
        is_failback=facts.get("failback", "1") == "1",
        priority=int(facts.get("priority", 0)),
        starts_after=[each for each in facts.get("after", "").split(",") if each],
    )
