"""Finds what a person named: VMs by id or name, nodes by id or host name, operations by the beginning of their id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import click
from click.shell_completion import CompletionItem

from controlplane.cli.api_client import (
    ALERT_SERVICE,
    BALANCING_SERVICE,
    HA_SERVICE,
    NODE_SERVICE,
    OPERATION_SERVICE,
    VM_SERVICE,
    ApiClient,
    Document,
    ServerUnreachable,
)
from controlplane.cli.failures import Failure
from controlplane.cli.session import DEFAULT_SERVER, Session, session_of
from limiquantix.errors import ApiError, NotFound, Reason

_COMPLETION_DEADLINE_S = 1.0
"""A shell waits for this with every press of the Tab key."""


MAX_SEARCHED_OPERATION_COUNT = 5_000
"""How far back the beginning of an id is looked for: some seconds' worth of reading."""
_ID_BEGINNING = re.compile(r"[0-9a-f]{4,8}(-[0-9a-f-]{0,27})?", re.ASCII)


def is_id(text: str) -> bool:
    """Tell whether a text is a UUID, and thus taken as an id and never as a name."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def vm_id_of(client: ApiClient, name_or_id: str, project_id: str = "") -> str:
    """Return the id of a VM.

    Args:
        project_id: looks in this project only; "" in all.

    Raises:
        NotFound: no VM has that name.
        Failure: several projects have a VM of that name.
    """
    if is_id(name_or_id):
        return name_or_id.lower()
    matches = [vm for vm in list_vms(client, {"projectId": project_id}) if vm.get("name") == name_or_id]
    if not matches:
        where = f" in project {project_id}" if project_id else ""
        raise NotFound(Reason.VM_NOT_FOUND, f"there is no VM named {name_or_id!r}{where}")
    if len(matches) > 1:
        raise Failure(
            f"{len(matches)} VMs are named {name_or_id!r}",
            explanations=tuple(f"VM {vm.get('id')} of project {vm.get('projectId')}" for vm in matches),
            hint="name it by its id, or say --project",
        )
    return str(matches[0].get("id", ""))


def list_vms(client: ApiClient, filters: Document) -> Iterator[Document]:
    """Yield all VMs that match the filters of ListVMs, oldest first."""
    for page in client.pages(VM_SERVICE, "ListVMs", filters):
        yield from page.get("vms", ())


def node_id_of(client: ApiClient, name_or_id: str) -> str:
    """Return the id of a node.

    Raises:
        NotFound: no node has that host name.
    """
    if is_id(name_or_id):
        return name_or_id.lower()
    for node in list_nodes(client, {}):
        if node.get("hostname") == name_or_id:
            return str(node.get("id", ""))
    raise NotFound(Reason.NODE_NOT_FOUND, f"there is no node with the host name {name_or_id!r}")


def list_nodes(client: ApiClient, filters: Document) -> Iterator[Document]:
    """Yield all nodes that match the filters of ListNodes, oldest first."""
    for page in client.pages(NODE_SERVICE, "ListNodes", filters):
        yield from page.get("nodes", ())


def operation_id_of(client: ApiClient, id_or_beginning: str) -> str:
    """Return the id of an operation.

    Raises:
        UsageError: it is neither an id nor at least four characters of one.
        NotFound: none of the newest `MAX_SEARCHED_OPERATION_COUNT` operations begins so.
        Failure: several do.
    """
    beginning = id_or_beginning.lower()
    if is_id(beginning):
        return beginning
    if not _ID_BEGINNING.fullmatch(beginning):
        raise click.UsageError(
            f"{id_or_beginning!r:.60} is not the id of an operation, nor 4 characters or more of one"
        )
    pages = client.pages(OPERATION_SERVICE, "ListOperations", {})
    newest = islice((each for page in pages for each in page.get("operations", ())), MAX_SEARCHED_OPERATION_COUNT)
    matches = [each for each in newest if str(each.get("id", "")).startswith(beginning)]
    if not matches:
        raise NotFound(Reason.OPERATION_NOT_FOUND, f"no operation's id begins with {id_or_beginning!r}")
    if len(matches) > 1:
        raise Failure(
            f"the ids of {len(matches)} operations begin with {id_or_beginning!r}",
            explanations=tuple(
                f"operation {each.get('id')}: {each.get('kind')} {each.get('state')}" for each in matches
            ),
            hint="write more of it",
        )
    return str(matches[0].get("id", ""))


def id_by_beginning(named: str, what: str, documents: Callable[[], Iterable[Document]], shown_by: str = "") -> str:
    """Return the id that a person wrote, or wrote the beginning of.

    Args:
        what: the word for what it names, such as "alert".
        documents: reads those among which a beginning is looked for.
        shown_by: the command that lists them; "" for the usual one of that word.

    Raises:
        UsageError: it is neither an id nor at least four characters of one.
        Failure: none of them begins so, or several do.
    """
    beginning = named.lower()
    if is_id(beginning):
        return beginning
    if not _ID_BEGINNING.fullmatch(beginning):
        raise click.UsageError(f"{named!r:.60} is not the id of a {what}, nor 4 characters or more of one")
    searched = islice(documents(), MAX_SEARCHED_OPERATION_COUNT)
    matches = [str(each.get("id", "")) for each in searched if str(each.get("id", "")).startswith(beginning)]
    if len(matches) != 1:
        count = "no" if not matches else str(len(matches))
        hint = f"'{shown_by or f'limiquantix {what} list'}' shows them" if not matches else "write more of it"
        verb = "begins" if not matches else "begin"
        raise Failure(f"{count} {what}'s id {verb} with {named!r}", explanations=tuple(matches), hint=hint)
    return matches[0]


def complete_vm(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a VM from the first page that the server gives; nothing if it does not answer."""
    return _complete(context, VM_SERVICE, "ListVMs", "vms", "name", incomplete)


def complete_node(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the host name of a node, see `complete_vm`."""
    return _complete(context, NODE_SERVICE, "ListNodes", "nodes", "hostname", incomplete)


def complete_operation(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the newest operations, see `complete_vm`."""
    return _complete(context, OPERATION_SERVICE, "ListOperations", "operations", "id", incomplete)


def complete_recommendation(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the newest recommendations, see `complete_vm`."""
    return _complete(context, BALANCING_SERVICE, "ListRecommendations", "recommendations", "id", incomplete)


def complete_alert(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the newest alerts, see `complete_vm`."""
    return _complete(context, ALERT_SERVICE, "ListAlerts", "alerts", "id", incomplete)


def complete_fence(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the newest fences, see `complete_vm`."""
    return _complete(context, HA_SERVICE, "ListFences", "fences", "id", incomplete)


def _complete(
    context: click.Context, service: str, method: str, items: str, field: str, incomplete: str
) -> list[CompletionItem]:
    # The group's callback does not run during completion, so its parameters are read directly.
    given = context.obj if isinstance(context.obj, Session) else None
    server = str(context.find_root().params.get("server") or DEFAULT_SERVER)
    session = given or Session(server=server)
    try:
        with session.connect() as client:
            page = client.call(service, method, {"pageSize": 1000}, deadline_s=_COMPLETION_DEADLINE_S)
    except (ApiError, ServerUnreachable):
        return []
    names = [str(item.get(field, "")) for item in page.get(items, ())]
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and name.isprintable()]


def connect(context: click.Context) -> ApiClient:
    """Make a client for the session of a run."""
    return session_of(context).connect()
