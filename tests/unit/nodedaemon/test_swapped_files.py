"""Names that lead elsewhere by the time they are used: what was judged is what is used, or nothing is."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import pytest

from hypervisor.types import DiskFormat
from limiquantix.errors import FailedPrecondition
from nodedaemon.disk_images import DiskImages, ImagePlan
from nodedaemon.image_inspector import SourceFormat
from nodedaemon.storage_paths import PathRefused, StoragePaths
from tests.support.hostile_images import qcow2

VM_ID = str(uuid.uuid4())
MIB = 2**20


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    (tmp_path / "storage/isos").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    return StoragePaths(tmp_path / "storage")


def _plan(paths: StoragePaths, source: Path | None = None) -> ImagePlan:
    disk_id = str(uuid.uuid4())
    image = None if source is None else paths.resolve_source(str(source), VM_ID, SourceFormat.RAW)
    return ImagePlan(disk_id, paths.image_path(VM_ID, disk_id, DiskFormat.RAW), DiskFormat.RAW, 2 * MIB, source=image)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("level", ["isos", "isos/a.raw"])
async def test_source_that_became_a_link_is_not_copied(paths: StoragePaths, level: str) -> None:
    source = paths.root / "isos/a.raw"
    source.write_bytes(b"x" * MIB)
    plan = _plan(paths, source)
    shutil.rmtree(paths.root / "isos")
    (paths.root / level).parent.mkdir(exist_ok=True)
    outside = paths.root.parent / "elsewhere"
    outside.mkdir()
    (outside / "a.raw").symlink_to(paths.root.parent / "secret")
    (paths.root / level).symlink_to(outside if level == "isos" else paths.root.parent / "secret")

    with pytest.raises(FailedPrecondition):
        await DiskImages(paths).ensure(VM_ID, [plan])
    assert not plan.path.exists()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_source_that_is_sound_is_copied_by_its_descriptor(paths: StoragePaths) -> None:
    source = paths.root / "isos/a.raw"
    source.write_bytes(b"x" * MIB)
    plan = _plan(paths, source)
    before = len(os.listdir("/proc/self/fd"))

    await DiskImages(paths).ensure(VM_ID, [plan])

    assert plan.path.read_bytes() == b"x" * MIB + b"\0" * MIB
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_directory_of_a_vm_that_is_a_link_gets_no_image(paths: StoragePaths) -> None:
    outside = paths.root.parent / "outside"
    outside.mkdir()
    paths.vm_dir(VM_ID).symlink_to(outside)

    with pytest.raises(FailedPrecondition):
        await DiskImages(paths).ensure(VM_ID, [_plan(paths)])
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("damage", [{"backing_at": 2**63}, {"backing_at": 2**64 - 1}, {"header_bytes": 2**32 - 1}])
def test_header_that_points_far_away_is_refused(paths: StoragePaths, damage: dict[str, int]) -> None:
    (paths.root / "a.qcow2").write_bytes(qcow2(**damage))  # type: ignore[arg-type]
    if "backing_at" in damage:
        with pytest.raises(PathRefused, match="not a sound qcow2 image"):
            paths.resolve_disk("a.qcow2", VM_ID, DiskFormat.QCOW2, readonly=False)
    with pytest.raises(PathRefused):
        paths.resolve_source("a.qcow2", VM_ID, SourceFormat.QCOW2)
