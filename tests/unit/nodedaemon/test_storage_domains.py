"""The id of a storage is made once, by whoever comes first, and never replaced."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodedaemon.storage_domains import ID_FILE, StorageIdUnusable, read_storage_domain


def test_id_is_made_on_first_use_and_stays(tmp_path: Path) -> None:
    first = read_storage_domain(tmp_path)
    assert str(uuid.UUID(first.id)) == first.id
    assert read_storage_domain(tmp_path).id == first.id
    assert 0 < first.free_bytes <= first.total_bytes
    assert [path.name for path in tmp_path.iterdir()] == [ID_FILE]


def test_hosts_with_the_same_storage_under_other_paths_tell_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_storage_domain(tmp_path / "a").id == read_storage_domain(tmp_path / "b").id


def test_many_that_begin_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: read_storage_domain(tmp_path).id, range(64)))
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [ID_FILE]


def test_other_storages_have_other_ids(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read_storage_domain(tmp_path / "a").id != read_storage_domain(tmp_path / "b").id


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\xff\xfe", b"0" * 1000])
def test_damaged_id_is_an_error_and_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ID_FILE).write_bytes(content)
    with pytest.raises(StorageIdUnusable, match="holds no UUID"):
        read_storage_domain(tmp_path)
    assert (tmp_path / ID_FILE).read_bytes() == content


def test_storage_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageIdUnusable, match="cannot be read or made"):
        read_storage_domain(tmp_path / "absent")
