"""The archive the kernel unpacks, read back by a reader that knows only the format's description."""

import stat
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.dev.cpio import Archive, Entry

_HEADER_BYTES = 110
_names = st.text(alphabet="abcXYZ09._-", min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))


def read_archive(data: bytes) -> list[tuple[str, Entry]]:
    """Return the entries in their order; fails where the bytes are not an archive in the new ASCII format."""
    entries: list[tuple[str, Entry]] = []
    position = 0
    while True:
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = data[position + _HEADER_BYTES : position + _HEADER_BYTES + name_size]
        assert name.endswith(b"\0")
        start = (position + _HEADER_BYTES + name_size + 3) // 4 * 4
        position = (start + size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert set(data[position:]) <= {0}
            return entries
        entries.append((name[:-1].decode(), Entry(mode, data[start : start + size], (major, minor))))


@given(st.dictionaries(_names, st.binary(max_size=50), max_size=8))
def test_archive_any_files_are_read_back_with_their_contents(files: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.add_file(f"/{name}", data, 0o640)

    found = dict(read_archive(archive.to_bytes()))

    assert found == {name: Entry(stat.S_IFREG | 0o640, data) for name, data in files.items()}


def test_archive_deep_file_comes_after_the_directories_above_it() -> None:
    archive = Archive()
    archive.add_file("/usr/lib/deep/file", b"x")

    names = [name for name, _ in read_archive(archive.to_bytes())]

    assert names == ["usr", "usr/lib", "usr/lib/deep", "usr/lib/deep/file"]


def test_archive_special_files_keep_their_type_and_numbers() -> None:
    archive = Archive()
    archive.add_symlink("/bin/sh", "busybox")
    archive.add_character_device("/dev/console", 5, 1)
    archive.add_directory("/tmp", 0o1777)

    found = dict(read_archive(archive.to_bytes()))

    assert found["bin/sh"] == Entry(stat.S_IFLNK | 0o777, b"busybox")
    assert found["dev/console"] == Entry(stat.S_IFCHR | 0o600, device=(5, 1))
    assert found["tmp"] == Entry(stat.S_IFDIR | 0o1777)


def test_archive_same_contents_in_another_order_give_the_same_bytes() -> None:
    one, other = Archive(), Archive()
    one.add_file("/a", b"1")
    one.add_file("/b/c", b"2")
    other.add_file("/b/c", b"2")
    other.add_file("/a", b"1")

    assert one.to_bytes() == other.to_bytes()
    assert PurePosixPath("/a") in one.entries


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", ""])
def test_archive_path_that_is_not_a_file_below_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no absolute path"):
        Archive().add_file(path, b"")
