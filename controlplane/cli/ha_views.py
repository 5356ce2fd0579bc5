"""High availability's status and fences as rows and fields for people. Everything comes from the API's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from controlplane.cli.api_client import Document
from controlplane.cli.output import Column
from controlplane.cli.sizes import format_age, format_took

SHORT_ID_CHARS = 8
_NAMED_COUNT = 5
_OPEN, _PROVEN = "OPEN", "PROVEN"

_HEALTH_STYLES = {
    "healthy": "green",
    "unknown": "yellow",
    "maintenance": "yellow",
    "shutting-down": "yellow",
    "suspect": "red",
    "fencing": "red",
    "fenced": "red",
}
NODE_COLUMNS = (
    Column("NODE"),
    Column("HEALTH", styles=_HEALTH_STYLES),
    Column("HEARD", is_number=True),
    Column("SELF-FENCING", styles={"yes": "green", "no": "yellow"}),
    Column("POWER"),
    Column("PROTECTED", is_number=True),
    Column("WHY"),
)
WAITING_COLUMNS = (
    Column("VM"),
    Column("NODE"),
    Column("TRIED", is_number=True),
    Column("NEXT", is_number=True),
    Column("WAITS FOR"),
)
FORECAST_COLUMNS = (
    Column("IF THIS NODE DIED"),
    Column("VM"),
    Column("IT WOULD RUN ON"),
    Column("OBSTACLE", style="red"),
)
FENCE_COLUMNS = (
    Column("ID"),
    Column("NODE"),
    Column("STATE", styles={_OPEN: "yellow", _PROVEN: "red", "ENDED": "green", "WITHDRAWN": "green"}),
    Column("TOKEN", is_number=True),
    Column("OPENED", is_number=True),
    Column("PROOF"),
    Column("REASON"),
)


def status_fields(status: Document, now: datetime) -> list[tuple[str, str]]:
    """Make titles and values of what is true of the cluster as a whole."""
    settings = status.get("settings", {})
    epoch = status.get("epoch", "0")
    leader = status.get("leaderHostname") or status.get("leaderId")
    return [
        ("Armed", armed_words(settings, now)),
        ("Known to", known_words(settings, status.get("nodes", []))),
        ("Decides", f"{leader} ({status.get('leaderId', '')}), epoch {epoch}" if leader else "nobody"),
        ("Obstacle", str(status.get("obstacle", ""))),
        ("Room kept", str(status.get("admissionPolicy", ""))),
        ("Survives", _survives(int(status.get("failuresSurvived", 0)))),
        ("Times", _times(status.get("times", {}))),
    ]


def armed_words(settings: Document, now: datetime) -> str:
    """Say whether nodes are fenced and VMs restarted: "no: new switch (eve, 5m ago)"."""
    who, at = settings.get("changedBy", ""), settings.get("changedAt")
    by = f" ({who}, {_age(at, now)} ago)" if who and at else ""
    return f"yes{by}" if settings.get("isArmed") else f"no: {settings.get('reason', '')}{by}"


def known_words(settings: Document, nodes: Sequence[Document]) -> str:
    """Say which hosts know whether they are armed: "2 of 3 nodes, not yet: host-c", which kills its VMs as before."""
    newest = int(settings.get("version", 0))
    unaware = [str(node.get("hostname", "")) for node in nodes if int(node.get("settingsVersion", 0)) < newest]
    words = f"{len(nodes) - len(unaware)} of {len(nodes)} nodes"
    named = ", ".join(unaware[:_NAMED_COUNT]) + (" ..." if len(unaware) > _NAMED_COUNT else "")
    return f"{words}, not yet: {named}" if unaware else words


def _survives(count: int) -> str:
    if count < 0:
        return "not even VMs that wait now have room"
    return "no failure of a node" if count == 0 else f"the failure of any {count} node{'s' if count > 1 else ''}"


def _times(times: Mapping[str, object]) -> str:
    words = (
        ("suspect after", "suspectAfterMs"),
        ("lease", "leaseMs"),
        ("proven by it after", "proofWaitMs"),
    )
    return ", ".join(f"{title} {int(str(times[name])) / 1000:g} s" for title, name in words if name in times)


def node_row(node: Document, now: datetime) -> list[str]:
    """Make the cells of `NODE_COLUMNS`."""
    fences_itself = bool(node.get("isSelfFencing"))
    obstacle = "" if fences_itself else str(node.get("selfFencingObstacle", ""))
    why = [str(node.get("reason", "")), f"does not fence itself: {obstacle}" if obstacle else ""]
    return [
        str(node.get("hostname", "") or node.get("nodeId", "")),
        health_of(node),
        f"{_age(node.get('lastHeardAt'), now)} ago" if node.get("lastHeardAt") else "",
        "yes" if fences_itself else "no",
        str(node.get("powerAgent", "")),
        str(node.get("protectedVmCount", 0)),
        "; ".join(filter(None, why)),
    ]


def health_of(node: Document) -> str:
    """Return what is thought of a node, as people write it: "shutting-down"."""
    name = str(node.get("health", "NODE_HEALTH_UNKNOWN"))
    return name.removeprefix("NODE_HEALTH_").lower().replace("_", "-")


def waiting_row(each: Document, hostnames: Mapping[str, str], now: datetime) -> list[str]:
    """Make the cells of `WAITING_COLUMNS`."""
    node_id, at = str(each.get("nodeId", "")), each.get("nextAttemptAt")
    return [
        str(each.get("vmName", "") or each.get("vmId", "")),
        hostnames.get(node_id, node_id),
        str(each.get("attemptCount", 0)),
        format_took(max(_seconds_until(str(at), now), 0.0)) if at else "",
        str(each.get("reason", "")),
    ]


def forecast_rows(nodes: list[Document]) -> Iterator[list[str]]:
    """Make the cells of `FORECAST_COLUMNS`; a node without VMs to restart has no row."""
    for node in nodes:
        for each in node.get("forecast", ()):
            yield [
                str(node.get("hostname", "")),
                str(each.get("vmName", "") or each.get("vmId", "")),
                str(each.get("targetHostname", "") or each.get("targetNodeId", "")),
                str(each.get("obstacle", "")),
            ]


def fence_row(fence: Document, now: datetime, *, wide: bool) -> list[str]:
    """Make the cells of `FENCE_COLUMNS`; `wide` has the whole id."""
    identity = str(fence.get("id", ""))
    return [
        identity if wide else identity[:SHORT_ID_CHARS],
        str(fence.get("hostname", "") or fence.get("nodeId", "")),
        str(fence.get("state", "")),
        str(fence.get("token", "")),
        f"{_age(fence.get('openedAt'), now)} ago" if fence.get("openedAt") else "",
        method_of(fence),
        str(fence.get("reason", "")),
    ]


def fence_fields(fence: Document, now: datetime) -> list[tuple[str, str]]:
    """Make titles and values of one fence."""
    proof = fence.get("proof", {})
    return [
        ("ID", str(fence.get("id", ""))),
        ("Node", str(fence.get("hostname", "") or fence.get("nodeId", ""))),
        ("State", str(fence.get("state", ""))),
        ("Reason", str(fence.get("reason", ""))),
        ("Opened", _moment(fence, "openedAt", now)),
        ("Token", str(fence.get("token", ""))),
        ("Epoch", str(fence.get("epoch", ""))),
        ("Heard by", str(fence.get("heardBy", ""))),
        ("Proof", method_of(fence)),
        ("Evidence", str(proof.get("evidence", ""))),
        ("Witness", str(proof.get("witness", ""))),
        ("Proven", _moment(proof, "provenAt", now)),
        ("Over", _moment(fence, "endedAt", now)),
        ("VMs restarted", ", ".join(map(str, fence.get("restartedVmIds", ())))),
    ]


def method_of(fence: Document) -> str:
    """Return how a fence was proven, as people write it: "power-off"; "" for not yet."""
    name = str(fence.get("proof", {}).get("method", ""))
    return name.removeprefix("FENCE_METHOD_").lower().replace("_", "-")


def _moment(document: Document, field: str, now: datetime) -> str:
    return f"{document[field]} ({_age(document[field], now)} ago)" if document.get(field) else ""


def _age(moment: object, now: datetime) -> str:
    return format_age(-_seconds_until(str(moment), now))


def _seconds_until(moment: str, now: datetime) -> float:
    return (datetime.fromisoformat(moment) - now).total_seconds()
