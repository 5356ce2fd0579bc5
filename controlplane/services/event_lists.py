"""Lists of past events of one VM or node, newest first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone

from controlplane.domain import errors
from controlplane.domain.event import EventFilter, EventType, LoggedEvent
from controlplane.domain.query import DEFAULT_PAGE_SIZE
from controlplane.events.messages import NODE_SEVERITIES, VM_SEVERITIES, node_event, vm_event
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.node_pb2 import NodeEvent
from limiquantix.errors import ApiError, FieldViolation, InvalidArgument

_VM_TYPES = frozenset(str(kind) for kind in EventType if kind.startswith("vm."))

_RFC3339 = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)[Tt](?P<time>\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?"
    r"(?:[Zz]|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3]):(?P<minutes>[0-5]\d))",
    re.ASCII,
)


class EventListService:
    """The use cases of looking back."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of_vm(self, request: vm_api.ListVMEventsRequest) -> list[vm_api.VMEvent]:
        """List a VM's events, also after it was deleted, for as long as the log keeps them.

        Raises:
            InvalidArgument: a filter that is none, with those there are.
            NotFound: there is no such VM, and nothing is known of one.
        """
        wanted = _vm_filter(request)

        async def read(tx: Transaction) -> list[LoggedEvent]:
            is_known = await tx.get_vm(request.vm_id) is not None
            return await _newest(tx, wanted, request.limit, None if is_known else errors.vm_not_found(request.vm_id))

        return [vm_event(entry) for entry in await self._store.read(read)]

    async def of_node(self, request: node_api.ListNodeEventsRequest) -> list[NodeEvent]:
        """List a node's own events; those of the VMs on it are not among them. Raises NotFound as `of_vm`."""
        severities = [NODE_SEVERITIES[kind] for kind in request.types]
        wanted = EventFilter(resource_id=request.node_id, severities=frozenset().union(*severities))

        async def read(tx: Transaction) -> list[LoggedEvent]:
            is_known = await tx.get_node(request.node_id) is not None
            return await _newest(
                tx, wanted, request.limit, None if is_known else errors.node_not_found(request.node_id)
            )

        return [node_event(entry) for entry in await self._store.read(read)]


async def _newest(tx: Transaction, wanted: EventFilter, limit: int, unknown: ApiError | None) -> list[LoggedEvent]:
    """Read the newest; raises `unknown` if that is given and there are none at all of the resource."""
    found = list(await tx.newest_events(wanted, limit or DEFAULT_PAGE_SIZE))
    if not found and unknown is not None and not await tx.newest_events(EventFilter(wanted.resource_id), 1):
        raise unknown
    return found


def _vm_filter(request: vm_api.ListVMEventsRequest) -> EventFilter:
    violations = []
    if request.type and request.type not in _VM_TYPES:
        violations.append(FieldViolation("type", f"there is no {request.type!r}; use {_listed(_VM_TYPES)}"))
    if request.severity and request.severity not in VM_SEVERITIES:
        violations.append(FieldViolation("severity", f"there is no {request.severity!r}; use {_listed(VM_SEVERITIES)}"))
    since = _since(request.since) if request.since else None
    if request.since and since is None:
        words = f"{request.since!r} is no time of RFC 3339; write it like 2025-06-01T12:00:00Z"
        violations.append(FieldViolation("since", words))
    if violations:
        raise InvalidArgument.from_violations(violations)
    return EventFilter(
        resource_id=request.vm_id,
        types=frozenset({request.type}) if request.type else frozenset(),
        severities=VM_SEVERITIES.get(request.severity, frozenset()),
        since=since,
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _since(text: str) -> datetime | None:
    """The first moment that is after the given one, in the microseconds of the log; None if it is no time."""
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        return None
    offset = timedelta(hours=int(parts["hours"] or 0), minutes=int(parts["minutes"] or 0))
    zone = timezone(-offset if parts["sign"] == "-" else offset)
    microseconds = int((parts["fraction"] or "0").ljust(9, "0")[:6])
    try:
        moment = datetime.fromisoformat(f"{parts['date']}T{parts['time']}").replace(tzinfo=zone)
        return moment.astimezone(UTC) + timedelta(microseconds=microseconds + 1)
    except (ValueError, OverflowError):
        return None
