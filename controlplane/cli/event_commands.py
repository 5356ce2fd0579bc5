"""`limiquantix events`: what happened to VMs and nodes, and what happens."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from controlplane.cli.api_client import NODE_SERVICE, VM_SERVICE, ApiClient, Document
from controlplane.cli.event_views import (
    COLUMNS,
    SEVERITIES,
    TYPES,
    WIDE_COLUMNS,
    EventView,
    View,
    node_event,
    system_event,
    vm_event,
)
from controlplane.cli.following import Feed, follow, revision_of
from controlplane.cli.lookup import complete_node, complete_vm, connect, node_id_of, vm_id_of
from controlplane.cli.output import print_document, print_piece, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, Session, session_of
from controlplane.cli.sizes import parse_age_s
from limiquantix.errors import OutOfRange

DEFAULT_LIMIT = 50
MAX_LIMIT = 1_000
"""What the API gives at once."""
SEARCHED_COUNT = 5_000
"""How far back the log of everything is read for events that match filters: about a second's worth."""

_NO_NODE = "00000000-0000-0000-0000-000000000000"


class Since(click.ParamType[datetime]):
    """A moment, given as such or by how long ago it was."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read "1h30m", or a time of RFC 3339."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        try:
            return datetime.now(UTC) - timedelta(seconds=parse_age_s(text))
        except (ValueError, OverflowError):
            pass
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            words = "is neither a duration such as 15m, 1h30m or 2d, nor a time such as 2025-06-01T12:00:00Z"
            self.fail(f"{text!r:.60} {words}", param, ctx)
        return moment


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events; empty parts do not filter."""

    vm_id: str = ""
    node_id: str = ""
    type: str = ""
    severity: str = ""
    since: datetime | None = None

    def has(self, event: EventView) -> bool:
        """Tell whether an event is among them."""
        return (
            event.resource_id == (self.vm_id or self.node_id or event.resource_id)
            and event.type == (self.type or event.type)
            and event.severity == (self.severity or event.severity)
            and (self.since is None or event.moment > self.since)
        )

    @property
    def is_everything(self) -> bool:
        """Whether nothing is filtered."""
        return not (self.vm_id or self.node_id or self.type or self.severity or self.since)


