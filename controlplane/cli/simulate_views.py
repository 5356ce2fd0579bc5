"""How a simulation is shown: tables for people, one document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from controlplane.cli.output import STATE_STYLES, Column, print_table
from controlplane.cli.terminal_text import one_line

if TYPE_CHECKING:
    from controlplane.simulator.result import EventSummary, Outcome, Result, TimelineRow
    from controlplane.simulator.world import SeenNode

MAX_ROWS: Final = 40
"""Of a table, unless all are asked for: a cluster of thousands of nodes would scroll everything else away."""

_NODE_COLUMNS = (
    Column("NODE"),
    Column("PHASE", styles=STATE_STYLES),
    Column("VMS", is_number=True),
    Column("VCPUS"),
    Column("CPU", is_number=True),
    Column("MEMORY"),
    Column("MEM", is_number=True),
)
_EVENT_COLUMNS = (Column("#", is_number=True), Column("AT"), Column("TOOK"), Column("EVENT"), Column("OUTCOME"))
_TIMELINE_COLUMNS = (
    Column("AT"),
    Column("TOOK"),
    Column("WHAT"),
    Column("VM"),
    Column("FROM"),
    Column("TO"),
    Column("NOTE"),
)
_FAULT_COLUMNS = (Column("VM"), Column("EVENT", is_number=True), Column("FATE", style="red"), Column("WHY"))


def print_result(result: Result, *, all_rows: bool) -> None:
    """Print tables: events, what happened when, nodes before and after, and what could not be done."""
    limit = None if all_rows else MAX_ROWS
    _titled("EVENTS")
    print_table(_EVENT_COLUMNS, [_event_row(each) for each in result.events])
    for each in result.events:
        if each.note:
            click.echo(f"  event {each.number}: {one_line(each.note)}")
    if result.timeline:
        _titled("TIMELINE")
        rows = sorted(result.timeline, key=lambda row: row.at_s)
        _print_some(_TIMELINE_COLUMNS, [_timeline_row(row) for row in rows], limit)
    _titled("NODES")
    _print_some(_NODE_COLUMNS, _node_rows(result, limit), limit)
    click.echo(f"imbalance: {result.imbalance_before:.2f} -> {result.imbalance_after:.2f} points")
    if result.faults:
        _titled("WITHOUT A PLACE")
        _print_some(_FAULT_COLUMNS, [_fault_row(each) for each in result.faults], limit)


def document_of(result: Result) -> dict[str, Any]:
    """Write a result for programs."""
    return {
        "allPlaced": not result.faults,
        "endedSec": round(result.ended_s, 3),
        "imbalanceBefore": round(result.imbalance_before, 6),
        "imbalanceAfter": round(result.imbalance_after, 6),
        "warnings": list(result.warnings),
        "events": [
            {
                "number": each.number,
                "title": each.title,
                "beganSec": round(each.began_s, 3),
                "endedSec": round(each.ended_s, 3),
                "fates": {fate.value: count for fate, count in each.fates},
                "note": each.note,
            }
            for each in result.events
        ],
        "timeline": [
            {
                "atSec": round(row.at_s, 3),
                "tookSec": round(row.took_s, 3),
                "event": row.event,
                "what": row.what,
                "vm": row.vm,
                "from": row.source,
                "to": row.target,
                "note": row.note,
            }
            for row in sorted(result.timeline, key=lambda row: row.at_s)
        ],
        "outcomes": [_outcome_document(each) for each in result.outcomes],
        "nodesBefore": [_node_document(node) for node in result.before],
        "nodesAfter": [_node_document(node) for node in result.after],
    }


def _outcome_document(outcome: Outcome) -> dict[str, Any]:
    return {
        "event": outcome.event,
        "vmId": outcome.vm_id,
        "vm": outcome.vm_name,
        "fate": outcome.fate.value,
        "node": outcome.node,
        "atSec": round(outcome.at_s, 3),
        "reason": outcome.reason,
        "nodes": [{"node": node, "reason": reason} for node, reason in outcome.per_node],
    }


def _node_document(node: SeenNode) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name,
        "phase": node.phase,
        "vcpus": node.capacity.vcpus,
        "claimedVcpus": node.claimed.vcpus,
        "memoryBytes": node.capacity.memory_bytes,
        "claimedMemoryBytes": node.claimed.memory_bytes,
        "vms": [vm.id for vm in node.vms],
    }


def _titled(title: str) -> None:
    click.echo(f"\n{click.style(title, bold=True)}")


def _print_some(columns: tuple[Column, ...], rows: list[list[str]], limit: int | None) -> None:
    print_table(columns, rows[:limit])
    if limit is not None and len(rows) > limit:
        click.echo(f"... and {len(rows) - limit} more; --all shows them")


def _clock(seconds: float) -> str:
    """Write virtual time: hours, minutes, seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _event_row(event: EventSummary) -> list[str]:
    fates = ", ".join(f"{count} {fate.value}" for fate, count in event.fates)
    return [str(event.number), _clock(event.began_s), _clock(event.ended_s - event.began_s), event.title, fates]


def _timeline_row(row: TimelineRow) -> list[str]:
    took = _clock(row.took_s) if row.took_s else ""
    return [_clock(row.at_s), took, row.what, row.vm, row.source, row.target, row.note]


def _node_rows(result: Result, limit: int | None) -> list[list[str]]:
    """Make a row of each node; if not all can be shown, those that changed come first."""
    before = {node.id: node for node in result.before}
    nodes = list(result.after)
    if limit is not None and len(nodes) > limit:
        nodes.sort(key=lambda node: before.get(node.id) == node)
    return [_node_row(before.get(node.id), node) for node in nodes]


def _node_row(before: SeenNode | None, after: SeenNode) -> list[str]:
    old = before or after
    gib = 2**30

    def change(one: str, other: str) -> str:
        return other if one == other or before is None else f"{one} -> {other}"

    return [
        after.name,
        change(old.phase, after.phase),
        change(str(len(old.vms)), str(len(after.vms))),
        change(str(old.claimed.vcpus), str(after.claimed.vcpus)) + f" of {after.capacity.vcpus}",
        change(f"{old.cpu_percent:.0f}%", f"{after.cpu_percent:.0f}%"),
        change(f"{old.claimed.memory_bytes / gib:.1f}", f"{after.claimed.memory_bytes / gib:.1f}")
        + f" of {after.capacity.memory_bytes / gib:.1f} GiB",
        change(f"{old.memory_percent:.0f}%", f"{after.memory_percent:.0f}%"),
    ]


def _fault_row(outcome: Outcome) -> list[str]:
    return [outcome.vm_name, str(outcome.event), outcome.fate.value, outcome.reason]
