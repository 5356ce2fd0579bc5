"""Templates on this host: VMs whose images others may be built upon, so that nothing may write to them.

A file beside the images marks a template. It is what this host knows of it when the control plane is wrong: the images
can be read only, no start is let through, and neither the mark nor the images go while another VM's image is built upon
one of them.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limiquantix.errors import FailedPrecondition, Reason
from nodedaemon.disk_images import DIRECTORY_MODE, IMAGE_MODE
from nodedaemon.qcow2_header import NotQcow2, read_header
from nodedaemon.storage_paths import StoragePaths

TEMPLATE_MODE: Final = 0o400
_MARK: Final = ".template"
_SUFFIXES: Final = frozenset({".qcow2", ".raw"})


class Templates:
    """The templates below the storage path; the caller serialises calls for one VM."""

    def __init__(self, paths: StoragePaths) -> None:
        self._paths = paths

    async def is_template(self, vm_id: str) -> bool:
        """Tell whether the VM is one."""
        return await asyncio.to_thread(self._mark(vm_id).exists)

    async def all(self) -> frozenset[str]:
        """Ids of every template on this host."""
        return await asyncio.to_thread(self._all)

    async def require_startable(self, vm_id: str) -> None:
        """Check that the VM is none.

        Raises:
            FailedPrecondition: it is.
        """
        if await self.is_template(vm_id):
            raise FailedPrecondition(
                Reason.VM_IS_TEMPLATE,
                f"VM {vm_id} is a template, which does not start; clone it and start the clone",
                metadata={"vm_id": vm_id},
            )

    async def require_removable(self, vm_id: str) -> None:
        """Check that no other VM's image is built upon the VM's. Looks at images only if it is a template.

        Raises:
            FailedPrecondition: one is.
        """
        if not await self.is_template(vm_id):
            return
        clones = await asyncio.to_thread(lambda: sorted(self._clones(vm_id)))
        if clones:
            raise FailedPrecondition(
                Reason.TEMPLATE_IN_USE,
                f"disks of VM {clones[0]}{_others(len(clones) - 1)} on this host are built upon those of template "
                f"{vm_id}; delete these linked clones first",
                metadata={"vm_id": vm_id, "clone_count": str(len(clones))},
            )

    async def settle(self, vm_id: str, *, is_template: bool) -> None:
        """Make the VM a template, or an ordinary VM again. Idempotent.

        Raises:
            FailedPrecondition: it shall be an ordinary one, and linked clones need it.
        """
        if not is_template:
            await self.require_removable(vm_id)
        await asyncio.to_thread(self._settle, vm_id, is_template)

    def _all(self) -> frozenset[str]:
        return frozenset(mark.parent.name for mark in self._paths.root.glob(f"*/{_MARK}") if _is_uuid(mark.parent.name))

    def _mark(self, vm_id: str) -> Path:
        return self._paths.vm_dir(vm_id) / _MARK

    def _settle(self, vm_id: str, is_template: bool) -> None:
        directory, mark = self._paths.vm_dir(vm_id), self._mark(vm_id)
        if not is_template and not mark.exists():
            return
        try:
            directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            if is_template:
                mark.touch(mode=TEMPLATE_MODE)  # first: what is marked and can be written is refused its start
            for image in directory.iterdir():
                if image.suffix in _SUFFIXES and not image.is_symlink():
                    image.chmod(TEMPLATE_MODE if is_template else IMAGE_MODE)
            if not is_template:
                mark.unlink(missing_ok=True)
        except OSError as error:
            raise FailedPrecondition(
                Reason.DISK_IMAGE_FAILED,
                f"VM {vm_id}: the mode of its images could not be changed: {error.strerror}",
                metadata={"vm_id": vm_id},
            ) from error

    def _clones(self, vm_id: str) -> Iterator[str]:
        """Name the VMs on this host with an image whose backing file is one of the VM's."""
        own = self._paths.vm_dir(vm_id)
        if not own.is_dir():
            return
        with os.scandir(self._paths.root) as entries:
            others = [Path(entry.path) for entry in entries if _is_uuid(entry.name) and entry.name != own.name]
        for directory in others:
            if any(_is_built_upon(image, own) for image in _images(directory)):
                yield directory.name


def _images(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.suffix == ".qcow2" or path.name.endswith(".qcow2.part")]
    except OSError:
        return []  # it was removed meanwhile


def _is_built_upon(image: Path, directory: Path) -> bool:
    try:
        name = read_header(image).backing_name
    except (NotQcow2, OSError):
        return False
    return bool(name) and (image.parent / name).resolve().parent == directory


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _others(count: int) -> str:
    return f" and of {count} more" if count else ""
