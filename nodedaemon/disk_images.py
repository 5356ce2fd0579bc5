"""Make, grow and remove disk images by qemu-img.

Every image is made beside its final name and renamed when whole, so a crash leaves no half image under a name that a VM
uses. Formats are always stated (`-f`, `-F`): a guest can write any header into its raw disk, and guessing would believe
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypervisor.types import DiskFormat
from limiquantix.errors import AlreadyExists, FailedPrecondition, Reason, ResourceExhausted
from nodedaemon.image_inspector import SourceImage, inspect_open
from nodedaemon.image_tables import ImageRefused
from nodedaemon.storage_paths import StoragePaths, Template

QEMU_IMG_DEADLINE_S = 60.0
"""Creating and growing write metadata only; more than seconds means that the storage hangs."""

IMPORT_DEADLINE_S = 240.0
"""Copying the contents of an image; what is larger than that allows has to be made a template first."""

_OVERHEAD_BYTES = 256 * 2**20
"""Tables of an image beside its contents, at most: those of 2 TiB in clusters of 64 KiB."""

IMAGE_MODE = 0o600
DIRECTORY_MODE = 0o711
"""A disk is nobody's business but QEMU's: libvirt gives the file to the user it runs QEMU as, who only has to pass the
directory by name."""

_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image a VM needs; `size_bytes` is what the guest shall see."""

    disk_id: str
    path: Path
    format: DiskFormat
    size_bytes: int
    template: Template | None = None
    source: SourceImage | None = None
    """Where the contents of a new image are copied from."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img says of an image."""

    virtual_size_bytes: int
    allocated_bytes: int


class DiskImages:
    """The images below the storage path; the caller serialises calls for one VM."""

    def __init__(self, paths: StoragePaths, qemu_img: str = "qemu-img") -> None:
        self._paths = paths
        self._qemu_img = qemu_img

    async def ensure(self, vm_id: str, plans: Sequence[ImagePlan]) -> list[Path]:
        """Make the images that are not there yet; all of them or none.

        Returns:
            Those it made, for `discard`.

        Raises:
            AlreadyExists: an image is there with another size.
            ResourceExhausted, FailedPrecondition: qemu-img failed.
        """
        made: list[Path] = []
        try:
            for plan in plans:
                if await asyncio.to_thread(plan.path.exists):
                    await self._check_size(vm_id, plan)
                else:
                    await self._create(vm_id, plan)
                    made.append(plan.path)
        except BaseException:
            await self.discard(vm_id, made)
            raise
        return made

    async def discard(self, vm_id: str, made: Sequence[Path]) -> None:
        """Remove images that `ensure` made, and the VM's directory if nothing else is in it."""
        await asyncio.to_thread(self._discard, vm_id, tuple(made))

    async def grow(self, vm_id: str, plan: ImagePlan) -> None:
        """Enlarge an existing image to the planned size; a larger one stays as it is. Idempotent."""
        info = await self.info(vm_id, plan.path, plan.format)
        if info.virtual_size_bytes < plan.size_bytes:
            await self._run(vm_id, "resize", "-f", plan.format.value, str(plan.path), str(plan.size_bytes))

    async def info(self, vm_id: str, path: Path, image_format: DiskFormat) -> ImageInfo:
        """Look at an image, also while a VM uses it."""
        output = await self._run(vm_id, "info", "-U", "--output=json", "-f", image_format.value, str(path))
        document = json.loads(output)
        return ImageInfo(int(document["virtual-size"]), int(document["actual-size"]))

    async def delete_vm(self, vm_id: str) -> None:
        """Remove every image of a VM. Idempotent."""
        await asyncio.to_thread(self._delete_vm, vm_id)

    async def _create(self, vm_id: str, plan: ImagePlan) -> None:
        partial = plan.path.with_name(f".{plan.path.name}.part")
        if plan.source is not None:
            await self._import(vm_id, plan, plan.source, partial)
            return
        words = ["create", "-q", "-f", plan.format.value]
        if plan.template is not None:
            words += ["-b", str(plan.template.path), "-F", plan.template.format.value]
        try:
            await asyncio.to_thread(self._paths.make_vm_dir, vm_id, DIRECTORY_MODE)
            # What a killed daemon left: its qemu-img may live on, and holds the lock of the file that it began.
            await asyncio.to_thread(partial.unlink, missing_ok=True)
            await self._run(vm_id, *words, str(partial), str(plan.size_bytes))
            await asyncio.to_thread(put_in_place, partial, plan.path)
        except OSError as error:
            raise _failed(vm_id, f"an image could not be made: {error.strerror}") from error
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def _import(self, vm_id: str, plan: ImagePlan, source: SourceImage, partial: Path) -> None:
        """Copy the contents of another image, which is looked at once more: time has passed since it was.

        qemu-img gets the file that was looked at and not its name, which may lead elsewhere by then.
        """
        try:
            again = await self._convert(vm_id, plan, source, partial)
            if again.virtual_size_bytes < plan.size_bytes:
                await self._run(vm_id, "resize", "-f", plan.format.value, str(partial), str(plan.size_bytes))
            await asyncio.to_thread(put_in_place, partial, plan.path)
        except ImageRefused as error:
            raise _failed(vm_id, f"the source of disk {plan.disk_id} {error}") from error
        except OSError as error:
            raise _failed(vm_id, f"an image could not be imported: {error.strerror}") from error
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def _convert(self, vm_id: str, plan: ImagePlan, source: SourceImage, partial: Path) -> SourceImage:
        with self._paths.opened(source.path) as file:
            again = await asyncio.to_thread(inspect_open, source.path, file, source.format)
            await asyncio.to_thread(self._paths.make_vm_dir, vm_id, DIRECTORY_MODE)
            await asyncio.to_thread(partial.unlink, missing_ok=True)
            name = f"/proc/self/fd/{file}"
            words = ("convert", "-f", source.format.value, "-O", plan.format.value, name, str(partial))
            limit = again.max_output_bytes + _OVERHEAD_BYTES
            if plan.format is DiskFormat.RAW:  # sparse, so its length says nothing of its contents
                limit = again.virtual_size_bytes
            await self._run(vm_id, *words, deadline_s=IMPORT_DEADLINE_S, max_file_bytes=limit, handed_over=file)
        return again

    async def _check_size(self, vm_id: str, plan: ImagePlan) -> None:
        info = await self.info(vm_id, plan.path, plan.format)
        if info.virtual_size_bytes != plan.size_bytes:
            raise AlreadyExists(
                Reason.VM_EXISTS_WITH_OTHER_CONFIG,
                f"disk {plan.disk_id} of VM {vm_id} exists with {info.virtual_size_bytes} bytes, "
                f"not {plan.size_bytes}; delete the VM first, or reconfigure it",
                metadata={"vm_id": vm_id, "disk_id": plan.disk_id},
            )

    def _discard(self, vm_id: str, made: Sequence[Path]) -> None:
        for path in made:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds other images, or was never made
            self._paths.vm_dir(vm_id).rmdir()

    def _delete_vm(self, vm_id: str) -> None:
        directory = self._paths.vm_dir(vm_id)
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(vm_id, f"its images could not be removed: {error.strerror}") from error

    async def run(self, vm_id: str, *words: str, deadline_s: float) -> bytes:
        """Run qemu-img for work that takes longer, such as copying; it ends when the caller is cancelled."""
        return await self._run(vm_id, *words, deadline_s=deadline_s)

    async def _run(
        self,
        vm_id: str,
        *words: str,
        deadline_s: float = QEMU_IMG_DEADLINE_S,
        max_file_bytes: int | None = None,
        handed_over: int | None = None,
    ) -> bytes:
        """Run qemu-img; its words in an error name no path of the host."""
        running = _Process([self._qemu_img, *words], deadline_s, max_file_bytes, handed_over)
        finished = asyncio.ensure_future(asyncio.to_thread(running.run))
        try:
            process = await asyncio.shield(finished)
        except asyncio.CancelledError:
            running.kill()
            await asyncio.wait([finished])  # it must not write any more when the caller tidies up
            raise
        except OSError as error:
            raise _failed(vm_id, f"{self._qemu_img} cannot be run ({error.strerror}); install qemu-utils") from error
        except subprocess.TimeoutExpired as error:
            raise _failed(vm_id, f"qemu-img {words[0]} did not end in {deadline_s:g} s") from error
        if process.returncode == -signal.SIGXFSZ:
            raise _failed(vm_id, f"qemu-img {words[0]} wrote more than its source can hold, and was stopped")
        if process.returncode != 0:
            text = process.stderr.decode(errors="replace").strip().replace(str(self._paths.root), "<storage>")
            if "No space left on device" in text:
                raise ResourceExhausted(
                    Reason.STORAGE_FULL, f"no space left for the disks of VM {vm_id}", metadata={"vm_id": vm_id}
                )
            raise _failed(vm_id, f"qemu-img {words[0]}: {text[:_MAX_ERROR_CHARS]}")
        return process.stdout


