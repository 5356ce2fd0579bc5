"""Leases are granted only upon a fresh reading of the database or the coordination service that shows no mark."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.coordination.interface import CoordinationAway, Coordinator
from controlplane.domain.fencing import HaSettings, Marks
from controlplane.services.lease_marks import LeaseMarks
from controlplane.state.interface import Store
from limiquantix.errors import ApiError, Reason, Unavailable

NODE = "node-1"
FRESHNESS_S = 2.0


class _Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass
class Place:
    """The database and the coordination service: what is written there, and readings that take their time."""

    token: int = 0
    is_current: bool = False
    published: int = 0
    fails: bool = False

    def marks(self) -> Marks:
        revoked = {NODE: self.token} if self.is_current else {}
        tokens = {NODE: self.token} if self.token else {}
        return Marks(epoch=1, settings=HaSettings(), revoked=revoked, tokens=tokens)

    async def read(self, work: Callable[[Any], Any]) -> Marks:
        """As `Store.read` of the marks: it sees what is there at a moment between its beginning and its end."""
        await _Pause()
        if self.fails:
            raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")
        seen = self.marks()
        await _Pause()
        return seen

    async def revocations(self) -> dict[str, int]:
        await _Pause()
        if self.fails:
            raise CoordinationAway("no endpoint answers")
        seen = {NODE: self.published} if self.published else {}
        await _Pause()
        return seen


@dataclass
class Scene:
    """Both places, a process that reads them, and a clock; everything goes on only as it is told."""

    now_s: float = 100.0
    database: Place = field(default_factory=Place)
    etcd: Place = field(default_factory=Place)
    intent_s: float | None = None
    """When the fence was both recorded and published; None while it is not, or not any more."""
    marks: LeaseMarks = field(init=False)
    readings: dict[str, Coroutine[Any, Any, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store, coordinator = cast("Store", self.database), cast("Coordinator", self.etcd)
        self.marks = LeaseMarks(store, coordinator, FRESHNESS_S, lambda: self.now_s)

    def go_on(self, name: str, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a reading, or carry the one under way one pause further."""
        if name not in self.readings:
            self.readings[name] = read()
        try:
            self.readings[name].send(None)
        except (StopIteration, ApiError, CoordinationAway):
            del self.readings[name]

    def read_all(self) -> None:
        self.do("db all")
        self.do("etcd all")

    def do(self, step: str) -> None:
        match step.split():
            case ["wait", seconds]:
                self.now_s += float(seconds)
            case ["db" | "etcd" as name]:
                self.go_on(name, self.marks.read_recorded if name == "db" else self.marks.read_published)
            case ["db" | "etcd" as name, "all"]:
                self.do(name)
                while name in self.readings:
                    self.do(name)
            case ["db-away"]:
                self.database.fails = not self.database.fails
            case ["etcd-away"]:
                self.etcd.fails = not self.etcd.fails
            case ["open"] if not self.database.is_current:
                self.database.token += 1
                self.database.is_current = True
            case ["publish"] if self.database.is_current and self.etcd.published < self.database.token:
                self.etcd.published = self.database.token
                self.intent_s = self.now_s
            case ["end"] if self.database.is_current:
                self.database.is_current, self.intent_s = False, None
            case ["clear"] if not self.database.is_current:
                self.etcd.published = 0

    def close(self) -> None:
        for reading in self.readings.values():
            reading.close()


READINGS = ("db", "etcd", "etcd", "db all", "etcd all", "db-away")
EVENTS = ("wait 1.9", "wait 2.1", "open", "publish", "end", "clear", "etcd-away")
STEPS = st.sampled_from(READINGS + EVENTS)


@given(st.lists(STEPS, min_size=5, max_size=40))
@settings(max_examples=1500, deadline=None)
def test_no_lease_is_granted_later_than_freshness_after_the_intent(steps: list[str]) -> None:
    scene = Scene()
    for step in steps:
        scene.do(step)
        if scene.intent_s is not None and scene.now_s - scene.intent_s > FRESHNESS_S:
            assert not scene.marks.may_grant(NODE), steps
    scene.close()


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_happened_a_node_without_a_fence_gets_its_lease_once_either_place_was_read(steps: list[str]) -> None:
    scene = Scene()
    for step in steps:
        scene.do(step)
    scene.close()
    scene.readings.clear()
    scene.database.fails = scene.etcd.fails = False
    scene.do("end")
    scene.read_all()

    assert scene.marks.may_grant(NODE)  # also if a leader died before it took the published mark back


def test_nothing_is_granted_before_anything_was_read() -> None:
    scene = Scene()
    assert not scene.marks.may_grant(NODE)
    assert scene.marks.recorded is None


@pytest.mark.parametrize("away", ["db-away", "etcd-away"])
def test_one_place_alone_keeps_leases_going(away: str) -> None:
    scene = Scene()
    scene.read_all()
    scene.do(away)
    scene.do("wait 60")
    assert not scene.marks.may_grant(NODE)

    scene.read_all()

    assert scene.marks.may_grant(NODE)
    assert (scene.marks.recorded is None) is (away == "db-away")


@pytest.mark.parametrize("place", ["db", "etcd"])
def test_age_counts_from_the_beginning_of_a_reading(place: str) -> None:
    scene = Scene()
    scene.do(place)
    scene.do("wait 2.1")
    scene.do(place)
    scene.do(place)  # ends, with what it saw at some moment since

    assert not scene.marks.may_grant(NODE)


def test_mark_in_either_place_ends_leases() -> None:
    scene = Scene()
    scene.do("open")
    scene.read_all()
    assert not scene.marks.may_grant(NODE)
    assert scene.marks.may_grant("another")

    unrecorded = Scene()
    unrecorded.etcd.published = 5
    unrecorded.read_all()
    assert not unrecorded.marks.may_grant(NODE)


def test_fence_is_seen_when_its_reading_ends_and_anew_with_each_token() -> None:
    scene = Scene()
    scene.do("open")
    scene.do("db")
    scene.do("wait 0.7")
    scene.read_all()
    first = scene.marks.first_seen(NODE)
    assert first is not None
    assert (first.token, first.at_s) == (1, scene.now_s)

    scene.do("wait 0.1")
    scene.read_all()
    assert scene.marks.first_seen(NODE) == first

    scene.do("end")
    scene.do("open")
    scene.read_all()
    again = scene.marks.first_seen(NODE)
    assert again is not None
    assert (again.token, again.at_s) == (2, scene.now_s)

    scene.do("end")
    scene.read_all()
    assert scene.marks.first_seen(NODE) is None


def test_place_that_only_this_process_writes_keeps_no_lease_going() -> None:
    scene = Scene()
    scene.marks.has_second_place = False
    scene.read_all()
    assert scene.marks.may_grant(NODE)

    scene.do("db-away")
    scene.do("wait 60")
    scene.read_all()

    assert not scene.marks.may_grant(NODE)  # another process may have recorded a fence
