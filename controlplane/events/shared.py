"""One entry of the log as all watchers of a process share it."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.event import NODE, LoggedEvent
from controlplane.events.messages import system_event
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.node_service_pb2 import NodeUpdate, SystemEvent
from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate

_FORM_COUNT = 4
"""The stored bytes, the message made of them, and that once more inside of an update, each about as large."""

_OWN_BYTES = 2_048
"""The entry itself without its document."""


class SharedEvent:
    """An entry with the messages made of it: each is made once, when first asked for.

    Hundreds of watchers send the same message objects, so nobody may ever change one.
    """

    __slots__ = ("_node", "_node_updates", "_system_event", "_vm", "_vm_updates", "entry", "revision", "vm_ids")

    def __init__(self, entry: LoggedEvent, vm_ids: Sequence[str] = ()) -> None:
        self.entry = entry
        self.revision = entry.revision
        self.vm_ids = vm_ids
        self._vm: VirtualMachine | None = None
        self._node: Node | None = None
        self._vm_updates: dict[int, VMUpdate] = {}
        self._node_updates: dict[int, NodeUpdate] = {}
        self._system_event: SystemEvent | None = None

    @property
    def size_bytes(self) -> int:
        """Roughly what it keeps in memory once it is parsed."""
        return _OWN_BYTES + _FORM_COUNT * len(self.entry.document)

    def vm(self) -> VirtualMachine:
        """The VM after the change."""
        if self._vm is None:
            self._vm = VirtualMachine.FromString(self.entry.document)
            self._vm.revision = self.revision
        return self._vm

    def vm_update(self, kind: VMUpdate.UpdateType.ValueType) -> VMUpdate:
        """The change as an update of that type."""
        update = self._vm_updates.get(kind)
        if update is None:
            update = self._vm_updates[kind] = VMUpdate(type=kind, vm=self.vm(), revision=self.revision)
        return update

    def node(self) -> Node:
        """The node after the change, with the VMs that were on it when the entry was read."""
        if self._node is None:
            self._node = Node.FromString(self.entry.document)
            self._node.status.vm_ids.extend(self.vm_ids)
            self._node.revision = self.revision
        return self._node

    def node_update(self, kind: NodeUpdate.UpdateType.ValueType) -> NodeUpdate:
        """The change as an update of that type."""
        update = self._node_updates.get(kind)
        if update is None:
            update = self._node_updates[kind] = NodeUpdate(type=kind, node=self.node(), revision=self.revision)
        return update

    def system_event(self) -> SystemEvent:
        """What happened."""
        if self._system_event is None:
            self._system_event = system_event(self.entry)
        return self._system_event


async def read_after(tx: Transaction, revision: int, limit: int) -> list[SharedEvent]:
    """Read up to `limit` entries with larger revisions, in order."""
    entries = await tx.events_after(revision, limit)
    changed_nodes = {entry.resource_id for entry in entries if entry.resource_type == NODE and entry.document}
    # A node's document has no VMs: what places a VM does not write its node.
    vm_ids = await tx.vm_ids_by_node(changed_nodes) if changed_nodes else {}
    return [SharedEvent(entry, vm_ids.get(entry.resource_id, ())) for entry in entries]
