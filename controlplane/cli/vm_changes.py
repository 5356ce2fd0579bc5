"""What the commands on one VM share: how it is named, how a change is asked for and what is printed of it."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from controlplane.cli.api_client import (
    CHANGE_DEADLINE_S,
    NODE_SERVICE,
    OPERATION_SERVICE,
    VM_SERVICE,
    ApiClient,
    ConnectionLost,
    Document,
    ServerUnreachable,
)
from controlplane.cli.failures import Unreachable, refused
from controlplane.cli.lookup import complete_vm, connect, vm_id_of
from controlplane.cli.machine_views import pending_text
from controlplane.cli.operation_views import progress_look
from controlplane.cli.output import print_document
from controlplane.cli.progress import Look, waiting
from controlplane.cli.session import session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.views import is_template, node_name, vm_state
from limiquantix.errors import ApiError

MAX_REQUEST_ID_CHARS = 128
"""What the server keeps of one."""

vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_vm)
project_option = click.option("--project", metavar="ID", default="", help="Project in which to look for the name.")


@dataclass(frozen=True, slots=True)
class Asking:
    """How a change is asked for: whether it is waited for, and the id under which it may be asked for again."""

    waits: bool = True
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class RequestId(click.ParamType[str]):
    """A request id, which goes into a header."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that it can be sent."""
        text = str(value)
        if not (
            text.strip() == text and text.isascii() and text.isprintable() and 1 <= len(text) <= MAX_REQUEST_ID_CHARS
        ):
            self.fail(f"{text!r:.60} is not 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters", param, ctx)
        return text


def asking_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--no-wait` and `--request-id`, and hand it what they say as `asking`."""

    @click.option("--no-wait", is_flag=True, help="Return at once and print the operation; the change goes on.")
    @click.option(
        "--request-id",
        type=RequestId(),
        metavar="ID",
        help="Makes the command safe to repeat: a second one with this id only tells how the first one went.  "
        "[default: a random one]",
    )
    @functools.wraps(command)
    def asking_command(*args: Any, no_wait: bool, request_id: str | None, **kwargs: Any) -> None:
        asking = Asking(waits=not no_wait, request_id=request_id) if request_id else Asking(waits=not no_wait)
        command(*args, asking=asking, **kwargs)

    return asking_command


def change_vm(
    context: click.Context,
    method: str,
    name_or_id: str,
    project: str,
    doing: str,
    asking: Asking,
    request: Document | None = None,
    deadline_s: float = CHANGE_DEADLINE_S,
) -> None:
    """Call a method that changes one VM, wait, and print what it has become."""
    with connect(context) as client:
        vm_id = vm_id_of(client, name_or_id, project)
        full_request = {**(request or {}), "id": vm_id}
        changed = ask(context, client, method, full_request, f"{doing} {name_or_id}", name_or_id, asking, deadline_s)
        if changed is not None:
            print_changed(context, client, changed)


def ask(
    context: click.Context,
    client: ApiClient,
    method: str,
    request: Document,
    doing: str,
    name_or_id: str,
    asking: Asking,
    deadline_s: float = CHANGE_DEADLINE_S,
    look: Look | None = None,
    hint: str = "",
) -> Document | None:
    """Ask for a change of a VM and return the answer once it is done; at once and without one if nobody waits.

    Args:
        request: names the VM in "id" or "vmId", unless it does not exist yet.
        doing: what is done in words, such as "starting web-1".
        look: tells how far it is; None tells it from the operation's steps.
        hint: how to find out what became of it if the wait is cut short; "" names the VM's own command.

    Raises:
        Failure: the server refused it, or it failed.
        Unreachable: the server is gone; whether the change happens is not known.
        ServerUnreachable: the server was never there.
    """
    operation_ids: list[str] = []
    of_vm = {"resourceId": str(request.get("id", "") or request.get("vmId", ""))}
    if look is None:
        look = progress_look(session_of(context), of_vm, lambda each: each.get("requestId") == asking.request_id)
    try:
        with waiting(doing, hint=hint or look_hint(name_or_id), look=look):
            answer = client.change(
                VM_SERVICE,
                method,
                request,
                deadline_s,
                request_id=asking.request_id,
                waits=asking.waits,
                on_operation=operation_ids.append,
            )
    except ApiError as error:
        raise refused(error, operation_ids[-1] if operation_ids else "") from error
    except ConnectionLost as error:
        hint = f"the same command with --request-id {asking.request_id} does nothing twice, and tells how it went"
        raise Unreachable(str(error), hint=hint) from error
    if asking.waits or not operation_ids:
        return answer
    print_begun(context, client, operation_ids[-1], doing)
    return None


def print_begun(context: click.Context, client: ApiClient, operation_id: str, doing: str) -> None:
    """Print which operation goes on, and how to follow it; for programs, its document."""
    session = session_of(context)
    if session.prints_tables:
        shown = one_line(operation_id)
        click.echo(f"operation {shown} is {one_line(doing)}; 'limiquantix operation wait {shown}' waits for it")
    else:
        operation = client.insist(OPERATION_SERVICE, "GetOperation", {"id": operation_id})
        print_document(operation, session.output)


def print_changed(context: click.Context, client: ApiClient, changed: Document) -> None:
    """Print in a line what a VM is after a change, or its document."""
    session = session_of(context)
    if not session.prints_tables:
        print_document(changed, session.output)
        return
    where = node_name(changed, hostname_of(client, changed))
    place = f" on {one_line(where)}" if where else ""
    state = "a template" if is_template(changed) else vm_state(changed)
    click.echo(f"VM {one_line(str(changed.get('name', '')))} ({changed.get('id', '')}) is {state}{place}")
    if waiting_changes := pending_text(changed):
        click.echo(f"at its next start: {one_line(waiting_changes)}")


def look_hint(name_or_id: str) -> str:
    """Say how to find out what became of a change that nobody waited for."""
    return f"'limiquantix vm show {name_or_id}' tells what became of it"


def hostname_of(client: ApiClient, found: Mapping[str, Any]) -> dict[str, str]:
    """Look up the node's name, which is a nicety: without an answer the id serves."""
    node_id = str(found.get("status", {}).get("nodeId", ""))
    if not node_id:
        return {}
    try:
        return {node_id: str(client.call(NODE_SERVICE, "GetNode", {"id": node_id}).get("hostname", node_id))}
    except (ApiError, ServerUnreachable):
        return {}
