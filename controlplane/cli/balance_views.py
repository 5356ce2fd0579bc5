"""Loads of nodes and recommendations as rows and fields for people. Everything comes from the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from controlplane.cli.api_client import ApiClient, Document
from controlplane.cli.lookup import list_nodes
from controlplane.cli.output import Column
from controlplane.cli.sizes import format_age, format_bytes, format_took

SHORT_ID_CHARS = 8
_BAR_CHARS = 10
_HALF = 0.5

_STATUS_STYLES = {
    "PENDING": "yellow",
    "APPROVED": "cyan",
    "APPLIED": "green",
    "REJECTED": "yellow",
    "EXPIRED": "yellow",
    "FAILED": "red",
}
_PRIORITY_STYLES = {"CRITICAL": "red", "HIGH": "red", "MEDIUM": "yellow"}

LOAD_COLUMNS = (
    Column("NODE"),
    Column("CPU"),
    Column("MEMORY"),
    Column("CPU CLAIMED"),
    Column("MEMORY CLAIMED"),
    Column("VMS", is_number=True),
)
RECOMMENDATION_COLUMNS = (
    Column("ID"),
    Column("STEP", is_number=True),
    Column("PRIORITY", styles=_PRIORITY_STYLES),
    Column("STATUS", styles=_STATUS_STYLES),
    Column("VM"),
    Column("FROM"),
    Column("TO"),
    Column("GAIN", is_number=True),
    Column("TO MOVE", is_number=True),
    Column("TAKES", is_number=True),
    Column("LOAD FROM"),
    Column("LOAD TO"),
    Column("AGE", is_number=True),
)
WIDE_RECOMMENDATION_COLUMNS = (*RECOMMENDATION_COLUMNS, Column("BY"), Column("OUTCOME"), Column("REASON"))


def hostnames(client: ApiClient) -> dict[str, str]:
    """Read the host names of all nodes, by id."""
    return {str(node.get("id", "")): str(node.get("hostname", "")) for node in list_nodes(client, {})}


def bar(percent: float) -> str:
    """Draw a load: "████▌      44 %"; one above 100 fills the bar."""
    filled = min(max(percent, 0.0), 100.0) / 100.0 * _BAR_CHARS
    whole = int(filled)
    blocks = "█" * whole + ("▌" if filled - whole >= _HALF else "")
    return f"{blocks.ljust(_BAR_CHARS)} {percent:3.0f} %"


def load_row(node: Document) -> list[str]:
    """Make the cells of `LOAD_COLUMNS`."""
    names = ("cpuPercent", "memoryPercent", "cpuClaimedPercent", "memoryClaimedPercent")
    bars = [bar(float(node.get(name, 0))) for name in names]
    return [str(node.get("hostname", "")), *bars, str(node.get("vmCount", 0))]


def balance_lines(balance: Document, now: datetime) -> list[tuple[str, str]]:
    """Make titles and values of what is said below the loads."""
    automation = str(balance.get("automation", "")).removeprefix("BALANCING_AUTOMATION_").lower()
    last, following = balance.get("lastRunAt"), balance.get("nextRunAt")
    return [
        ("Imbalance", f"{float(balance.get('imbalance', 0)):.1f} points (0 is even)"),
        ("Automation", automation if balance.get("isEnabled") else f"{automation}, switched off"),
        ("Last run", f"{_age(str(last), now)} ago" if last else "none yet"),
        ("Next run", _until(str(following), now) if following else "by hand: 'limiquantix balance run'"),
        ("Note", str(balance.get("message", ""))),
    ]


def status_of(recommendation: Document) -> str:
    """Return its status."""
    return str(recommendation.get("status", ""))


def recommendation_row(each: Document, names: Mapping[str, str], now: datetime, *, wide: bool) -> list[str]:
    """Make the cells of `RECOMMENDATION_COLUMNS`, or of `WIDE_RECOMMENDATION_COLUMNS`, which have the whole id."""
    identity = str(each.get("id", ""))
    row = [
        identity if wide else identity[:SHORT_ID_CHARS],
        str(each.get("step", "")),
        str(each.get("priority", "")),
        status_of(each),
        str(each.get("vmName", "") or each.get("vmId", "")),
        _name(each, "sourceNodeId", names),
        _name(each, "targetNodeId", names),
        f"{float(each.get('gainPercent', 0)):.1f} %",
        format_bytes(int(each.get("costMemoryBytes", 0))),
        format_took(int(each.get("costDurationMs", 0)) / 1000),
        _change(each, "source"),
        _change(each, "target"),
        _age(str(each["createdAt"]), now) if each.get("createdAt") else "",
    ]
    if wide:
        row += [str(each.get("decidedBy", "")), str(each.get("statusMessage", "")), str(each.get("reason", ""))]
    return row


def recommendation_fields(each: Document, names: Mapping[str, str], now: datetime) -> list[tuple[str, str]]:
    """Make titles and values of one recommendation."""
    dirty = int(each.get("costDirtyBytesPerSec", 0))
    decided = f"{_age(str(each['decidedAt']), now)} ago" if each.get("decidedAt") else ""
    return [
        ("ID", str(each.get("id", ""))),
        ("Priority", str(each.get("priority", ""))),
        ("Status", status_of(each)),
        ("Outcome", str(each.get("statusMessage", ""))),
        ("VM", f"{each.get('vmName', '')} ({each.get('vmId', '')})"),
        ("From", f"{_name(each, 'sourceNodeId', names)}, load {_change(each, 'source')}"),
        ("To", f"{_name(each, 'targetNodeId', names)}, load {_change(each, 'target')}"),
        ("Why", str(each.get("reason", ""))),
        ("Gain", f"{float(each.get('gainPercent', 0)):.1f} % of the imbalance"),
        ("To move", format_bytes(int(each.get("costMemoryBytes", 0)))),
        ("Guest writes", f"{format_bytes(dirty)}/s" if dirty else "unknown"),
        ("Takes", format_took(int(each.get("costDurationMs", 0)) / 1000)),
        ("Together with", str(each.get("exchangeWith", ""))),
        ("Step", f"{each.get('step', '')} of run {each.get('runId', '')}"),
        ("Decided by", f"{each.get('decidedBy', '')}, {decided}" if decided else ""),
        ("Operation", str(each.get("operationId", ""))),
        ("Created", f"{_age(str(each['createdAt']), now)} ago" if each.get("createdAt") else ""),
        ("Kept until", str(each.get("expiresAt", ""))),
    ]


def _name(each: Document, field: str, names: Mapping[str, str]) -> str:
    node_id = str(each.get(field, ""))
    return names.get(node_id, node_id)


def _change(each: Document, which: str) -> str:
    before, after = (float(each.get(f"{which}Load{when}", 0)) for when in ("Before", "After"))
    return f"{before:.0f} % to {after:.0f} %"


def _age(moment: str, now: datetime) -> str:
    return format_age((now - datetime.fromisoformat(moment)).total_seconds())


def _until(moment: str, now: datetime) -> str:
    left_s = (datetime.fromisoformat(moment) - now).total_seconds()
    return f"in {format_age(left_s)}" if left_s > 0 else "now"