class _Process:
    """One run of a program, from a thread.

    Not by the event loop: uvloop forks where the standard library's subprocess uses vfork.
    """

    def __init__(
        self, words: list[str], deadline_s: float, max_file_bytes: int | None = None, handed_over: int | None = None
    ) -> None:
        self._words = words
        self._handed_over = () if handed_over is None else (handed_over,)
        self._deadline_s = deadline_s
        self._max_file_bytes = max_file_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    def run(self) -> subprocess.CompletedProcess[bytes]:
        """Run it. Blocks.

        Raises:
            OSError: it cannot be started.
            subprocess.TimeoutExpired: it took too long and was killed.
        """
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        with subprocess.Popen(
            self._words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=self._handed_over,
        ) as self._process:
            if self._max_file_bytes is not None:
                with contextlib.suppress(ProcessLookupError):
                    limits = (self._max_file_bytes, self._max_file_bytes)
                    resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, limits)
            if self._is_killed:
                self._process.kill()
            try:
                output, complaint = self._process.communicate(timeout=self._deadline_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
            return subprocess.CompletedProcess(self._words, self._process.returncode, output, complaint)

    def kill(self) -> None:
        """End it, from another thread, also if it is only about to start."""
        self._is_killed = True
        if self._process is not None:
            self._process.kill()


def put_in_place(partial: Path, path: Path) -> None:
    """Give a finished image its name, under which nothing half written may be found after a power failure either."""
    partial.chmod(IMAGE_MODE)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)


def _failed(vm_id: str, what: str) -> FailedPrecondition:
    return FailedPrecondition(Reason.DISK_IMAGE_FAILED, f"VM {vm_id}: {what}", metadata={"vm_id": vm_id})
