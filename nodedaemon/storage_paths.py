"""Decide which files of this host a VM may use: only those below the storage path, and none of another VM.

The layout is `{root}/{vm_id}/` for a VM's own images and `{root}/templates/` for what VMs are made from; everything
else below the root (ISO images, kernels) may be used by any VM. A path of a request is taken relative to the root,
symbolic links are followed first, and neither a refusal nor its absence tells whether a file outside, or another VM's,
exists: where a path leads is judged before what is there. What was judged is opened by `confined_files`, since names
may come to lead elsewhere meanwhile.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisor.types import DiskFormat
from nodedaemon.confined_files import open_beneath
from nodedaemon.image_inspector import SourceFormat, SourceImage, inspect_open
from nodedaemon.image_tables import ImageRefused
from nodedaemon.qcow2_header import NotQcow2, read_header_of

TEMPLATES = "templates"
MAX_CHAIN_LENGTH = 8
"""Backing files behind one image; each costs every read of the guest, and a loop must end somewhere."""

_TEMPLATE_FORMATS = {".qcow2": DiskFormat.QCOW2, ".raw": DiskFormat.RAW}
_OUTSIDE = "must name an existing regular file below the node's storage path"


class PathRefused(Exception):
    """The path may not be used; the message is for the caller and follows the field's name."""


@dataclass(frozen=True, slots=True)
class Template:
    """An image that a disk may be made from; `virtual_size_bytes` is what a guest would see."""

    path: Path
    format: DiskFormat
    virtual_size_bytes: int


