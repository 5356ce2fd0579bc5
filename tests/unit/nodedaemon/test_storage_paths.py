"""Which files a VM may use; every attempt to reach another is a case here."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from hypervisor.types import DiskFormat
from nodedaemon.image_inspector import SourceFormat
from nodedaemon.qcow2_header import NotQcow2, read_header
from nodedaemon.storage_paths import MAX_CHAIN_LENGTH, PathRefused, StoragePaths

VM_ID = "11111111-1111-4111-8111-111111111111"
OTHER_ID = "33333333-3333-4333-8333-333333333333"
SIZE_BYTES = 10 * 2**20


def write_qcow2(
    path: Path, backing: str = "", backing_format: str = "qcow2", *, version: int = 3, external_data: bool = False
) -> Path:
    """Write a qcow2 header, without the image behind it."""
    name = backing.encode()
    extensions = b""
    if backing and backing_format:
        text = backing_format.encode()
        extensions = struct.pack(">II", 0xE2792ACA, len(text)) + text.ljust((len(text) + 7) // 8 * 8, b"\0")
    extensions += struct.pack(">II", 0, 0)
    header_bytes = 104 if version == 3 else 72
    name_at = header_bytes + len(extensions) if name else 0
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, name_at, len(name), 16, SIZE_BYTES).ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", 4 if external_data else 0, 0, 0, 4, 104)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + extensions + name + b"\0" * 128)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "templates").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    return root


@pytest.fixture
def paths(root: Path) -> StoragePaths:
    return StoragePaths(root)


def test_file_below_the_root_is_found_by_relative_and_absolute_path(paths: StoragePaths, root: Path) -> None:
    (root / "iso").mkdir()
    iso = root / "iso/a.iso"
    iso.touch()
    assert paths.resolve_file("iso/a.iso", VM_ID) == iso.resolve()
    assert paths.resolve_file(str(iso), VM_ID) == iso.resolve()


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "../secret", "iso/../../secret", "none", ".", "templates", "/dev/null", "a\0b", "x" * 5000]
)
def test_path_outside_or_absent_is_refused_with_the_same_words(paths: StoragePaths, text: str) -> None:
    with pytest.raises(PathRefused) as caught:
        paths.resolve_file(text, VM_ID)
    assert str(caught.value) == "must name an existing regular file below the node's storage path"


def test_symbolic_link_to_the_outside_is_refused(paths: StoragePaths, root: Path) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "dir").symlink_to(root.parent)
    for text in ("link", "dir/secret"):
        with pytest.raises(PathRefused, match="must name an existing regular file"):
            paths.resolve_file(text, VM_ID)


def test_symbolic_link_loop_and_pipe_are_refused(paths: StoragePaths, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    for text in ("loop", "pipe"):
        with pytest.raises(PathRefused):
            paths.resolve_file(text, VM_ID)


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(paths: StoragePaths, root: Path) -> None:
    (root / "iso").mkdir()
    os.mkfifo(root / "iso" / "pipe.raw")
    (root / "iso" / "directory.raw").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(root / "iso"):
        listener.bind("socket.raw")  # a socket's path must be short
    names = ["pipe.raw", "directory.raw", "socket.raw"]
    with contextlib.suppress(PermissionError):  # only root makes devices
        os.mknod(root / "iso" / "device.raw", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, which never ends
        names.append("device.raw")
    for name in names:
        for use in (
            lambda text: paths.resolve_file(text, VM_ID),
            lambda text: paths.resolve_disk(text, VM_ID, DiskFormat.RAW, readonly=True),
            lambda text: paths.resolve_source(text, VM_ID, SourceFormat.RAW),
        ):
            with pytest.raises(PathRefused, match="must name an existing regular file"):
                use(f"iso/{name}")


def test_disk_that_has_a_second_name_is_not_written_to(paths: StoragePaths, root: Path) -> None:
    for name in (OTHER_ID, "iso"):
        (root / name).mkdir()
    theirs = root / OTHER_ID / "d.raw"
    theirs.touch()
    os.link(theirs, root / "iso" / "d.raw")
    with pytest.raises(PathRefused, match="hard link"):
        paths.resolve_disk("iso/d.raw", VM_ID, DiskFormat.RAW, readonly=False)
    with pytest.raises(PathRefused, match="another VM"):
        paths.resolve_disk(f"{OTHER_ID}/d.raw", VM_ID, DiskFormat.RAW, readonly=True)
    theirs.unlink()
    assert paths.resolve_disk("iso/d.raw", VM_ID, DiskFormat.RAW, readonly=False).name == "d.raw"


def test_file_of_another_vm_is_refused_and_an_own_one_is_not(paths: StoragePaths, root: Path) -> None:
    for vm_id in (VM_ID, OTHER_ID):
        (root / vm_id).mkdir()
        (root / vm_id / "d.raw").touch()
    (root / "link").symlink_to(f"{OTHER_ID}/d.raw")
    assert paths.resolve_file(f"{VM_ID}/d.raw", VM_ID.upper()).name == "d.raw"
    for text in (f"{OTHER_ID}/d.raw", "link"):
        with pytest.raises(PathRefused, match="another VM"):
            paths.resolve_file(text, VM_ID)


@pytest.mark.parametrize("name", ["base.img", "base", "base.vmdk"])
def test_template_whose_name_does_not_tell_its_format_is_refused(paths: StoragePaths, root: Path, name: str) -> None:
    (root / "templates" / name).touch()
    with pytest.raises(PathRefused, match=r"\.qcow2 or \.raw"):
        paths.resolve_template(f"templates/{name}")


def test_template_outside_templates_is_refused(paths: StoragePaths, root: Path) -> None:
    (root / "a.raw").touch()
    with pytest.raises(PathRefused, match="below templates/"):
        paths.resolve_template("a.raw")


@pytest.mark.parametrize("version", [2, 3])
def test_template_with_a_chain_inside_templates_is_found(paths: StoragePaths, root: Path, version: int) -> None:
    write_qcow2(root / "templates/base.qcow2")
    write_qcow2(root / "templates/sub/child.qcow2", "../base.qcow2", version=version)
    template = paths.resolve_template("templates/sub/child.qcow2")
    assert (template.format, template.virtual_size_bytes) == (DiskFormat.QCOW2, SIZE_BYTES)


@pytest.mark.parametrize(
    ("backing", "backing_format", "words"),
    [
        ("/etc/passwd", "raw", "outside"),
        ("../../secret", "raw", "outside"),
        ("none.qcow2", "qcow2", "missing"),
        ("nbd:localhost:1", "raw", "plain file"),
        ('json:{"driver":"nbd"}', "raw", "plain file"),
        ("base.qcow2", "", "unstated"),
        ("base.qcow2", "vmdk", "unknown format"),
        ("../iso.raw", "raw", "not below templates/"),
    ],
)
def test_template_whose_backing_file_leads_astray_is_refused(
    paths: StoragePaths, root: Path, backing: str, backing_format: str, words: str
) -> None:
    write_qcow2(root / "templates/base.qcow2")
    (root / "iso.raw").touch()
    write_qcow2(root / "templates/bad.qcow2", backing, backing_format)
    with pytest.raises(PathRefused, match=words):
        paths.resolve_template("templates/bad.qcow2")


def test_template_with_an_external_data_file_is_refused(paths: StoragePaths, root: Path) -> None:
    write_qcow2(root / "templates/bad.qcow2", external_data=True)
    with pytest.raises(PathRefused, match="external data file"):
        paths.resolve_template("templates/bad.qcow2")


def test_chain_that_loops_or_is_too_long_is_refused(paths: StoragePaths, root: Path) -> None:
    write_qcow2(root / "templates/a.qcow2", "a.qcow2")
    with pytest.raises(PathRefused, match=f"more than {MAX_CHAIN_LENGTH}"):
        paths.resolve_template("templates/a.qcow2")


def test_existing_qcow2_disk_that_leads_outside_is_refused(paths: StoragePaths, root: Path) -> None:
    write_qcow2(root / VM_ID / "evil.qcow2", "/etc/shadow", "raw")
    with pytest.raises(PathRefused, match="outside"):
        paths.resolve_disk(f"{VM_ID}/evil.qcow2", VM_ID, DiskFormat.QCOW2, readonly=False)


def test_template_as_a_disk_is_refused_unless_readonly(paths: StoragePaths, root: Path) -> None:
    write_qcow2(root / "templates/base.qcow2")
    with pytest.raises(PathRefused, match="names a template"):
        paths.resolve_disk("templates/base.qcow2", VM_ID, DiskFormat.QCOW2, readonly=False)
    assert paths.resolve_disk("templates/base.qcow2", VM_ID, DiskFormat.QCOW2, readonly=True).name == "base.qcow2"


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"#!/bin/sh\n" * 20, b"QFI\xfb" + b"\xff" * 200])
def test_header_of_something_else_is_no_qcow2(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(NotQcow2):
        read_header(path)
