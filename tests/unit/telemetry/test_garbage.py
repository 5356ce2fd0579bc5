"""Full collections that took long set aside what survived them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from telemetry.garbage import LONG_S, THAW_AFTER_S, ShortCollections


class Told:
    """A clock that is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Told:
    return Told()


@pytest.fixture
def collections(clock: Told) -> Iterator[ShortCollections]:
    """As in a process that just began, with nothing set aside, and no collection but those of the test."""
    thresholds = gc.get_threshold()
    gc.unfreeze()
    gc.disable()
    found = ShortCollections(clock)
    found.install()
    try:
        yield found
    finally:
        found.uninstall()
        gc.set_threshold(*thresholds)
        gc.enable()


def collect(collections: ShortCollections, clock: Told, took_s: float, generation: int = 2) -> None:
    """Have a collection that seems to take so long."""
    info = {"generation": generation}
    collections("start", info)
    clock.now_s += took_s
    collections("stop", info)


def test_what_survives_a_long_collection_is_set_aside(collections: ShortCollections, clock: Told) -> None:
    collect(collections, clock, LONG_S / 2)
    assert gc.get_freeze_count() == 0
    collect(collections, clock, 2 * LONG_S, generation=1)
    assert gc.get_freeze_count() == 0
    collect(collections, clock, 2 * LONG_S)
    assert gc.get_freeze_count() > 1000


def test_what_was_set_aside_goes_when_nobody_refers_to_it(collections: ShortCollections, clock: Told) -> None:
    held = [[number] for number in range(5000)]
    collect(collections, clock, 2 * LONG_S)
    before = gc.get_freeze_count()
    held.clear()
    assert gc.get_freeze_count() <= before - 5000


def test_all_of_it_is_looked_at_again_after_a_while(collections: ShortCollections, clock: Told) -> None:
    collect(collections, clock, 2 * LONG_S)
    clock.now_s += THAW_AFTER_S
    collections("start", {"generation": 2})
    assert gc.get_freeze_count() == 0


def test_python_tells_of_each_collection(collections: ShortCollections, clock: Told) -> None:
    assert collections in gc.callbacks
    clock.now_s += THAW_AFTER_S
    gc.freeze()
    gc.collect()
    assert gc.get_freeze_count() == 0
