"""Write first-boot media below the storage path: one file in the VM's own directory, for nobody but QEMU to read."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
from pathlib import Path
from typing import Final

from pycdlib import PyCdlib

from hypervisor.types import DiskBus, FirstBootMedium, MediumKind
from limiquantix.errors import FailedPrecondition, Reason, ResourceExhausted
from nodedaemon.disk_images import DIRECTORY_MODE, IMAGE_MODE
from nodedaemon.first_boot import FirstBoot, MediumFormat
from nodedaemon.storage_paths import StoragePaths

SEED_NAME: Final = "seed.iso"
IGNITION_NAME: Final = "ignition.json"
_NAMES: Final = (SEED_NAME, IGNITION_NAME)


def medium_of(vm_id: str, wanted: FirstBoot | None, paths: StoragePaths) -> FirstBootMedium | None:
    """Say where the medium is, or will be, for the VM's definition."""
    if wanted is None:
        return None
    if wanted.format is MediumFormat.IGNITION:
        return FirstBootMedium(paths.vm_dir(vm_id) / IGNITION_NAME, MediumKind.FIRMWARE, wanted.digest)
    bus = DiskBus.SATA if wanted.is_for_windows else DiskBus.SCSI
    return FirstBootMedium(paths.vm_dir(vm_id) / SEED_NAME, MediumKind.CDROM, wanted.digest, bus)


def iso_image(label: str, files: dict[str, bytes]) -> bytes:
    """Build an ISO 9660 image whose files have their names in Rock Ridge and in Joliet."""
    iso = PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    try:
        for number, (name, contents) in enumerate(sorted(files.items())):
            plain = re.sub(r"[^A-Z0-9]", "", name.upper())[:8] or f"FILE{number}"
            iso.add_fp(
                io.BytesIO(contents),
                len(contents),
                f"/{plain}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
                file_mode=0o100400,
            )
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


class FirstBootMedia:
    """The media of this host's VMs; the caller serialises calls for one VM."""

    def __init__(self, paths: StoragePaths) -> None:
        self._paths = paths

    async def ensure(self, vm_id: str, wanted: FirstBoot | None) -> bool:
        """Write the medium unless it is there; returns whether it was written."""
        medium = medium_of(vm_id, wanted, self._paths)
        if wanted is None or medium is None or await asyncio.to_thread(medium.path.exists):
            return False
        await self.prepare(vm_id, wanted)
        await self.put_in_place(vm_id, wanted)
        return True

    async def prepare(self, vm_id: str, wanted: FirstBoot | None) -> None:
        """Write the medium beside its name, where nothing uses it yet.

        Raises:
            ResourceExhausted, FailedPrecondition: it cannot be written.
        """
        medium = medium_of(vm_id, wanted, self._paths)
        if wanted is not None and medium is not None:
            await asyncio.to_thread(_write, vm_id, _beside(medium.path), wanted)

    async def put_in_place(self, vm_id: str, wanted: FirstBoot | None) -> None:
        """Give the prepared medium its name, and remove what the VM had instead. Repeated, it changes nothing."""
        medium = medium_of(vm_id, wanted, self._paths)
        await asyncio.to_thread(self._put_in_place, vm_id, None if medium is None else medium.path)

    async def discard(self, vm_id: str) -> None:
        """Remove what was prepared. Fine if nothing was."""
        await asyncio.to_thread(self._discard, vm_id)

    async def remove(self, vm_id: str) -> None:
        """Remove the medium of a VM that was not defined after all. Fine if there is none."""
        await self.discard(vm_id)
        await asyncio.to_thread(self._put_in_place, vm_id, None)

    def _put_in_place(self, vm_id: str, path: Path | None) -> None:
        directory = self._paths.vm_dir(vm_id)
        if path is not None and _beside(path).exists():
            _beside(path).replace(path)
        for name in _NAMES:
            if path is None or path.name != name:
                (directory / name).unlink(missing_ok=True)

    def _discard(self, vm_id: str) -> None:
        for name in _NAMES:
            _beside(self._paths.vm_dir(vm_id) / name).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _write(vm_id: str, path: Path, wanted: FirstBoot) -> None:
    if wanted.format is MediumFormat.IGNITION:
        (contents,) = wanted.files.values()
    else:
        contents = iso_image(wanted.format.value, dict(wanted.files))
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # Never readable by others, not even while it is written.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, IMAGE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        message = f"VM {vm_id}: its first-boot medium could not be written: {error.strerror}"
        if error.errno == errno.ENOSPC:
            raise ResourceExhausted(Reason.STORAGE_FULL, message, metadata={"vm_id": vm_id}) from error
        raise FailedPrecondition(Reason.DISK_IMAGE_FAILED, message, metadata={"vm_id": vm_id}) from error
