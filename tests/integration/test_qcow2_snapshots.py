"""What images say of their snapshots, against qemu-img and qemu-io."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hypervisor.libvirt.qcow2_snapshots import UnreadableImage, read_snapshots

pytestmark = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not installed")

MIB = 2**20


def run(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(params=["64k", "4k", "1M"], ids=lambda size: f"clusters of {size}")
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={request.param}", path, "64M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", path)
    return path


def test_snapshot_takes_nothing_at_first_and_what_was_overwritten_since(image: Path) -> None:
    run("qemu-img", "snapshot", "-c", "one", image)
    assert read_snapshots(image)["one"].own_bytes == 0
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 2M", image)
    own_bytes = read_snapshots(image)["one"].own_bytes
    assert 2 * MIB <= own_bytes <= 3 * MIB
    run("qemu-img", "snapshot", "-c", "two", image)
    assert read_snapshots(image)["one"].own_bytes == own_bytes


def test_image_without_snapshots_has_none(image: Path) -> None:
    assert read_snapshots(image) == {}


@pytest.mark.parametrize("name", ["x" * 255, "ünï 'quoted'", "11111111-1111-4111-8111-111111111111"])
def test_names_are_read_as_they_were_given(image: Path, name: str) -> None:
    run("qemu-img", "snapshot", "-c", name, image)
    assert set(read_snapshots(image)) == {name}


@pytest.mark.parametrize("size_bytes", [0, 50, 72, 200, 70_000])
def test_truncated_image_is_refused(image: Path, tmp_path: Path, size_bytes: int) -> None:
    run("qemu-img", "snapshot", "-c", "one", image)
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(image.read_bytes()[:size_bytes])
    with pytest.raises(UnreadableImage):
        read_snapshots(broken)


def test_image_that_claims_millions_of_snapshots_is_refused(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(60)
        file.write((2**31).to_bytes(4))
    with pytest.raises(UnreadableImage, match="claims"):
        read_snapshots(image)


def test_file_that_is_something_else_or_missing_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"\0" * 4096)
    for path in (raw, tmp_path / "absent", tmp_path):
        with pytest.raises(UnreadableImage):
            read_snapshots(path)
