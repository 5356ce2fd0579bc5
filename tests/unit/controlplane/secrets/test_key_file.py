"""The key file is made once, for its owner alone, and refused where others could have read it."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.secrets.key_file import add_key, read_or_make
from controlplane.secrets.wrapping import KeysUnusable

DATA_KEY = bytes(range(32))


async def test_key_file_is_made_for_its_owner_alone_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret.key"
    wrapped = await read_or_make(path, may_make=True).wrap(DATA_KEY, "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = read_or_make(path, may_make=True)
    assert await again.unwrap(wrapped, "1") == DATA_KEY
    assert again.is_current(wrapped)
    assert DATA_KEY not in wrapped
    assert os.listdir(path.parent) == ["secret.key"]


async def test_two_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: read_or_make(path, may_make=True), range(8)))
    wrapped = await found[0].wrap(DATA_KEY, "1")
    assert [await each.unwrap(wrapped, "1") for each in found] == [DATA_KEY] * 8


def test_missing_file_is_not_made_anew_where_secrets_are_sealed(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="put it back"):
        read_or_make(tmp_path / "secret.key", may_make=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret.key"
    read_or_make(path, may_make=True)
    path.chmod(mode)
    with pytest.raises(KeysUnusable, match="chmod 600"):
        read_or_make(path, may_make=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    read_or_make(path, may_make=True)
    os.chown(path, 12345, -1)
    with pytest.raises(KeysUnusable, match="belongs to user 12345"):
        read_or_make(path, may_make=True)


def test_link_and_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "secret.key", tmp_path / "link", tmp_path / "pipe"
    read_or_make(path, may_make=True)
    link.symlink_to(path)
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KeysUnusable, match="cannot be read"):
        read_or_make(link, may_make=False)
    with pytest.raises(KeysUnusable, match="no regular file"):
        read_or_make(pipe, may_make=False)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "v1 AAAA\n", "v2 " + "A" * 44 + "\n", "v1 ?\n", "\xff\n"])
def test_file_without_good_keys_is_refused_and_its_words_are_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret.key"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(KeysUnusable) as refusal:
        read_or_make(path, may_make=True)
    assert "AAAA" not in str(refusal.value)


async def test_added_key_wraps_and_older_ones_still_unwrap(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    older = await read_or_make(path, may_make=True).wrap(DATA_KEY, "1")
    add_key(path)
    keys = read_or_make(path, may_make=False)
    assert not keys.is_current(older)
    assert await keys.unwrap(older, "1") == DATA_KEY
    assert keys.is_current(await keys.wrap(DATA_KEY, "1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_key_of_another_cluster_says_what_to_do(tmp_path: Path) -> None:
    wrapped = await read_or_make(tmp_path / "a", may_make=True).wrap(DATA_KEY, "1")
    with pytest.raises(KeysUnusable, match="key file of the others"):
        await read_or_make(tmp_path / "b", may_make=True).unwrap(wrapped, "1")
