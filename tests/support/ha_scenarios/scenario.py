"""Scenarios as data: what a cluster is, what happens to it, and where everything shall be when it is quiet again."""

from __future__ import annotations

import json
import re
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
        errors: VMs that an earlier manager gave up.
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
    script: Sequence[Sequence[str]] = ()
    final: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    final_nodes: Mapping[str, str] = field(default_factory=dict)


def read_json(path: Path) -> Scenario:
    """Read a scenario as the other suite's data has it, see the README beside it."""
    data = json.loads(path.read_text())
    node_rules, vm_rules = rules_of(data.get("rules_config", ""))
    policy = json.loads(data.get("datacenter.cfg") or "{}").get("ha", {}).get("shutdown_policy", "conditional")
    earlier = json.loads(data.get("manager_status") or "{}").get("service_status", {})
    return Scenario(
        name=data.get("name", path.stem),
        node_ids=sorted(data["nodes"]),
        vms=[_setting(vm_id, facts) for vm_id, facts in sorted(data.get("vms", {}).items())],
        on=frozenset(node for node, facts in data["nodes"].items() if facts.get("power") == "on"),
        node_rules=node_rules,
        vm_rules=vm_rules,
        shutdown_policy=ShutdownPolicy(policy),
        errors=frozenset(vm_id for vm_id, facts in earlier.items() if facts.get("state") == "error"),
        script=data["script"],
        final={vm_id: (facts["node"], facts["state"]) for vm_id, facts in data["final"].items()},
        final_nodes=data["final_nodes"],
    )


def _setting(vm_id: str, facts: Mapping[str, str | int]) -> VmSetting:
    state = str(facts.get("state", "disabled"))
    return VmSetting(
        id=vm_id,
        node_id=str(facts["node"]),
        state="started" if state == "enabled" else state,
        max_restarts=int(facts.get("max_restart", 1)),
        max_relocations=int(facts.get("max_relocate", 1)),
        is_failback=bool(int(facts.get("failback", 1))),
    )


def rules_of(text: str) -> tuple[Sequence[NodeRule], Sequence[VmRule]]:
    """Read rules: a line `kind: name`, then indented lines of a word and its value."""
    node_rules, vm_rules = list[NodeRule](), list[VmRule]()
    for block in re.split(r"\n(?=\S)", text.strip()):
        head, *lines = block.splitlines() or [""]
        facts = dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) > 1)
        if not facts or "disable" in facts:
            continue
        vm_ids = frozenset(_listed(facts["resources"]))
        if head.startswith("node-affinity:"):
            nodes = [each.partition(":") for each in _listed(facts["nodes"])]
            priorities = {node: int(priority or 0) for node, _, priority in nodes}
            node_rules.append(NodeRule(vm_ids, priorities, facts.get("strict", "0").strip() == "1"))
        elif head.startswith("resource-affinity:"):
            vm_rules.append(VmRule(vm_ids, is_together=facts["affinity"].strip() == "positive"))
    return node_rules, vm_rules


def _listed(text: str) -> list[str]:
    return [each for each in re.split(r"[,;\s]+", text.strip()) if each]


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