@click.command(cls=ApiCommand)
@click.option("--vm", metavar="VM", shell_complete=complete_vm, help="Only those of this VM, by name or id.")
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only those of this node itself.")
@click.option("--project", metavar="ID", default="", help="Project in which to look for the name of --vm.")
@click.option(
    "--type", "type_", type=click.Choice(TYPES), metavar="TYPE", help="Only of this type, such as vm.crashed."
)
@click.option("--severity", type=click.Choice(SEVERITIES, case_sensitive=False), help="Only of this severity.")
@click.option(
    "--since", type=Since(), metavar="TIME", help="Only after this: 15m, 1h30m, 2d ago, or 2025-06-01T12:00:00Z."
)
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    metavar="N",
    help=f"At most this many, the newest.  [default: {DEFAULT_LIMIT}, with --since {MAX_LIMIT}, with --follow none]",
)
@click.option("--wide", "-w", is_flag=True, help="More columns: the id of what it is about, revision.")
@click.option("--follow", "-f", "follows", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.pass_context
def events(
    context: click.Context,
    vm: str | None,
    node: str | None,
    project: str,
    type_: str | None,
    severity: str | None,
    since: datetime | None,
    limit: int | None,
    wide: bool,
    follows: bool,
) -> None:
    """Show what happened to VMs and nodes.

    The newest events, the oldest of them first. With --follow a line for everything that happens from now on; --limit
    or --since show what was before it too. A connection that breaks is made again, and nothing is left out.

    --output json gives the API's own documents, newest first; with --follow a line each, as they come.

    \b
    Example:
      limiquantix events --vm web-1 --since 1h
      limiquantix events --follow --severity error
    """
    if vm and node:
        raise click.UsageError("--vm and --node are about two different things; give one of them")
    session = session_of(context)
    with connect(context) as client:
        wanted = Wanted(
            vm_id=vm_id_of(client, vm, project) if vm else "",
            node_id=node_id_of(client, node) if node else "",
            type=type_ or "",
            severity=severity or "",
            since=since,
        )
        if follows:
            _follow(client, session, wanted, limit, wide=wide)
            return
        with waiting("reading events"):
            found, view = _past(client, wanted, _limit(wanted, limit))
    if session.prints_tables:
        columns = WIDE_COLUMNS if wide else COLUMNS
        print_table(columns, [view(event).cells(wide=wide) for event in reversed(found)])
    else:
        print_document({"events": found}, session.output)


def _limit(wanted: Wanted, limit: int | None) -> int:
    return limit or (MAX_LIMIT if wanted.since else DEFAULT_LIMIT)


def _past(client: ApiClient, wanted: Wanted, limit: int) -> tuple[list[Document], View]:
    """Read the newest events that match, newest first."""
    if wanted.vm_id:
        request: Document = {"vmId": wanted.vm_id, "type": wanted.type, "severity": wanted.severity, "limit": limit}
        if wanted.since:
            request["since"] = wanted.since.astimezone(UTC).isoformat()
        return client.call(VM_SERVICE, "ListVMEvents", request).get("events", []), vm_event
    if wanted.node_id:
        types = [{"info": "NORMAL"}.get(wanted.severity, wanted.severity.upper())] if wanted.severity else []
        # Of the rest the method knows nothing, so the choice is made here, from all it gives.
        request = {"nodeId": wanted.node_id, "types": types, "limit": MAX_LIMIT}
        found = client.call(NODE_SERVICE, "ListNodeEvents", request).get("events", [])
        return [event for event in found if wanted.has(node_event(event))][:limit], node_event
    return _past_of_all(client, wanted, limit), system_event


def _past_of_all(client: ApiClient, wanted: Wanted, limit: int) -> list[Document]:
    """Read the end of the log of everything, as a stream that is left when it has come to what is newest now."""
    newest = _newest_revision(client)
    count = limit if wanted.is_everything else SEARCHED_COUNT
    begin = max(newest - count, 1)
    if newest <= begin:
        return []
    found: deque[Document] = deque(maxlen=limit)
    try:
        seen = _collect(client, wanted, begin, newest, found)
    except OutOfRange as error:
        begin = int(error.metadata.get("oldest", newest))
        seen = _collect(client, wanted, begin, newest, found) if begin < newest else None
    if not wanted.is_everything and seen and begin > 1 and not _reaches(seen, wanted, found):
        client.warn(f"only the newest {SEARCHED_COUNT} events were looked through; --vm and --node look further back")
    return list(reversed(found))


def _collect(client: ApiClient, wanted: Wanted, after: int, newest: int, found: deque[Document]) -> EventView | None:
    """Read the log up to a revision; returns the oldest event that was looked at."""
    oldest: EventView | None = None
    request = {"fromRevision": str(after)}
    with closing(client.stream(NODE_SERVICE, "StreamEvents", request)) as messages:
        for message in messages:
            event = system_event(message)
            oldest = oldest or event
            if wanted.has(event):
                found.append(message)
            if event.revision >= newest:
                break
    return oldest


def _reaches(oldest: EventView, wanted: Wanted, found: deque[Document]) -> bool:
    """Tell whether no event that is wanted can be older than those looked at."""
    return len(found) == found.maxlen or (wanted.since is not None and oldest.moment <= wanted.since)


def _follow(client: ApiClient, session: Session, wanted: Wanted, limit: int | None, *, wide: bool) -> None:
    """Print what was, if that is asked for, and then what happens until Ctrl-C."""
    try:
        with waiting("reading events"):
            newest = _newest_revision(client)
            found, view = _past(client, wanted, _limit(wanted, limit)) if limit or wanted.since else ([], vm_event)
        for event in reversed(found):
            # What has no revision yet, or a newer one, comes with the stream.
            if 0 < view(event).revision <= newest:
                _print(session, event, view(event), wide=wide)
        anew = "what happened meanwhile is not shown"
        feed = Feed(NODE_SERVICE, "StreamEvents", {}, when_anew=anew, from_revision=newest)
        with closing(follow(client, feed)) as messages:
            for event in messages:
                if wanted.has(system_event(event)):
                    _print(session, event, system_event(event), wide=wide)
    except KeyboardInterrupt:
        return


def _print(session: Session, event: Document, view: EventView, *, wide: bool) -> None:
    if session.prints_tables:
        view.print_line(wide=wide)
    else:
        print_piece(event, session.output)


def _newest_revision(client: ApiClient) -> int:
    """Ask how far the log reaches: a watch of the VMs of no node begins with just that."""
    request = {"nodeId": _NO_NODE, "sendBookmarks": True}
    with closing(client.stream(VM_SERVICE, "WatchVMs", request)) as messages:
        return next((revision_of(message) for message in messages), 0)
