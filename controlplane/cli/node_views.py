"""What people see of a node's life: its conditions and taints, and what became of the VMs of one that was drained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.cli.output import Column
from controlplane.cli.terminal_text import one_line

Document = Mapping[str, Any]
Fields = list[tuple[str, str]]

_FATE_STYLES = {
    "moved": "green",
    "moving": "cyan",
    "waiting": "yellow",
    "stopping": "yellow",
    "stopped": "yellow",
    "stuck": "red",
}
DRAIN_COLUMNS = (Column("VM"), Column("OUTCOME", styles=_FATE_STYLES), Column("NODE"), Column("WHY"))

_CORDONED = "Cordoned"


def node_line(node: Document) -> str:
    """Say in a line what a node is after a change."""
    parts = [f"node {node.get('hostname', '')} ({node.get('id', '')}) is {node.get('status', {}).get('phase', '')}"]
    cordon = _condition(node, _CORDONED)
    if cordon.get("status") == "TRUE":
        parts.append(f"takes no new VMs: {cordon.get('message', '')}")
    taints = taints_text(node)
    if taints:
        parts.append(f"taints {taints}")
    return one_line(", ".join(parts))


def life_fields(node: Document) -> Fields:
    """Make titles and values of what keeps a node from taking VMs, of its load and of what is promised of it."""
    scheduling = node.get("spec", {}).get("scheduling", {})
    ratios, reserved = scheduling.get("overcommit", {}), scheduling.get("reserved", {})
    own = [f"{ratios['cpuRatio']:g} vCPUs a thread"] if ratios.get("cpuRatio") else []
    own += [f"{ratios['memoryRatio']:g} times the memory"] if ratios.get("memoryRatio") else []
    kept = [f"{reserved['cpuCores']} threads"] if reserved.get("cpuCores") else []
    kept += [f"{int(reserved['memoryBytes']) // 2**20} MiB"] if reserved.get("memoryBytes") else []
    return [
        *((kind, _condition_text(node, kind)) for kind in (_CORDONED, "Overloaded")),
        ("Taints", taints_text(node)),
        ("Promises", ", ".join(own)),
        ("Kept for the host", ", ".join(kept)),
    ]


def taints_text(node: Document) -> str:
    """Write a node's taints as 'node taint' takes them, separated by commas."""
    return ",".join(_taint(taint) for taint in node.get("spec", {}).get("scheduling", {}).get("taints", ()))


def _taint(taint: Document) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint.get('key', '')}{value}:{taint.get('effect', 'NO_SCHEDULE')}"


def topology_fields(node: Document) -> Fields:
    """Make titles and values of a host's NUMA nodes, each with its processors and memory."""
    cells = node.get("spec", {}).get("cpu", {}).get("numaNodes", ())
    return [(f"NUMA node {cell.get('nodeId', 0)}", _cell(cell)) for cell in cells]


def _cell(cell: Document) -> str:
    memory_mib = int(cell.get("memoryBytes", 0) or 0) // 2**20
    return ", ".join(filter(None, (f"CPUs {ranges(cell.get('cpus', ()))}", f"{memory_mib} MiB" if memory_mib else "")))


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as the kernel writes lists of processors: "0-3,8"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def drain_row(vm: Document, places: Mapping[str, str]) -> list[str]:
    """Make the cells of `DRAIN_COLUMNS` of one VM of a drain's roster."""
    return [
        str(vm.get("name", "")),
        str(vm.get("fate", "")),
        places.get(str(vm.get("vm_id", "")), ""),
        str(vm.get("why", "")),
    ]


def _condition(node: Document, kind: str) -> Document:
    found: Iterable[Document] = node.get("status", {}).get("conditions", ())
    return next((each for each in found if each.get("type") == kind), {})


def _condition_text(node: Document, kind: str) -> str:
    condition = _condition(node, kind)
    if condition.get("status") != "TRUE":
        return ""
    since = f" (since {condition['lastTransition']})" if condition.get("lastTransition") else ""
    return f"{condition.get('message', '')}{since}"
