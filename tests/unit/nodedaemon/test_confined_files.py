"""Opening below a directory, in one step and step by step, with links at every level and a racing swapper."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodedaemon import confined_files
from nodedaemon.confined_files import Escapes, Open, open_beneath, open_in_one_step, open_step_by_step

RACE_S = 0.5
DEADLINE_S = 60.0


@pytest.fixture(params=[open_in_one_step, open_step_by_step], ids=["one step", "step by step"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Both ways of opening, the second being that of older kernels."""
    if request.param is open_in_one_step and confined_files._open is open_step_by_step:
        pytest.skip("this kernel, or its sandbox, has no openat2")
    monkeypatch.setattr(confined_files, "_open", request.param)
    way: Open = request.param
    return way


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Storage with a file three levels down, and a secret beside it in the same shape."""
    for name in ("storage", "secret"):
        (tmp_path / name / "a/b").mkdir(parents=True)
        (tmp_path / name / "a/b/disk.raw").write_text(name)
    return tmp_path / "storage"


def _read(root: Path, path: Path) -> str:
    descriptor = open_beneath(root, path)
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_file_below_is_opened_and_no_descriptor_is_left(root: Path) -> None:
    before = _descriptor_count()

    assert _read(root, root / "a/b/disk.raw") == "storage"
    with pytest.raises(OSError, match="No such file"):
        open_beneath(root, root / "a/missing")
    assert _descriptor_count() == before


def test_descriptor_is_not_given_to_other_programs(root: Path) -> None:
    descriptor = open_beneath(root, root / "a/b/disk.raw")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("level", ["a", "a/b", "a/b/disk.raw"])
@pytest.mark.parametrize("target", ["outside", "inside", "absolute inside"])
def test_link_at_any_level_is_not_followed(root: Path, level: str, target: str) -> None:
    (root / "other").mkdir()
    (root / level).rename(root / "other/kept")
    leads_to = {
        "outside": root.parent / "secret" / level,
        "inside": Path(os.path.relpath(root / "other/kept", (root / level).parent)),
        "absolute inside": root / "other/kept",
    }
    (root / level).symlink_to(leads_to[target])

    with pytest.raises(Escapes):
        _read(root, root / "a/b/disk.raw")


@pytest.mark.parametrize("path", ["../secret/a/b/disk.raw", "a/../../secret/a/b/disk.raw", "a/b/../b/disk.raw"])
def test_path_that_climbs_is_refused(root: Path, path: str) -> None:
    with pytest.raises(Escapes):
        open_beneath(root, root / path)


@pytest.mark.parametrize("path", ["/etc/passwd", "a/b/disk.raw", ""])
def test_path_that_is_not_below_is_refused(root: Path, path: str) -> None:
    with pytest.raises(Escapes):
        open_beneath(root, Path(path))


def test_link_of_the_kernels_own_is_not_followed(root: Path) -> None:
    secret = os.open(root.parent / "secret/a/b/disk.raw", os.O_RDONLY)
    (root / "a/fd").symlink_to(f"/proc/self/fd/{secret}")
    with pytest.raises(Escapes):
        open_beneath(root, root / "a/fd")
    os.close(secret)


def test_root_may_be_behind_a_link(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert _read(link, link / "a/b/disk.raw") == "storage"


def test_pipe_is_opened_without_waiting(root: Path) -> None:
    os.mkfifo(root / "a/pipe")
    descriptor = open_beneath(root, root / "a/pipe")
    assert os.read(descriptor, 1) == b""
    os.close(descriptor)


@pytest.fixture
def swapper(root: Path) -> Iterator[threading.Event]:
    """Somebody who puts a link to the secret in the place of a directory, and takes it back, as fast as they can."""
    stop, swapped = threading.Event(), threading.Event()
    kept, link = root / "kept", root / "link"

    def swap() -> None:
        link.symlink_to(root.parent / "secret/a")
        while not stop.is_set():
            (root / "a").rename(kept)
            link.rename(root / "a")
            swapped.set()
            (root / "a").rename(link)
            kept.rename(root / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    assert swapped.wait(DEADLINE_S)
    yield swapped
    stop.set()
    thread.join(DEADLINE_S)


def test_racing_swapper_never_gets_the_secret_opened(root: Path, swapper: threading.Event) -> None:
    found: dict[str, int] = {}
    until_s = time.monotonic() + RACE_S
    while time.monotonic() < until_s or "storage" not in found or len(found) < 2:
        assert time.monotonic() < until_s + DEADLINE_S, f"the race never went both ways: {found}"
        try:
            outcome = _read(root, root / "a/b/disk.raw")
        except OSError as error:
            outcome = type(error).__name__
        found[outcome] = found.get(outcome, 0) + 1

    assert "secret" not in found
