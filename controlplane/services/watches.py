"""What watches of VMs and nodes, and the stream of events, show of the log. `controlplane.events` runs them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from controlplane.access.visibility import EverythingVisible, Sight, Visibility
from controlplane.domain import documents, errors
from controlplane.domain.access import Permission, VisiblePlaces
from controlplane.domain.event import FOLDER_BEFORE, NODE, NODE_BEFORE, VM, Change, EventFilter, LoggedEvent
from controlplane.domain.query import Cursor, NodeFilter, VmFilter
from controlplane.events.messages import SYSTEM_TYPES
from controlplane.events.shared import SharedEvent
from controlplane.events.watch import Place, StatePage, Watches
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.vm_pb2 import VirtualMachine

_LAST_EVENT_COUNT = 50
"""Of a resource that is gone, how many of its newest entries are looked through for its end: it is the last but for
alerts."""


@dataclass(frozen=True, slots=True)
class WatchService:
    """The use cases of watching. Errors of all are those of `Watches.watch`, and come while the result is iterated."""

    watches: Watches
    visibility: Visibility = field(default_factory=EverythingVisible)

    def vm(self, request: vm_api.WatchVMRequest) -> AsyncGenerator[VirtualMachine, None]:
        """Give a VM now and after each change; deleted, it is TERMINATED in the last message."""
        return self.watches.watch(_OneVm(request.vm_id, self.visibility.of_caller()), request.from_revision)

    def vms(self, request: vm_api.WatchVMsRequest) -> AsyncGenerator[vm_api.VMUpdate, None]:
        """Give the VMs that match, then each change of what matches."""
        return self.watches.watch(_Vms(request, self.visibility.of_caller()), request.from_revision)

    def node(self, request: node_api.WatchNodeRequest) -> AsyncGenerator[Node, None]:
        """Give a node now and after each change, until it is removed."""
        return self.watches.watch(_OneNode(request.node_id), request.from_revision)

    def nodes(self, request: node_api.WatchNodesRequest) -> AsyncGenerator[node_api.NodeUpdate, None]:
        """Give the nodes that match, then each change of what matches."""
        return self.watches.watch(_Nodes(request), request.from_revision)

    def events(self, request: node_api.StreamEventsRequest) -> AsyncGenerator[node_api.SystemEvent, None]:
        """Give what happens from now on, and nothing else: a quiet system is silent."""
        return self.watches.follow(_Events(request, self.visibility.of_caller()), request.from_revision)


class _OneVm:
    sends_bookmarks = False

    def __init__(self, vm_id: str, sight: Sight) -> None:
        self._vm_id = vm_id
        self._sight = sight
        self.is_over = False

    def wants(self, shared: SharedEvent) -> bool:
        return shared.entry.resource_id == self._vm_id and shared.entry.change is not Change.NONE

    def change(self, shared: SharedEvent) -> VirtualMachine | None:
        if not _shows(self._sight.places(Permission.VM_READ), shared.vm()):
            return None
        self.is_over = shared.entry.change is Change.DELETED
        return shared.vm()

    def place(self, shared: SharedEvent) -> Place:
        return _place(shared.vm())

    async def read_page(self, tx: Transaction, after: Cursor | None, limit: int) -> StatePage[VirtualMachine]:
        vm = await tx.get_vm(self._vm_id)
        if vm is None:
            raise errors.vm_not_found(self._vm_id)
        return StatePage([documents.virtual_machine(vm)])

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        if await tx.get_vm(self._vm_id) is None and not await _ended_after(tx, self._vm_id, revision):
            raise errors.vm_not_found(self._vm_id)

    def with_revision(self, message: VirtualMachine, revision: int) -> VirtualMachine:
        copy = VirtualMachine()
        copy.CopyFrom(message)
        copy.revision = revision
        return copy

    def bookmark(self, revision: int) -> VirtualMachine:
        raise AssertionError("WatchVM has no bookmarks")


class _Vms:
    is_over = False

    def __init__(self, request: vm_api.WatchVMsRequest, sight: Sight) -> None:
        self._sight = sight
        self._node_id = request.node_id
        self._project_id = request.project_id
        self._labels = dict(request.labels)
        self.sends_bookmarks = request.send_bookmarks

    def wants(self, shared: SharedEvent) -> bool:
        entry = shared.entry
        return (
            entry.resource_type == VM
            and entry.change is not Change.NONE
            and self._project_id in ("", entry.project_id)
            and self._node_id in ("", entry.node_id, entry.event.metadata.get(NODE_BEFORE))
            and _may_show(self._sight.places(Permission.VM_READ), entry)
        )

    def change(self, shared: SharedEvent) -> vm_api.VMUpdate | None:
        entry = shared.entry
        node_before = entry.event.metadata.get(NODE_BEFORE, entry.node_id)
        visible, vm = self._sight.places(Permission.VM_READ), shared.vm()
        folder_before = entry.event.metadata.get(FOLDER_BEFORE, vm.folder_id)
        seen = _seen_as(
            shared,
            self._labels,
            shared.vm().labels if self._labels else {},
            is_here=self._node_id in ("", entry.node_id) and _shows(visible, vm),
            was_here=self._node_id in ("", node_before)
            and (visible is None or visible.shows(vm.project_id, folder_before)),
        )
        return None if seen is Change.NONE else shared.vm_update(_VM_UPDATES[seen])

    def place(self, shared: SharedEvent) -> Place:
        return _place(shared.vm())

    async def read_page(self, tx: Transaction, after: Cursor | None, limit: int) -> StatePage[vm_api.VMUpdate]:
        wanted = VmFilter(
            project_id=self._project_id,
            node_id=self._node_id,
            labels=self._labels,
            visible=self._sight.places(Permission.VM_READ),
        )
        page = await tx.list_vms(wanted, after, limit)
        return StatePage(
            [vm_api.VMUpdate(type=vm_api.VMUpdate.ADDED, vm=documents.virtual_machine(vm)) for vm in page.items],
            page.next_cursor,
        )

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        """No VMs are as good to watch as some."""

    def with_revision(self, message: vm_api.VMUpdate, revision: int) -> vm_api.VMUpdate:
        copy = vm_api.VMUpdate()
        copy.CopyFrom(message)
        copy.revision = copy.vm.revision = revision
        return copy

    def bookmark(self, revision: int) -> vm_api.VMUpdate:
        return vm_api.VMUpdate(type=vm_api.VMUpdate.BOOKMARK, revision=revision)


class _OneNode:
    sends_bookmarks = False

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self.is_over = False

    def wants(self, shared: SharedEvent) -> bool:
        return shared.entry.resource_id == self._node_id and shared.entry.change is not Change.NONE

    def change(self, shared: SharedEvent) -> Node:
        self.is_over = shared.entry.change is Change.DELETED
        return shared.node()

    def place(self, shared: SharedEvent) -> Place:
        return _place(shared.node())

    async def read_page(self, tx: Transaction, after: Cursor | None, limit: int) -> StatePage[Node]:
        node = await tx.get_node(self._node_id)
        if node is None:
            raise errors.node_not_found(self._node_id)
        vm_ids = await tx.vm_ids_by_node([node.id])
        return StatePage([documents.node(node, vm_ids[node.id])])

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        if await tx.get_node(self._node_id) is None and not await _ended_after(tx, self._node_id, revision):
            raise errors.node_not_found(self._node_id)

    def with_revision(self, message: Node, revision: int) -> Node:
        copy = Node()
        copy.CopyFrom(message)
        copy.revision = revision
        return copy

    def bookmark(self, revision: int) -> Node:
        raise AssertionError("WatchNode has no bookmarks")


class _Nodes:
    is_over = False

    def __init__(self, request: node_api.WatchNodesRequest) -> None:
        self._labels = dict(request.labels)
        self.sends_bookmarks = request.send_bookmarks

    def wants(self, shared: SharedEvent) -> bool:
        return shared.entry.resource_type == NODE and shared.entry.change is not Change.NONE

    def change(self, shared: SharedEvent) -> node_api.NodeUpdate | None:
        seen = _seen_as(shared, self._labels, shared.node().labels if self._labels else {})
        return None if seen is Change.NONE else shared.node_update(_NODE_UPDATES[seen])

    def place(self, shared: SharedEvent) -> Place:
        return _place(shared.node())

    async def read_page(self, tx: Transaction, after: Cursor | None, limit: int) -> StatePage[node_api.NodeUpdate]:
        page = await tx.list_nodes(NodeFilter(labels=self._labels), after, limit)
        vm_ids = await tx.vm_ids_by_node([node.id for node in page.items])
        return StatePage(
            [
                node_api.NodeUpdate(type=node_api.NodeUpdate.ADDED, node=documents.node(node, vm_ids[node.id]))
                for node in page.items
            ],
            page.next_cursor,
        )

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        """No nodes are as good to watch as some."""

    def with_revision(self, message: node_api.NodeUpdate, revision: int) -> node_api.NodeUpdate:
        copy = node_api.NodeUpdate()
        copy.CopyFrom(message)
        copy.revision = copy.node.revision = revision
        return copy

    def bookmark(self, revision: int) -> node_api.NodeUpdate:
        return node_api.NodeUpdate(type=node_api.NodeUpdate.BOOKMARK, revision=revision)


class _Events:
    is_over = False
    sends_bookmarks = False

    def __init__(self, request: node_api.StreamEventsRequest, sight: Sight) -> None:
        self._sight = sight
        self._node_id = request.node_id
        self._types = frozenset(request.types)

    def wants(self, shared: SharedEvent) -> bool:
        entry = shared.entry
        node_before = entry.event.metadata.get(NODE_BEFORE)  # what left a node is news of that node too
        return self._node_id in ("", entry.node_id, node_before) and (
            not self._types or SYSTEM_TYPES[entry.event.type] in self._types
        )

    def _shows(self, shared: SharedEvent) -> bool:
        visible = self._sight.places(Permission.EVENT_READ)
        if visible is None or not shared.entry.project_id:
            return visible is None or visible.sees_cluster
        has_document = shared.entry.change is not Change.NONE
        folder_id = shared.vm().folder_id if has_document else self._sight.vm_folder(shared.entry.resource_id)
        return visible.shows(shared.entry.project_id, folder_id)

    def change(self, shared: SharedEvent) -> node_api.SystemEvent | None:
        return shared.system_event() if self._shows(shared) else None

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        """There is always something to happen."""

    def bookmark(self, revision: int) -> node_api.SystemEvent:
        raise AssertionError("StreamEvents has no bookmarks")


_VM_UPDATES: Mapping[Change, vm_api.VMUpdate.UpdateType.ValueType] = {
    Change.ADDED: vm_api.VMUpdate.ADDED,
    Change.MODIFIED: vm_api.VMUpdate.MODIFIED,
    Change.DELETED: vm_api.VMUpdate.DELETED,
}
_NODE_UPDATES: Mapping[Change, node_api.NodeUpdate.UpdateType.ValueType] = {
    Change.ADDED: node_api.NodeUpdate.ADDED,
    Change.MODIFIED: node_api.NodeUpdate.MODIFIED,
    Change.DELETED: node_api.NodeUpdate.DELETED,
}


def _shows(visible: VisiblePlaces | None, vm: VirtualMachine) -> bool:
    return visible is None or visible.shows(vm.project_id, vm.folder_id)


def _may_show(visible: VisiblePlaces | None, entry: LoggedEvent) -> bool:
    """Whether somebody may see what an entry is about, told without its document."""
    return visible is None or bool(visible.folder_ids) or entry.project_id in visible.project_ids


def _seen_as(
    shared: SharedEvent,
    wanted: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    is_here: bool = True,
    was_here: bool = True,
) -> Change:
    """Tell what a change is to those who see only what has the wanted labels, and is where they look."""
    entry = shared.entry
    has_labels = _has(labels, wanted)
    had_labels = has_labels if entry.labels_before is None else _has(entry.labels_before, wanted)
    is_seen, was_seen = is_here and has_labels, was_here and had_labels
    if entry.change is not Change.MODIFIED:
        return entry.change if is_seen else Change.NONE
    if is_seen:
        return Change.MODIFIED if was_seen else Change.ADDED
    return Change.DELETED if was_seen else Change.NONE


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _place(message: VirtualMachine | Node) -> Place:
    return message.created_at.seconds, message.created_at.nanos, message.id


async def _ended_after(tx: Transaction, resource_id: str, revision: int) -> bool:
    """Whether a resource that is gone went after the revision; its end may have no revision yet."""
    newest = await tx.newest_events(EventFilter(resource_id=resource_id), _LAST_EVENT_COUNT)
    return any(entry.change is Change.DELETED and not 0 < entry.revision <= revision for entry in newest)
