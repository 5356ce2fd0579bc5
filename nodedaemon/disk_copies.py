"""Make disks from those of another VM of this host: whole copies, or images built upon a template's.

A disk is named by its VM and its id, never by a path. While its contents are read, its VM is kept as it is: changes
that were asked for before are waited for, and it must be off then, since a guest that writes would leave a copy of no
moment.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypervisor.base import Hypervisor
from hypervisor.types import DiskFormat, PowerState
from limiquantix.errors import FailedPrecondition, Reason, ResourceExhausted
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands
from nodedaemon.disk_images import DIRECTORY_MODE, DiskImages, put_in_place
from nodedaemon.qcow2_header import NotQcow2, read_header
from nodedaemon.storage_paths import MAX_CHAIN_LENGTH, PathRefused, StoragePaths, Template
from nodedaemon.templates import Templates

COPY_DEADLINE_S: Final = 4 * 3600.0
"""1 TB at 70 MB/s; what takes longer is stuck or wants another storage."""
SPARE_BYTES: Final = 256 * 2**20
"""What a copy leaves free: a file system that is full to the brim stops every guest on it."""

_OFF: Final = frozenset({PowerState.STOPPED, PowerState.CRASHED})


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """A disk that is made from another VM's; `size_bytes` is what the guest shall see, at least the source's size."""

    source_vm_id: str
    source: Template
    path: Path
    format: DiskFormat
    size_bytes: int
    is_linked: bool


def find_source(paths: StoragePaths, source: pb.CloneSource) -> Template:
    """Find the image of another VM's disk; its format is in its name, which is ours. Blocks.

    Raises:
        PathRefused: there is none, or too many images are behind it already.
    """
    for image_format in DiskFormat:
        path = paths.image_path(source.vm_id, source.disk_id, image_format)
        if path.is_file() and not path.is_symlink():
            break
    else:
        raise PathRefused("names a disk that is not on this host")
    try:
        if image_format is DiskFormat.RAW:
            return Template(path, image_format, path.stat().st_size)
        header = read_header(path)
        behind, current, name = 0, header, path
        while current.backing_name:
            behind += 1
            if source.linked and behind >= MAX_CHAIN_LENGTH:
                raise PathRefused(f"has {behind} images behind it, as many as there may be; make a full clone")
            if current.backing_format != DiskFormat.QCOW2.value:
                break
            name = name.parent / current.backing_name
            current = read_header(name)
    except (OSError, NotQcow2) as error:
        raise PathRefused("names a disk that cannot be read, or has such a backing file") from error
    return Template(path, image_format, header.virtual_size_bytes)


class DiskCopies:
    """Makes disks from those of other VMs."""

    def __init__(
        self, hypervisor: Hypervisor, commands: Commands, images: DiskImages, paths: StoragePaths, templates: Templates
    ) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._images = images
        self._paths = paths
        self._templates = templates

    @asynccontextmanager
    async def sources_held(self, plans: Sequence[CopyPlan]) -> AsyncIterator[None]:
        """Keep the VMs that disks are made from as they are.

        Raises:
            FailedPrecondition: one is not off, or is no template though images shall be built upon its own.
        """
        copies = any(not plan.is_linked for plan in plans)
        async with AsyncExitStack() as stack:
            for vm_id in sorted({plan.source_vm_id for plan in plans}):
                deadline_s = COPY_DEADLINE_S if copies else CREATE_DEADLINE_S
                await stack.enter_async_context(
                    self._commands.holding(vm_id, deadline_s=deadline_s, refuses_others=copies)
                )
                await self._require_still(vm_id, is_linked=any(p.is_linked for p in plans if p.source_vm_id == vm_id))
            yield

    async def copy(self, vm_id: str, plans: Sequence[CopyPlan]) -> list[Path]:
        """Copy the disks that are not there yet; all of them or none. The caller holds their sources.

        Returns:
            Those it made, for `DiskImages.discard`.

        Raises:
            ResourceExhausted: there is no room for them.
            FailedPrecondition: qemu-img failed.
        """
        wanted = [plan for plan in plans if not plan.is_linked and not await asyncio.to_thread(plan.path.exists)]
        await self._require_room(vm_id, wanted)
        made: list[Path] = []
        try:
            for plan in wanted:
                await self._copy(vm_id, plan)
                made.append(plan.path)
        except BaseException:
            await self._images.discard(vm_id, made)
            raise
        return made

    async def _copy(self, vm_id: str, plan: CopyPlan) -> None:
        """Copy one disk: what is behind its image comes with it, what is empty stays so."""
        partial = plan.path.with_name(f".{plan.path.name}.part")
        of, to = plan.source.format.value, plan.format.value
        try:
            await asyncio.to_thread(plan.path.parent.mkdir, mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            await asyncio.to_thread(partial.unlink, missing_ok=True)
            words = ("convert", "-q", "-f", of, "-O", to, str(plan.source.path), str(partial))
            await self._images.run(vm_id, *words, deadline_s=COPY_DEADLINE_S)
            if plan.size_bytes > plan.source.virtual_size_bytes:
                growth = ("resize", "-q", "-f", to, str(partial), str(plan.size_bytes))
                await self._images.run(vm_id, *growth, deadline_s=CREATE_DEADLINE_S)
            await asyncio.to_thread(put_in_place, partial, plan.path)
        except OSError as error:
            message = f"VM {vm_id}: a disk could not be copied: {error.strerror}"
            raise FailedPrecondition(Reason.DISK_IMAGE_FAILED, message, metadata={"vm_id": vm_id}) from error
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def _require_still(self, vm_id: str, *, is_linked: bool) -> None:
        state = (await self._hypervisor.status(vm_id)).state
        if state not in _OFF:
            raise FailedPrecondition(
                Reason.VM_STATE_FORBIDS,
                f"VM {vm_id} is {state.value}, and its disks can only be cloned while it is off; stop it first",
                metadata={"vm_id": vm_id, "state": state.value},
            )
        if is_linked and not await self._templates.is_template(vm_id):
            raise FailedPrecondition(
                Reason.VM_NOT_TEMPLATE,
                f"VM {vm_id} is no template, so nothing may be built upon its disks; make it one, or clone it fully",
                metadata={"vm_id": vm_id},
            )

    async def _require_room(self, vm_id: str, plans: Sequence[CopyPlan]) -> None:
        if not plans:
            return
        needed = 0
        for plan in plans:
            info = await self._images.info(vm_id, plan.source.path, plan.source.format)
            # Of an image with others behind it, only its own part is known; then the copy finds out by itself.
            needed += info.allocated_bytes
        free = (await asyncio.to_thread(shutil.disk_usage, self._paths.root)).free
        if needed + SPARE_BYTES > free:
            raise ResourceExhausted(
                Reason.STORAGE_FULL,
                f"the disks of VM {vm_id} need {needed // 2**20} MiB, and {SPARE_BYTES // 2**20} MiB shall stay free; "
                f"its node has {free // 2**20} MiB left",
                metadata={"vm_id": vm_id},
            )
