"""Which image files may be imported, judged by their headers and tables; files by qemu-img where it is installed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from nodedaemon.image_inspector import SourceFormat, inspect
from nodedaemon.image_tables import ImageRefused

MIB = 2**20


@pytest.fixture
def qemu_img() -> str:
    found = shutil.which("qemu-img")
    if found is None:
        pytest.skip("qemu-img is not installed")
    return found


def make(qemu_img: str, path: Path, *options: str, image_format: str = "qcow2", size: str = "64M") -> Path:
    subprocess.run([qemu_img, "create", "-q", "-f", image_format, *options, path, size], check=True, timeout=30)
    return path


def filled(qemu_img: str, path: Path, *options: str, image_format: str = "qcow2") -> Path:
    """An image with 4 MiB that cannot be compressed."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(4 * MIB) + b"\0" * MIB)
    words = ["convert", "-f", "raw", "-O", image_format, *options, str(raw), str(path)]
    subprocess.run([qemu_img, *words], check=True, timeout=30)
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "compat=0.10"), ("-c", "-o", "compression_type=zstd")])
def test_sound_qcow2_image_passes_with_its_size(qemu_img: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = inspect(filled(qemu_img, tmp_path / "a.qcow2", *options), SourceFormat.QCOW2)
    assert found.virtual_size_bytes == 5 * MIB
    assert found.max_output_bytes >= 5 * MIB


@pytest.mark.parametrize("kind", ["monolithicSparse", "streamOptimized"])
def test_vmdk_image_in_one_file_passes_with_its_size(qemu_img: str, tmp_path: Path, kind: str) -> None:
    path = filled(qemu_img, tmp_path / "a.vmdk", "-o", f"subformat={kind}", image_format="vmdk")
    assert inspect(path, SourceFormat.VMDK).virtual_size_bytes == 5 * MIB


def test_raw_image_passes_rounded_up_to_sectors(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"x" * 1000)
    assert inspect(path, SourceFormat.RAW).virtual_size_bytes == 1024


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_vmdk_image_in_several_files_is_refused(qemu_img: str, tmp_path: Path, kind: str) -> None:
    path = filled(qemu_img, tmp_path / "a.vmdk", "-o", f"subformat={kind}", image_format="vmdk")
    with pytest.raises(ImageRefused):
        inspect(path, SourceFormat.VMDK)
    for extent in tmp_path.glob("a-*.vmdk"):
        with pytest.raises(ImageRefused):
            inspect(extent, SourceFormat.VMDK)


def test_vmdk_description_that_points_at_a_file_of_the_host_is_refused(qemu_img: str, tmp_path: Path) -> None:
    path = filled(qemu_img, tmp_path / "a.vmdk", "-o", "subformat=monolithicSparse", image_format="vmdk")
    text = path.read_bytes()
    outside = text.replace(b'SPARSE "a.vmdk"', b'FLAT "/etc/pass"').replace(
        b'"monolithicSparse"', b'"monolithicSparse"'
    )
    assert outside != text
    path.write_bytes(outside)
    with pytest.raises(ImageRefused, match="other files"):
        inspect(path, SourceFormat.VMDK)
    path.write_bytes(text.replace(b"parentCID=ffffffff", b"parentCID=12345678"))
    with pytest.raises(ImageRefused, match="another VMDK"):
        inspect(path, SourceFormat.VMDK)
    path.write_bytes(text[:12] + b"\0" * 8 + text[20:])  # without a capacity, QEMU believes the description alone
    with pytest.raises(ImageRefused, match="part of a VMDK"):
        inspect(path, SourceFormat.VMDK)
    alone = tmp_path / "b.vmdk"
    alone.write_text('# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n')
    with pytest.raises(ImageRefused):
        inspect(alone, SourceFormat.VMDK)


def test_qcow2_image_that_names_another_file_is_refused(qemu_img: str, tmp_path: Path) -> None:
    base = make(qemu_img, tmp_path / "base.qcow2")
    backed = make(qemu_img, tmp_path / "backed.qcow2", "-b", str(base), "-F", "qcow2")
    with pytest.raises(ImageRefused, match="backing file"):
        inspect(backed, SourceFormat.QCOW2)
    split = make(qemu_img, tmp_path / "split.qcow2", "-o", f"data_file={tmp_path / 'data.raw'}")
    with pytest.raises(ImageRefused, match="another file"):
        inspect(split, SourceFormat.QCOW2)
    patched(split, 72, struct.pack(">Q", 0))  # the name is still there, and only the bit says that it is not needed
    with pytest.raises(ImageRefused, match="another file"):
        inspect(split, SourceFormat.QCOW2)


@pytest.mark.parametrize(("bit", "words"), [(2, "corrupt"), (16, "not known"), (1 << 40, "not known")])
def test_qcow2_image_with_features_that_are_not_known_is_refused(
    qemu_img: str, tmp_path: Path, bit: int, words: str
) -> None:
    path = patched(make(qemu_img, tmp_path / "a.qcow2"), 72, struct.pack(">Q", bit))
    with pytest.raises(ImageRefused, match=words):
        inspect(path, SourceFormat.QCOW2)


@pytest.mark.parametrize("kept_bytes", [0, 3, 20, 80, 200, 65_536, 300_000, 2 * MIB])
def test_qcow2_image_that_is_cut_off_is_refused(qemu_img: str, tmp_path: Path, kept_bytes: int) -> None:
    path = filled(qemu_img, tmp_path / "a.qcow2")
    os.truncate(path, kept_bytes)
    with pytest.raises(ImageRefused):
        inspect(path, SourceFormat.QCOW2)


@pytest.mark.parametrize("kind", ["monolithicSparse", "streamOptimized"])
@pytest.mark.parametrize("kept_bytes", [0, 70, 600, 65_536, 2 * MIB])
def test_vmdk_image_that_is_cut_off_is_refused(qemu_img: str, tmp_path: Path, kind: str, kept_bytes: int) -> None:
    path = filled(qemu_img, tmp_path / "a.vmdk", "-o", f"subformat={kind}", image_format="vmdk")
    os.truncate(path, kept_bytes)
    with pytest.raises(ImageRefused):
        inspect(path, SourceFormat.VMDK)


def test_qcow2_bomb_is_refused_before_anything_expands_it(tmp_path: Path) -> None:
    """64 KiB clusters: every entry of the first table leads to one second table, and all of that to one cluster."""
    cluster, l1_count = 65_536, 4096
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, l1_count * 512 * MIB, 0, l1_count, cluster, 2 * cluster, 1, 0, 0
    )
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    compressed = (1 << 62) | (4 * cluster)
    image = header.ljust(cluster, b"\0") + struct.pack(">Q", 3 * cluster) * l1_count
    image = image.ljust(3 * cluster, b"\0") + struct.pack(">Q", compressed) * (cluster // 8) + b"x" * cluster
    path = tmp_path / "bomb.qcow2"
    path.write_bytes(image)
    began_s = time.monotonic()
    with pytest.raises(ImageRefused, match="expands"):
        inspect(path, SourceFormat.QCOW2)
    assert time.monotonic() - began_s < 60


@pytest.mark.parametrize(
    ("name", "content", "stated"),
    [
        ("a.qcow2", b"plain", SourceFormat.QCOW2),
        ("a.raw", b"QFI\xfb" + b"\0" * 600, SourceFormat.RAW),
        ("a.raw", b"KDMV" + b"\0" * 600, SourceFormat.RAW),
        ("a.raw", b"", SourceFormat.RAW),
        ("a.qcow2", b"x" * 512, SourceFormat.RAW),
        ("a.iso", b"x" * 512, SourceFormat.RAW),
        ("a.vmdk", b"COWD" + b"\0" * 600, SourceFormat.VMDK),
        ("a.img", b"\0" * 64 + b"\x7f\x10\xda\xbe" + b"\0" * 600, SourceFormat.RAW),
    ],
)
def test_file_of_another_format_or_name_is_refused(
    tmp_path: Path, name: str, content: bytes, stated: SourceFormat
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageRefused):
        inspect(path, stated)


def test_link_directory_and_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"x" * 512)
    (tmp_path / "link.raw").symlink_to(target)
    (tmp_path / "directory.raw").mkdir()
    os.mkfifo(tmp_path / "pipe.raw")
    for name in ("link.raw", "directory.raw", "pipe.raw", "absent.raw"):
        with pytest.raises(ImageRefused):
            inspect(tmp_path / name, SourceFormat.RAW)
