"""Disk images by the real qemu-img."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import struct
import uuid
from pathlib import Path

import psutil
import pytest

from hypervisor.types import DiskFormat
from limiquantix.errors import AlreadyExists, FailedPrecondition
from nodedaemon.disk_images import DiskImages, ImagePlan
from nodedaemon.qcow2_header import read_header
from nodedaemon.storage_paths import StoragePaths

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

MIB = 2**20
F_OFD_SETLK = 37
LOCK_OF_QEMU = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 200, 0)
"""struct flock over the bytes that QEMU locks. Source: QEMU, block/file-posix.c, RAW_LOCK_PERM_BASE, _SHARED_BASE."""
VM_ID = str(uuid.uuid4())


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    (tmp_path / "templates").mkdir()
    return StoragePaths(tmp_path)


@pytest.fixture
def images(paths: StoragePaths) -> DiskImages:
    return DiskImages(paths)


def plan(paths: StoragePaths, size_mib: int = 8, image_format: DiskFormat = DiskFormat.QCOW2) -> ImagePlan:
    disk_id = str(uuid.uuid4())
    return ImagePlan(disk_id, paths.image_path(VM_ID, disk_id, image_format), image_format, size_mib * MIB)


@pytest.mark.parametrize("image_format", list(DiskFormat))
async def test_ensure_makes_an_image_of_the_planned_size_once(
    images: DiskImages, paths: StoragePaths, image_format: DiskFormat
) -> None:
    wanted = plan(paths, image_format=image_format)
    assert await images.ensure(VM_ID, [wanted]) == [wanted.path]
    assert (await images.info(VM_ID, wanted.path, image_format)).virtual_size_bytes == 8 * MIB
    before = wanted.path.stat()
    assert await images.ensure(VM_ID, [wanted]) == []
    assert wanted.path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(wanted.path.parent.iterdir()) == [wanted.path]


async def test_ensure_makes_images_that_others_on_the_host_cannot_read(images: DiskImages, paths: StoragePaths) -> None:
    wanted = plan(paths)
    await images.ensure(VM_ID, [wanted])
    assert wanted.path.stat().st_mode & 0o777 == 0o600
    assert wanted.path.parent.stat().st_mode & 0o777 == 0o711


async def test_ensure_from_a_template_states_its_format(images: DiskImages, paths: StoragePaths) -> None:
    base = paths.root / "templates/base.raw"
    with base.open("wb") as file:
        file.truncate(4 * MIB)
    empty = plan(paths)
    wanted = ImagePlan(
        empty.disk_id, empty.path, DiskFormat.QCOW2, 8 * MIB, paths.resolve_template("templates/base.raw")
    )
    await images.ensure(VM_ID, [wanted])
    header = read_header(wanted.path)
    assert (header.backing_name, header.backing_format) == (str(base), "raw")
    assert paths.resolve_disk(str(wanted.path), VM_ID, DiskFormat.QCOW2, readonly=False) == wanted.path


async def test_ensure_that_fails_at_the_second_image_leaves_nothing(images: DiskImages, paths: StoragePaths) -> None:
    good, bad = plan(paths), plan(paths, size_mib=2**50)
    with pytest.raises(FailedPrecondition) as caught:
        await images.ensure(VM_ID, [good, bad])
    assert caught.value.reason == "DISK_IMAGE_FAILED"
    assert str(paths.root) not in caught.value.message
    assert not paths.vm_dir(VM_ID).exists()


async def test_ensure_of_an_image_with_another_size_is_refused_and_kept(
    images: DiskImages, paths: StoragePaths
) -> None:
    wanted = plan(paths)
    await images.ensure(VM_ID, [wanted])
    larger = ImagePlan(wanted.disk_id, wanted.path, wanted.format, 9 * MIB)
    with pytest.raises(AlreadyExists):
        await images.ensure(VM_ID, [larger])
    assert wanted.path.exists()


async def test_grow_enlarges_and_never_shrinks(images: DiskImages, paths: StoragePaths) -> None:
    wanted = plan(paths)
    await images.ensure(VM_ID, [wanted])
    for size_mib, expected_mib in ((16, 16), (16, 16), (4, 16)):
        await images.grow(VM_ID, ImagePlan(wanted.disk_id, wanted.path, wanted.format, size_mib * MIB))
        info = await images.info(VM_ID, wanted.path, wanted.format)
        assert info.virtual_size_bytes == expected_mib * MIB


async def test_discard_keeps_images_it_was_not_given(images: DiskImages, paths: StoragePaths) -> None:
    old, new = plan(paths), plan(paths)
    await images.ensure(VM_ID, [old])
    await images.discard(VM_ID, await images.ensure(VM_ID, [old, new]))
    assert list(paths.vm_dir(VM_ID).iterdir()) == [old.path]


async def test_delete_vm_removes_everything_and_may_be_repeated(images: DiskImages, paths: StoragePaths) -> None:
    await images.ensure(VM_ID, [plan(paths), plan(paths)])
    await images.delete_vm(VM_ID)
    await images.delete_vm(VM_ID)
    assert [path.name for path in paths.root.iterdir()] == ["templates"]


async def test_missing_qemu_img_says_what_to_install(paths: StoragePaths) -> None:
    with pytest.raises(FailedPrecondition, match="install qemu-utils"):
        await DiskImages(paths, "qemu-img-that-is-not-there").ensure(VM_ID, [plan(paths)])
    assert not paths.vm_dir(VM_ID).exists()


async def test_cancelled_ensure_ends_the_program_and_leaves_nothing(paths: StoragePaths, tmp_path: Path) -> None:
    began, program = tmp_path / "began", tmp_path / "slow-qemu-img"
    os.mkfifo(began)
    program.write_text(f"#!/bin/sh\necho $$ > {began}; exec sleep 600\n")
    program.chmod(0o755)
    task = asyncio.create_task(DiskImages(paths, str(program)).ensure(VM_ID, [plan(paths)]))
    pid = int(await asyncio.to_thread(began.read_text))  # waits for the program to write it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)
    assert not paths.vm_dir(VM_ID).exists()


async def test_ensure_begins_anew_beside_a_program_that_outlived_a_killed_daemon(
    images: DiskImages, paths: StoragePaths
) -> None:
    wanted = plan(paths)
    partial = wanted.path.with_name(f".{wanted.path.name}.part")
    partial.parent.mkdir()
    partial.write_bytes(b"half an image")
    with partial.open("r+b") as file:  # as the orphan holds it: qemu-img refuses a file whose lock another one has
        fcntl.fcntl(file, F_OFD_SETLK, LOCK_OF_QEMU)
        assert await images.ensure(VM_ID, [wanted]) == [wanted.path]
        file.write(b"what the orphan writes late")
    assert (await images.info(VM_ID, wanted.path, wanted.format)).virtual_size_bytes == 8 * MIB
    assert list(wanted.path.parent.iterdir()) == [wanted.path]