class StoragePaths:
    """The storage of this host. Methods look at the file system and block."""

    def __init__(self, root: Path) -> None:
        """Take `root`, which need not exist yet."""
        self._root = root.resolve()

    @property
    def root(self) -> Path:
        """The storage path, links resolved."""
        return self._root

    def vm_dir(self, vm_id: str) -> Path:
        """Where the images of a VM are; `vm_id` must be a UUID, which cannot leave the root."""
        return self._root / str(uuid.UUID(vm_id))

    def image_path(self, vm_id: str, disk_id: str, image_format: DiskFormat) -> Path:
        """Where the image of one disk is."""
        return self.vm_dir(vm_id) / f"{uuid.UUID(disk_id)}.{image_format.value}"

    def resolve_file(self, text: str, vm_id: str) -> Path:
        """Find a file that VM `vm_id` may use.

        Raises:
            PathRefused: it is not there, not a regular file, outside, or another VM's.
        """
        path = self._locate(text)
        owner = _owner_of(path.relative_to(self._root).parts)
        if owner is not None and owner != str(uuid.UUID(vm_id)):
            raise PathRefused("names a file of another VM")
        return self._existing(path)

    def resolve_disk(self, text: str, vm_id: str, image_format: DiskFormat, *, readonly: bool) -> Path:
        """Find an existing image that VM `vm_id` may use as a disk of this format.

        Raises:
            PathRefused: as `resolve_file`; or a template, or a file of several names, that would be written to; or a
                qcow2 image that leads outside.
        """
        path = self.resolve_file(text, vm_id)
        if self._is_template(path) and not readonly:
            raise PathRefused("names a template; use it as backing_file, or make the disk readonly")
        if not readonly and self._has_other_names(path):
            raise PathRefused("has another name too (a hard link), by which another VM may have it")
        if image_format is DiskFormat.QCOW2:
            self._check_chain(path, vm_id)
        return path

    def resolve_template(self, text: str) -> Template:
        """Find a template.

        Raises:
            PathRefused: it is not below `templates/`, its name does not tell its format, or it leads outside.
        """
        path = self._locate(text)
        if not self._is_template(path):
            raise PathRefused(f"must name a file below {TEMPLATES}/ of the node's storage path")
        with self._opened(path) as file:
            size_bytes = os.fstat(file).st_size
        image_format = _TEMPLATE_FORMATS.get(path.suffix)
        if image_format is None:
            raise PathRefused("must end in .qcow2 or .raw: the format is taken from the name, never guessed")
        if image_format is DiskFormat.RAW:
            return Template(path, image_format, size_bytes)
        return Template(path, image_format, self._check_chain(path, None))

    def resolve_source(self, text: str, vm_id: str, stated: SourceFormat) -> SourceImage:
        """Find an image file that the contents of a disk of VM `vm_id` may be copied from.

        Raises:
            PathRefused: as `resolve_file`; or it is not plainly one disk of the stated format in one file.
        """
        path = self.resolve_file(text, vm_id)
        try:
            with self.opened(path) as file:
                return inspect_open(path, file, stated)
        except ImageRefused as error:
            raise PathRefused(str(error)) from error
        except OSError as error:
            raise PathRefused(_OUTSIDE) from error

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """Open a file that was found before, for reading; gives its descriptor.

        Raises:
            OSError: it is not there any more, or its path now leads over a link.
        """
        file = open_beneath(self._root, path)
        try:
            yield file
        finally:
            os.close(file)

    def make_vm_dir(self, vm_id: str, mode: int) -> None:
        """Make the directory of a VM's images, if it is not there yet.

        Raises:
            OSError: it cannot be made, or something else is in its place, such as a link to elsewhere.
        """
        path = self.vm_dir(vm_id)
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        os.close(open_beneath(self._root, path, os.O_PATH | os.O_DIRECTORY))

    def _existing(self, path: Path) -> Path:
        """Require a regular file at a place that was located before."""
        with self._opened(path):
            return path

    def _has_other_names(self, path: Path) -> bool:
        with self._opened(path) as file:
            return os.fstat(file).st_nlink > 1

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        """Open a regular file; whatever is wrong with it, the refusal is the same."""
        try:
            file = open_beneath(self._root, path)
        except (OSError, ValueError) as error:
            raise PathRefused(_OUTSIDE) from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise PathRefused(_OUTSIDE)
            yield file
        finally:
            os.close(file)

    def _locate(self, text: str) -> Path:
        """Follow links and `..` to a place below the root, whether or not anything is there."""
        wanted = self._root / text
        if self._climbs_out(wanted):
            raise PathRefused(_OUTSIDE)
        try:
            path = wanted.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise PathRefused(_OUTSIDE) from error
        if not path.is_relative_to(self._root):
            raise PathRefused(_OUTSIDE)
        return path

    def _climbs_out(self, path: Path) -> bool:
        """Tell whether a `..` is taken anywhere but below the root.

        Such a path may lead back inside, and then it would be found or not as what it passes on its way outside exists.
        """
        passed: list[str] = []
        for part in path.parts:
            if part != "..":
                passed.append(part)
                continue
            passed.pop()
            if not Path(*passed).is_relative_to(self._root):
                return True
        return False

    def _is_template(self, path: Path) -> bool:
        return path.is_relative_to(self._root / TEMPLATES)

    def _check_chain(self, path: Path, vm_id: str | None) -> int:
        """Follow the backing files of a qcow2 image; returns its virtual size."""
        size_bytes, current = None, path
        for _ in range(MAX_CHAIN_LENGTH + 1):
            try:
                with self.opened(current) as file:
                    header = read_header_of(file)
            except (NotQcow2, OSError) as error:
                raise PathRefused("is not a sound qcow2 image, or has such a backing file") from error
            size_bytes = header.virtual_size_bytes if size_bytes is None else size_bytes
            if header.has_external_data:
                raise PathRefused("is an image with an external data file")
            if not header.backing_name:
                return size_bytes
            if header.backing_format not in ("qcow2", "raw"):
                raise PathRefused("has a backing file of unstated or unknown format")
            current = self._backing_of(current, header.backing_name, vm_id)
            if header.backing_format == "raw":
                return size_bytes
        raise PathRefused(f"has more than {MAX_CHAIN_LENGTH} backing files behind it")

    def _backing_of(self, image: Path, name: str, vm_id: str | None) -> Path:
        # "nbd:...", "json:{...}": QEMU reads a colon before the first slash as a protocol.
        if ":" in name.partition("/")[0]:
            raise PathRefused("has a backing file that is not a plain file")
        try:
            backing = self._locate(str(image.parent / name))
            is_own = vm_id is not None and backing.is_relative_to(self.vm_dir(vm_id))
            if is_own or self._is_template(backing):
                return self._existing(backing)
        except PathRefused as error:
            raise PathRefused("has a backing file that is missing or outside the node's storage path") from error
        raise PathRefused(f"has a backing file that is not below {TEMPLATES}/")


def _owner_of(parts: tuple[str, ...]) -> str | None:
    """Name the VM whose directory a path lies in."""
    try:
        return str(uuid.UUID(parts[0])) if len(parts) > 1 else None
    except ValueError:
        return None
