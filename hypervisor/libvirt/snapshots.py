"""Snapshots of domains: libvirt keeps the tree and saves memory, the images hold the data.

A snapshot with memory is libvirt's own internal one. One without is taken of the images by us, see `disk_snapshots`,
and then libvirt is told of it, as of one of a domain that was off; going back to it is ours too. The data are there
before the record of them, and go before it: whatever is cut short can be repeated.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NoReturn

from hypervisor.errors import (
    Refused,
    SnapshotNameTaken,
    SnapshotNotFound,
    SnapshotUnsupported,
    Unavailable,
    WrongState,
)
from hypervisor.libvirt import domain_xml, snapshot_xml
from hypervisor.libvirt.disk_snapshots import DiskSnapshots
from hypervisor.libvirt.domain_notes import carry_notes
from hypervisor.libvirt.domain_operations import OFF
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.freezing import Freezer
from hypervisor.libvirt.qcow2_snapshots import ImageSnapshot, UnreadableImage, read_snapshots
from hypervisor.libvirt.snapshot_xml import SnapshotDisk, SnapshotDocument
from hypervisor.libvirt.visits import Visits
from hypervisor.snapshots import Snapshot, SnapshotRequest, Snapshots, in_tree_order
from hypervisor.types import PowerState

SAVE_DEADLINE_S: Final = 300.0
"""Writing or reading 64 GiB of memory takes a minute or two on a good disk."""
FROZEN_LIMIT_S: Final = 20.0
"""How long a guest's file systems may stand still for a snapshot, which takes milliseconds when all is well."""
_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class LibvirtSnapshots(Snapshots):
    """The snapshots of one host's domains."""

    def __init__(self, visits: Visits, *, frozen_limit_s: float = FROZEN_LIMIT_S) -> None:
        self._visits = visits
        self._freezer = Freezer(visits)
        self._images = DiskSnapshots()
        self._frozen_limit_s = frozen_limit_s

    async def thaw_all(self) -> None:
        """Begin to thaw what an earlier process, or one of ours that lost libvirt, left frozen."""
        await self._freezer.thaw_all()

    async def close(self) -> None:
        """Give up what goes on in the background."""
        await self._freezer.close()

    async def create(self, vm_id: str, request: SnapshotRequest) -> Snapshot:
        """See `Snapshots`."""
        prepare = partial(self._prepare, vm_id, request)
        existing = await self._visits.change(vm_id, prepare, deadline_s=SAVE_DEADLINE_S)
        if existing is not None:
            return await self._sized(existing)
        if request.include_memory:
            save = partial(self._save_memory, vm_id, request)
            made = await self._visits.change(vm_id, save, deadline_s=SAVE_DEADLINE_S)
        elif request.quiesce:
            made = await self._create_frozen(vm_id, request)
        else:
            save_disks = partial(self._save_disks, vm_id, request, 0, math.inf)
            made = await self._visits.change(vm_id, save_disks, deadline_s=SAVE_DEADLINE_S)
        return await self._sized(made)

    async def _create_frozen(self, vm_id: str, request: SnapshotRequest) -> SnapshotDocument:
        """Save while the guest's file systems are frozen; they are thawed however this ends."""
        try:
            frozen_count = await self._freezer.freeze(vm_id)
            until_s = time.monotonic() + self._frozen_limit_s
            save = partial(self._save_disks, vm_id, request, frozen_count, until_s)
            return await self._visits.change(vm_id, save, deadline_s=self._frozen_limit_s)
        finally:
            await self._freezer.thaw(vm_id)

    async def revert(self, vm_id: str, snapshot_id: str, *, start: bool = False) -> None:
        """See `Snapshots`."""
        work = partial(self._revert, vm_id, snapshot_id, start)
        await self._visits.change(vm_id, work, deadline_s=SAVE_DEADLINE_S)

    async def delete(self, vm_id: str, snapshot_id: str) -> None:
        """See `Snapshots`."""
        await self._visits.change(vm_id, partial(self._delete, vm_id, snapshot_id), deadline_s=SAVE_DEADLINE_S)

    async def list(self, vm_id: str) -> Sequence[Snapshot]:
        """See `Snapshots`."""
        documents = await self._visits.look(vm_id, partial(self._documents, vm_id))
        return in_tree_order(await asyncio.to_thread(_with_sizes, documents))

    async def _sized(self, document: SnapshotDocument) -> Snapshot:
        return (await asyncio.to_thread(_with_sizes, [document]))[0]

    # everything below runs in worker threads

    def _documents(self, vm_id: str, domain: Any) -> Sequence[SnapshotDocument]:
        documents = []
        for each in domain.listAllSnapshots(0):
            try:
                text, is_current = each.getXMLDesc(0), bool(each.isCurrent(0))
            except self._library.libvirtError as error:
                if has_code(error, ErrorCode.NO_DOMAIN_SNAPSHOT):  # deleted meanwhile
                    continue
                raise
            documents.append(snapshot_xml.read_snapshot(vm_id, text, is_current=is_current))
        return documents

    @property
    def _library(self) -> Any:
        return self._visits.connection.library

    def _find(self, vm_id: str, snapshot_id: str, domain: Any) -> tuple[Any, SnapshotDocument] | None:
        """Look a snapshot up, with the secrets of its definition."""
        for each in domain.listAllSnapshots(0):
            if snapshot_xml.snapshot_id_of(vm_id, each.getName()) == snapshot_id:
                text = each.getXMLDesc(self._library.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
                return each, snapshot_xml.read_snapshot(vm_id, text, is_current=bool(each.isCurrent(0)))
        return None

    def _disks(self, domain: Any, state: PowerState) -> Sequence[SnapshotDisk]:
        """List the disks the domain has now, which has to be those it will have."""
        kept = snapshot_xml.read_disks(self._definition(domain))
        if state not in _IN_MEMORY:
            return kept
        live = snapshot_xml.read_disks(domain_xml.parse(domain.XMLDesc()))
        if {(disk.target, disk.path) for disk in live} != {(disk.target, disk.path) for disk in kept}:
            raise SnapshotUnsupported(
                f"VM {domain.UUIDString()} runs with other disks than it will have after its next start; restart it "
                "before taking a snapshot"
            )
        return live

    def _definition(self, domain: Any) -> Any:
        flags = self._library.VIR_DOMAIN_XML_INACTIVE | self._library.VIR_DOMAIN_XML_SECURE
        return domain_xml.parse(domain.XMLDesc(flags))

    def _prepare(self, vm_id: str, request: SnapshotRequest, connection: Any) -> SnapshotDocument | None:
        """Return the snapshot if there is one; else check that it can be taken, and remove what is left of a try."""
        domain = self._visits.operations.find(connection, vm_id)
        documents = self._documents(vm_id, domain)
        for document in documents:
            if document.snapshot.snapshot_id == request.snapshot_id:
                return document
        state = self._visits.operations.state(domain)
        if state not in OFF | _IN_MEMORY:
            raise WrongState(vm_id, "take a snapshot of", state.value)
        if request.include_memory and state not in _IN_MEMORY:
            raise WrongState(vm_id, "save the memory of", state.value)
        if request.quiesce and state is not PowerState.RUNNING:
            raise WrongState(vm_id, "quiesce", state.value)
        if any(document.snapshot.name == request.name for document in documents):
            raise SnapshotNameTaken(vm_id, request.name)
        disks = self._disks(domain, state)
        snapshot_xml.require_savable(vm_id, disks)
        if request.include_memory:
            snapshot_xml.require_savable_memory(vm_id, domain_xml.parse(domain.XMLDesc()))
        self._images.remove(domain, disks, request.snapshot_id, runs=state in _IN_MEMORY)
        return None

    def _save_memory(self, vm_id: str, request: SnapshotRequest, connection: Any) -> SnapshotDocument:
        domain = self._visits.operations.find(connection, vm_id)
        disks = self._disks(domain, PowerState.RUNNING)
        try:
            domain.snapshotCreateXML(snapshot_xml.memory_snapshot(request, disks), 0)
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.OPERATION_UNSUPPORTED) or has_code(error, ErrorCode.CONFIG_UNSUPPORTED):
                raise SnapshotUnsupported(
                    f"the memory of VM {vm_id} cannot be part of a snapshot: {error.get_error_message()}"
                ) from error
            self._explain(error, domain, vm_id, "save the memory of")
        return self._required(vm_id, request.snapshot_id, domain)

    def _save_disks(
        self, vm_id: str, request: SnapshotRequest, frozen_count: int, until_s: float, connection: Any
    ) -> SnapshotDocument:
        """Have the images saved, and libvirt take note.

        Args:
            until_s: monotonic time until which the guest is frozen for certain; what is saved later is dropped again.
        """
        domain = self._visits.operations.find(connection, vm_id)
        state = self._visits.operations.state(domain)
        if state not in OFF | _IN_MEMORY:
            raise WrongState(vm_id, "take a snapshot of", state.value)
        runs, disks = state in _IN_MEMORY, self._disks(domain, state)
        parent = domain.snapshotCurrent(0).getName() if domain.hasCurrentSnapshot(0) else ""
        self._images.take(domain, disks, request.snapshot_id, runs=runs)
        try:
            if time.monotonic() > until_s:
                raise Unavailable(f"the snapshot of VM {vm_id} took longer than its guest may be frozen")
            created_at_s = math.floor(time.time())
            document = snapshot_xml.disk_snapshot(
                request, state, frozen_count, created_at_s, parent, self._definition(domain)
            )
            library = self._library
            flags = library.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | library.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
            domain.snapshotCreateXML(document, flags)
        except BaseException:
            self._images.remove(domain, disks, request.snapshot_id, runs=bool(domain.isActive()))
            raise
        return self._required(vm_id, request.snapshot_id, domain)

    def _required(self, vm_id: str, snapshot_id: str, domain: Any) -> SnapshotDocument:
        found = self._find(vm_id, snapshot_id, domain)
        if found is None:
            raise Refused(f"the snapshot of VM {vm_id} was removed by another tool as soon as it was taken")
        return found[1]

    def _revert(self, vm_id: str, snapshot_id: str, start: bool, connection: Any) -> None:
        domain = self._visits.operations.find(connection, vm_id)
        found = self._find(vm_id, snapshot_id, domain)
        if found is None:
            raise SnapshotNotFound(vm_id, snapshot_id)
        snapshot, document = found
        if document.is_ours:
            self._images.require_held(vm_id, document.disks, document.libvirt_name)
        if domain.hasManagedSaveImage():  # of what is lost now; libvirt would start from it on other disks
            domain.managedSaveRemove()
        if document.is_ours and not document.snapshot.has_memory:
            self._revert_disks(vm_id, snapshot, document, domain, connection)
            if start:
                self._visits.operations.start(vm_id, connection)
        else:
            flags = self._library.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE
            if start:
                flags |= self._library.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
            try:
                domain.revertToSnapshot(snapshot, flags)
            except self._library.libvirtError as error:
                self._explain(error, domain, vm_id, "revert")
        self._visits.operations.forget(vm_id)

    def _revert_disks(
        self, vm_id: str, snapshot: Any, document: SnapshotDocument, domain: Any, connection: Any
    ) -> None:
        if document.domain is None:
            raise SnapshotUnsupported(f"libvirt lost the definition of VM {vm_id} that belongs to this snapshot")
        self._visits.operations.force_stop(vm_id, connection)
        self._images.go_back(document.disks, document.libvirt_name)
        carry_notes(self._definition(domain), document.domain)
        connection.defineXML(domain_xml.to_text(document.domain))
        library = self._library
        text = snapshot.getXMLDesc(library.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        flags = library.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | library.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        domain.snapshotCreateXML(text, flags)

    def _delete(self, vm_id: str, snapshot_id: str, connection: Any) -> None:
        domain = self._visits.operations.find(connection, vm_id)
        state = self._visits.operations.state(domain)
        found = self._find(vm_id, snapshot_id, domain)
        if found is not None and not found[1].is_ours:
            found[0].delete(0)
            return
        runs = state in _IN_MEMORY
        disks = snapshot_xml.read_disks(self._definition(domain)) if not runs else []
        if runs:
            disks = snapshot_xml.read_disks(domain_xml.parse(domain.XMLDesc()))
        past = found[1].disks if found is not None else ()
        self._images.remove(domain, [*disks, *past], snapshot_id, runs=runs)
        if found is not None:
            found[0].delete(self._library.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def _explain(self, error: Any, domain: Any, vm_id: str, operation: str) -> NoReturn:
        if has_code(error, ErrorCode.OPERATION_INVALID):
            raise WrongState(vm_id, operation, self._visits.operations.state(domain).value) from error
        raise error


def _with_sizes(documents: Sequence[SnapshotDocument]) -> list[Snapshot]:
    """Add up what each snapshot takes in the images it is in; an image that cannot be read adds nothing. Blocks."""
    held: dict[Any, dict[str, ImageSnapshot]] = {}
    sized = []
    for document in documents:
        size_bytes = 0
        for disk in document.disks:
            if not disk.is_saved or disk.path is None or disk.format != "qcow2":
                continue
            if disk.path not in held:
                try:
                    held[disk.path] = read_snapshots(disk.path)
                except UnreadableImage:
                    held[disk.path] = {}
            part = held[disk.path].get(document.libvirt_name)
            if part is not None:
                size_bytes += max(part.memory_bytes, part.own_bytes)
        sized.append(dataclasses.replace(document.snapshot, size_bytes=size_bytes))
    return sized
