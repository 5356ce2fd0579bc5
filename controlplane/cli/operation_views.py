"""Operations as rows, fields and lines for people. Everything comes from the API's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from controlplane.cli.api_client import OPERATION_SERVICE, VM_SERVICE, ApiClient, Document, ServerUnreachable
from controlplane.cli.lookup import list_nodes, list_vms
from controlplane.cli.output import Column
from controlplane.cli.progress import Look
from controlplane.cli.session import Session
from controlplane.cli.sizes import format_age, format_took
from limiquantix.errors import ApiError, NotFound

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
ACTIVE = ("QUEUED", "RUNNING", "UNDOING")
SHORT_ID_CHARS = 8

_LOOK_DEADLINE_S = 2.0
_LOOK_COUNT = 100
"""Newest operations under way among which the one that is meant is looked for."""
_MAX_SINGLE_READS = 50
"""More VMs than this are quicker found in the list of all."""
_TELLING_KINDS = frozenset({"node.drain"})
"""Kinds of operations that say how far they are instead of what they wait for."""
_STYLES = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "UNDOING": "yellow",
    "UNDONE": "yellow",
    "SUCCEEDED": "green",
    "DONE": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
}

COLUMNS = (
    Column("ID"),
    Column("KIND"),
    Column("VM"),
    Column("STATE", styles=_STYLES),
    Column("PROGRESS", is_number=True),
    Column("WAITS FOR"),
    Column("AGE", is_number=True),
    Column("TOOK", is_number=True),
)
WIDE_COLUMNS = (*COLUMNS, Column("BY"), Column("ERROR"), Column("REQUEST ID"))
STEP_COLUMNS = (Column("STEP"), Column("STATE", styles=_STYLES), Column("RESULT"))


def operation_row(operation: Document, names: Mapping[str, str], now: datetime, *, wide: bool) -> list[str]:
    """Make the cells of `COLUMNS`, or of `WIDE_COLUMNS`, which have the whole id.

    Args:
        names: of VMs by id; a VM that is not there is shown by its id.
    """
    operation_id = str(operation.get("id", ""))
    row = [
        operation_id if wide else operation_id[:SHORT_ID_CHARS],
        operation.get("kind", ""),
        name_of(operation, names),
        state_of(operation),
        f"{operation.get('progressPercent', 0)} %",
        operation.get("waitingFor", ""),
        format_age((now - _moment(operation["createdAt"])).total_seconds()) if operation.get("createdAt") else "",
        took(operation),
    ]
    if wide:
        row += [operation.get("principal", ""), _error(operation), operation.get("requestId", "")]
    return row


def operation_fields(operation: Document, names: Mapping[str, str], now: datetime) -> list[tuple[str, str]]:
    """Make titles and values of one operation, its steps aside."""
    resource_id, error = str(operation.get("resourceId", "")), operation.get("error", {})
    name = names.get(resource_id)
    attempt_count = int(operation.get("attemptCount", 0))
    return [
        ("ID", operation.get("id", "")),
        ("Kind", operation.get("kind", "")),
        ("Node" if _is_of_node(operation) else "VM", f"{name} ({resource_id})" if name else resource_id),
        ("Project", operation.get("projectId", "")),
        ("State", state_of(operation)),
        ("Progress", f"{operation.get('progressPercent', 0)} %, {_done_of_all(operation)}"),
        ("Waits for", operation.get("waitingFor", "")),
        ("Error", _error(operation)),
        *((f"Error: {key}", str(value)) for key, value in sorted(error.get("metadata", {}).items())),
        ("Cancelling", "was asked for" if operation.get("cancelRequested") else ""),
        ("Asked for by", operation.get("principal", "")),
        ("Request id", operation.get("requestId", "")),
        ("Taken up", f"{attempt_count} times, so a control plane died over it" if attempt_count > 1 else ""),
        ("Created", _ago(operation.get("createdAt"), now)),
        ("Started", _ago(operation.get("startedAt"), now)),
        ("Ended", _ago(operation.get("endedAt"), now)),
        ("Took", took(operation)),
    ]


def step_rows(operation: Document) -> list[list[str]]:
    """Make the cells of `STEP_COLUMNS`."""
    return [
        [step.get("name", ""), step.get("state", ""), step.get("resultJson", "")] for step in operation.get("steps", ())
    ]


def progress_text(operation: Document) -> str:
    """Say how far an operation is, and what it waits for."""
    waiting_for = str(operation.get("waitingFor", ""))
    if operation.get("kind") in _TELLING_KINDS and waiting_for and operation.get("state") == "RUNNING":
        return waiting_for
    if operation.get("state") == "QUEUED":
        return f"waits for {waiting_for}" if waiting_for else "waits for its turn"
    running = [str(step.get("name", "")) for step in operation.get("steps", ()) if step.get("state") == "RUNNING"]
    undoing = ["taking back what was done"] if operation.get("state") == "UNDOING" else []
    waits = [f"waits for {waiting_for}"] if waiting_for else []
    return ", ".join((f"{operation.get('progressPercent', 0)} %", *undoing, *running, *waits))


def line(operation: Document, names: Mapping[str, str]) -> str:
    """Say in one line what an operation is and how far."""
    state = state_of(operation)
    ended = f"after {took(operation)}" if took(operation) else ""
    how = _error(operation) or ended if state in ENDED else progress_text(operation)
    return "  ".join(filter(None, (str(operation.get("kind", "")), name_of(operation, names), state, how)))


def title(operation: Document, names: Mapping[str, str]) -> str:
    """Name an operation in a sentence: "operation 1b2c... (vm.start of web-1)"."""
    of_what = name_of(operation, names)
    what = f"{operation.get('kind', '')} of {of_what}" if of_what else operation.get("kind", "")
    return f"operation {operation.get('id', '')} ({what})"


def state_of(operation: Document) -> str:
    """Return the name of an operation's state."""
    return str(operation.get("state", "UNKNOWN"))


