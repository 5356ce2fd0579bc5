"""Where something can go wrong, what can go wrong there, and what makes it go wrong just once.

A boundary is a place where control leaves the process: it may be killed there, and what it waits for may fail. A clean
run counts them; each later run strikes at one of them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


class Place(enum.Enum):
    """Kind of boundary."""

    READ = "read of the database"
    BEFORE_COMMIT = "transaction, before"
    AFTER_COMMIT = "transaction, after"
    BEFORE_CALL = "call, before"
    AFTER_CALL = "call, after"
    BEFORE_ACT = "host, before"
    AFTER_ACT = "host, after"
    GUEST = "guest, waited for"


class Fault(enum.StrEnum):
    """What goes wrong at one boundary; the values are headings of the table."""

    FAIL = "fail"
    """The step is refused for good."""
    FAIL_TRANSIENT = "fail twice"
    """What is called does not answer twice, then it does."""
    TWICE = "twice"
    """It is done twice; a transaction the first time in vain, as after a conflict."""
    KILL_CONTROL_PLANE = "kill cp"
    KILL_DAEMON = "kill node"
    """The daemon is killed, and is back when it is called the next time."""
    DAEMON_GONE = "node gone"
    """The daemon is killed, and is back only after the operation has given up."""
    LOSE_ANSWER = "lost"
    """It was done, and the caller hears that it does not answer."""
    ANSWER_TOO_LATE = "too late"
    """It was done, and the caller's patience has ended."""
    LATE_COMMAND = "delayed"
    """The caller hears of a lost connection, and the command arrives when everything is over."""
    KILLED_AND_LATE = "kill+delayed"
    """The control plane is killed while its command is on its way, which arrives when everything is over."""
    STORE_BLINKS = "db blinks"
    """The database does not answer twice."""
    STORE_AWAY = "db away"
    """The database does not answer for longer than anybody tries."""
    COMMIT_UNKNOWN = "commit?"
    """The commit happened, and the caller hears that nobody knows."""
    COMMIT_UNKNOWN_AWAY = "commit?away"
    """The same, and then the database is away."""
    SLOW = "slow cp"
    """The control plane stands still until another one has taken its work, and then goes on."""
    CANCEL = "cancel"
    """Somebody asks for the operation to be cancelled."""
    FORCED_STOP = "force stop"
    """Somebody asks for a forced stop of the same VM."""
    FORCED_DELETE = "force del"
    """Somebody asks for a forced deletion of the same VM."""


BYSTANDERS = (Fault.CANCEL, Fault.FORCED_STOP, Fault.FORCED_DELETE)
"""No faults, but others who want something at a bad moment."""

_PLANE = (Fault.KILL_CONTROL_PLANE, Fault.SLOW, *BYSTANDERS)
_STORE = (Fault.STORE_BLINKS, Fault.STORE_AWAY, *_PLANE)
_HOST = (Fault.KILL_DAEMON, Fault.DAEMON_GONE, Fault.KILL_CONTROL_PLANE, *BYSTANDERS)
_CALL = (*_HOST, Fault.SLOW)

FAULTS_AT: dict[Place, tuple[Fault, ...]] = {
    Place.READ: _STORE,
    Place.BEFORE_COMMIT: (*_STORE, Fault.TWICE),
    Place.AFTER_COMMIT: (Fault.COMMIT_UNKNOWN, Fault.COMMIT_UNKNOWN_AWAY, *_PLANE),
    Place.BEFORE_CALL: (
        *_CALL,
        Fault.FAIL,
        Fault.FAIL_TRANSIENT,
        Fault.TWICE,
        Fault.LATE_COMMAND,
        Fault.KILLED_AND_LATE,
    ),
    Place.AFTER_CALL: (*_CALL, Fault.LOSE_ANSWER, Fault.ANSWER_TOO_LATE),
    Place.BEFORE_ACT: (*_HOST, Fault.FAIL, Fault.FAIL_TRANSIENT),
    Place.AFTER_ACT: (*_HOST, Fault.LOSE_ANSWER),
    Place.GUEST: _HOST,
}
"""What can go wrong where."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """One place that an operation passes, in the order of a clean run from 0."""

    index: int
    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.index:2} {self.place.value:20} {self.what}"


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at one boundary."""

    index: int
    fault: Fault


BLINK_COUNT = 2
AWAY_S = 0.06
"""Longer than all that `failure_harness_plane.PATIENCE` allows for one write."""


_IN_DAEMON = (Place.BEFORE_ACT, Place.AFTER_ACT, Place.GUEST)


@dataclass
class Weather:
    """Strikes once while it is armed, and counts boundaries until then.

    Args:
        bystander: asks for what one of `BYSTANDERS` wants, and returns as soon as that is recorded.
    """

    strike: Strike | None
    bystander: Callable[[Fault], Awaitable[None]]
    boundaries: list[Boundary] = field(default_factory=list)
    has_struck: bool = False
    is_armed: bool = False
    plane_is_doomed: asyncio.Event = field(default_factory=asyncio.Event)
    plane_stands_still: asyncio.Event = field(default_factory=asyncio.Event)
    plane_wakes: asyncio.Event = field(default_factory=asyncio.Event)
    late: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    """Commands that are still on their way."""
    daemon_silences: int = 0
    """Calls that still find no answer."""
    _store_blinks: int = 0
    _store_back_at_s: float = 0.0

    async def reach(self, place: Place, what: str) -> Fault | None:
        """Pass a boundary; returns what shall go wrong there, as far as the place itself has to see to it."""
        if not self.is_armed:
            return None
        index = len(self.boundaries)
        self.boundaries.append(Boundary(index, place, what))
        if self.strike is None or index < self.strike.index or self.strike.fault not in FAULTS_AT[place]:
            return None  # on a slow machine an operation reads more often, so something else may have this index
        self.is_armed, self.has_struck = False, True
        match self.strike.fault:
            case Fault.CANCEL | Fault.FORCED_STOP | Fault.FORCED_DELETE as wish:
                await self.bystander(wish)
            case Fault.SLOW:
                self.plane_stands_still.set()
                await self.plane_wakes.wait()
            case Fault.KILL_CONTROL_PLANE:
                self.plane_is_doomed.set()
                if place not in _IN_DAEMON:  # there the daemon goes on
                    await asyncio.get_running_loop().create_future()  # until the kill
            case fault:
                return fault
        return None

    def name_last(self, what: str) -> None:
        """Say what the last boundaries were about, which is only known after them."""
        for offset in (-1, -2):
            if -offset <= len(self.boundaries) and not self.boundaries[offset].what:
                old = self.boundaries[offset]
                self.boundaries[offset] = Boundary(old.index, old.place, what)

    def begin_store_blink(self) -> None:
        """Let the database not answer for some calls."""
        self._store_blinks = BLINK_COUNT

    def begin_store_absence(self) -> None:
        """Let the database not answer for some time."""
        self._store_back_at_s = asyncio.get_running_loop().time() + AWAY_S

    def store_is_away(self) -> bool:
        """Whether the database does not answer this call."""
        if self._store_blinks:
            self._store_blinks -= 1
            return True
        return asyncio.get_running_loop().time() < self._store_back_at_s


def faults_at(boundary: Boundary) -> tuple[Fault, ...]:
    """Say what can go wrong at a boundary of a clean run."""
    possible = FAULTS_AT[boundary.place]
    if boundary.what.startswith("images."):
        # Files either are changed or say why not; nothing is between the daemon and them that could lose an answer.
        return tuple(fault for fault in possible if fault not in (Fault.FAIL_TRANSIENT, Fault.LOSE_ANSWER))
    return possible
