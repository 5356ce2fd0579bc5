"""Reads scenarios as the other suite's data has them, see the README beside that.

What is not known is refused: a scenario of which a part is left out would end somewhere, and nobody would see why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from controlplane.ha.model import ShutdownPolicy
from tests.support.ha_scenarios.scenario import NodeRule, Scenario, VmRule, VmSetting

_PARTS = frozenset(
    [
        "name",
        "nodes",
        "vms",
        "script",
        "final",
        "final_nodes",
        "rules_config",
        "groups",
        "datacenter.cfg",
        "manager_status",
        "static_service_stats",
    ]
)
_OF_NODES = frozenset(["power", "network", "cpus", "memory", "maxcpu", "maxmem"])
_OF_VMS = frozenset(
    ["node", "state", "max_restart", "max_relocate", "failback", "group", "lock", "type", "name", "comment"]
)
_OF_NODE_RULES = frozenset(["nodes", "resources", "strict", "affinity", "comment"])
_OF_VM_RULES = frozenset(["resources", "affinity", "comment"])
_OF_GROUPS = frozenset(["nodes", "restricted", "nofailback", "comment"])
_IGNORED_LOADS = "static and dynamic loads are not simulated: VMs are counted"


class UnknownSetting(ValueError):
    """A scenario has a part that this reader does not know."""


def read_json(path: Path) -> Scenario:
    """Read one.

    Raises:
        UnknownSetting: it has something that would be left out.
    """
    data = json.loads(path.read_text())
    _known(data, _PARTS, "the scenario")
    for node, facts in data["nodes"].items():
        _known(facts, _OF_NODES, node)
    groups = groups_of(data.get("groups") or "")
    settings = [_setting(vm_id, facts, groups) for vm_id, facts in sorted(data.get("vms", {}).items())]
    node_rules, vm_rules = rules_of(data.get("rules_config") or "")
    earlier = _object(data.get("manager_status"))
    services = earlier.get("service_status", {})
    requests = earlier.get("node_request", {})
    return Scenario(
        name=data.get("name", path.stem),
        node_ids=sorted(data["nodes"]),
        vms=settings,
        on=frozenset(node for node, facts in data["nodes"].items() if facts.get("power") == "on"),
        node_rules=[*node_rules, *_rules_of_groups(groups, data.get("vms", {}))],
        vm_rules=vm_rules,
        shutdown_policy=_policy(_object(data.get("datacenter.cfg"))),
        errors=frozenset(vm_id for vm_id, facts in services.items() if facts.get("state") == "error"),
        homes={vm_id: facts["maintenance_node"] for vm_id, facts in services.items() if "maintenance_node" in facts},
        in_maintenance=frozenset(node for node, facts in requests.items() if facts.get("maintenance")),
        script=data["script"],
        final={vm_id: (facts["node"], facts["state"]) for vm_id, facts in data["final"].items()},
        final_nodes=data["final_nodes"],
    )


def rules_of(text: str) -> tuple[Sequence[NodeRule], Sequence[VmRule]]:
    """Read rules: a line `kind: name`, then indented lines of a word and its value."""
    node_rules, vm_rules = list[NodeRule](), list[VmRule]()
    for head, facts in _blocks(text):
        if facts.pop("disable", "0") != "0":
            continue
        if head.startswith("node-affinity:"):
            _known(facts, _OF_NODE_RULES, head)
            is_strict = facts.get("strict", "0") == "1"
            node_rules.append(NodeRule(frozenset(_listed(facts["resources"])), _priorities(facts["nodes"]), is_strict))
        elif head.startswith("resource-affinity:"):
            _known(facts, _OF_VM_RULES, head)
            vm_rules.append(VmRule(frozenset(_listed(facts["resources"])), facts["affinity"] == "positive"))
        else:
            raise UnknownSetting(f"rule of an unknown kind: {head}")
    return node_rules, vm_rules


def groups_of(text: str) -> Mapping[str, Mapping[str, str]]:
    """Read groups, what rules about nodes were before there were rules; each by its name."""
    groups = dict[str, Mapping[str, str]]()
    for head, facts in _blocks(text):
        kind, _, name = head.partition(":")
        if kind != "group":
            raise UnknownSetting(f"group of an unknown kind: {head}")
        _known(facts, _OF_GROUPS, head)
        groups[name.strip()] = facts
    return groups


def _rules_of_groups(
    groups: Mapping[str, Mapping[str, str]], vms: Mapping[str, Mapping[str, Any]]
) -> Sequence[NodeRule]:
    members = {name: frozenset(vm_id for vm_id, facts in vms.items() if facts.get("group") == name) for name in groups}
    return [
        NodeRule(members[name], _priorities(facts["nodes"]), facts.get("restricted", "0") == "1")
        for name, facts in groups.items()
        if members[name]
    ]


def _setting(vm_id: str, facts: Mapping[str, Any], groups: Mapping[str, Mapping[str, str]]) -> VmSetting:
    _known(facts, _OF_VMS, vm_id)
    state = str(facts.get("state") or "disabled")
    stays = groups.get(str(facts.get("group")), {}).get("nofailback", "0") == "1"
    return VmSetting(
        id=vm_id,
        node_id=str(facts["node"]),
        state="started" if state == "enabled" else state,
        max_restarts=int(facts.get("max_restart", 1)),
        max_relocations=int(facts.get("max_relocate", 1)),
        is_failback=bool(int(facts.get("failback", not stays))),
        lock=str(facts.get("lock") or ""),
    )


def _policy(settings: Mapping[str, Any]) -> ShutdownPolicy:
    _known(settings, {"ha", "crs"}, "datacenter.cfg")
    if settings.get("crs", {}).get("ha", "basic") != "basic":
        raise UnknownSetting(_IGNORED_LOADS)
    _known(settings.get("crs", {}), {"ha"}, "datacenter.cfg: crs")
    _known(settings.get("ha", {}), {"shutdown_policy"}, "datacenter.cfg: ha")
    return ShutdownPolicy(settings.get("ha", {}).get("shutdown_policy", "conditional"))


def _object(text: str | None) -> Mapping[str, Any]:
    found = json.loads(text or "{}")
    assert isinstance(found, dict)
    return found


def _blocks(text: str) -> Sequence[tuple[str, dict[str, str]]]:
    """Split a file into its blocks: each a line, and indented ones of a word and its value; "1" for a lone word."""
    blocks = list[tuple[str, dict[str, str]]]()
    for block in re.split(r"\n(?=\S)", text.strip()):
        head, *lines = block.splitlines() or [""]
        pairs = [line.split(None, 1) for line in lines if line.strip()]
        if head:
            blocks.append((head.strip(), {pair[0]: pair[1].strip() if len(pair) > 1 else "1" for pair in pairs}))
    return blocks


def _listed(text: str) -> list[str]:
    return [each for each in re.split(r"[,;\s]+", text.strip()) if each]


def _priorities(text: str) -> Mapping[str, int]:
    nodes = [each.partition(":") for each in _listed(text)]
    return {node: int(priority or 0) for node, _, priority in nodes}


def _known(facts: Mapping[str, Any], names: Collection[str], of: str) -> None:
    if unknown := sorted(set(facts) - set(names)):
        raise UnknownSetting(f"{of}: {', '.join(unknown)}")