def name_of(operation: Document, names: Mapping[str, str]) -> str:
    """Return the name of the VM or node that an operation is about, its id if the name is not known."""
    resource_id = str(operation.get("resourceId", ""))
    name = names.get(resource_id, resource_id)
    return f"node {name}" if _is_of_node(operation) else name


def _is_of_node(operation: Document) -> bool:
    return operation.get("resourceType") == "node"


def took(operation: Document) -> str:
    """Say how long an operation took from its start, "" if it has not ended."""
    begin, end = operation.get("startedAt") or operation.get("createdAt"), operation.get("endedAt")
    return format_took((_moment(end) - _moment(begin)).total_seconds()) if begin and end else ""


def vm_names(client: ApiClient, operations: Sequence[Document]) -> dict[str, str]:
    """Look up the names of the VMs and nodes that operations are about; of VMs that are gone, from the answers."""
    node_ids = {str(each["resourceId"]) for each in operations if _is_of_node(each)}
    ids = {str(each["resourceId"]) for each in operations if each.get("resourceId")} - node_ids
    names = {}
    for operation in reversed(operations):  # they come newest first, and the newest name is to win
        name = operation.get("response", {}).get("name")
        if name:
            names[str(operation.get("resourceId"))] = str(name)
    unknown = ids - names.keys()
    try:
        names |= _hostnames(client, node_ids)
        return names | dict(_named(_read(client, unknown)))
    except (ApiError, ServerUnreachable):
        return names


def _hostnames(client: ApiClient, node_ids: set[str]) -> dict[str, str]:
    if not node_ids:
        return {}
    return {str(node.get("id")): str(node.get("hostname", "")) for node in list_nodes(client, {})}


def _read(client: ApiClient, vm_ids: set[str]) -> Iterable[Document]:
    if len(vm_ids) > _MAX_SINGLE_READS:
        yield from (vm for vm in list_vms(client, {}) if vm.get("id") in vm_ids)
        return
    for vm_id in sorted(vm_ids):
        try:
            yield client.call(VM_SERVICE, "GetVM", {"id": vm_id})
        except NotFound:
            continue


def _named(vms: Iterable[Document]) -> Iterable[tuple[str, str]]:
    return ((str(vm.get("id")), str(vm.get("name", ""))) for vm in vms)


def progress_look(session: Session, filters: Document, is_meant: Callable[[Document], bool]) -> Look:
    """Make what tells how far an operation is that has not ended, on a connection of its own.

    Args:
        filters: of ListOperations.
        is_meant: picks the operation out of those.
    """
    request = {**filters, "states": list(ACTIVE), "pageSize": _LOOK_COUNT}

    def look() -> str:
        try:
            with session.connect() as client:
                page = client.call(OPERATION_SERVICE, "ListOperations", request, _LOOK_DEADLINE_S)
        except (ApiError, ServerUnreachable):
            return ""
        return next((progress_text(each) for each in page.get("operations", ()) if is_meant(each)), "")

    return look


def _error(operation: Document) -> str:
    error = operation.get("error", {})
    return ": ".join(filter(None, (str(error.get("reason", "")), str(error.get("message", "")))))


def _done_of_all(operation: Document) -> str:
    steps = operation.get("steps", ())
    return f"{sum(step.get('state') == 'DONE' for step in steps)} of {len(steps)} steps done"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _ago(moment: str | None, now: datetime) -> str:
    return f"{moment} ({format_age((now - _moment(moment)).total_seconds())} ago)" if moment else ""
