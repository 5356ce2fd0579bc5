"""Tell what became of a migration from what its two hosts say of the VM. Pure.

What carries a VM over hands it on in one direction: the source stops the guest before the target may run it, and
never lets it go on once the target has it. So a guest that runs at one of the two runs there alone. A host that does
not answer says nothing, and nothing is concluded from its silence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Sight(enum.StrEnum):
    """What one host says of a VM."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """In memory and standing still: as it was asked to, or in the middle of a migration."""
    OFF = "OFF"
    ABSENT = "ABSENT"
    SILENT = "SILENT"
    DEAD = "DEAD"
    """It says nothing, and it is proven that it runs nothing."""


class Progress(enum.StrEnum):
    """How far the source says the migration is."""

    UNKNOWN = "UNKNOWN"
    """It knows of none, or does not answer."""
    UNDER_WAY = "UNDER_WAY"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    TORN = "TORN"
    """It failed after the target had begun to run the guest on memory that it fetches on demand: what the source still
    has in memory is older than what is on the disks."""


class Whereabouts(enum.StrEnum):
    """Where the VM is."""

    SOURCE = "SOURCE"
    TARGET = "TARGET"
    TARGET_UNCONFIRMED = "TARGET_UNCONFIRMED"
    """It runs at the target, and the source has not said yet that it let go of it."""
    UNDER_WAY = "UNDER_WAY"
    UNKNOWN = "UNKNOWN"
    ENDED_AT_TARGET = "ENDED_AT_TARGET"
    """It came over whole and is off there by now; what the source still has in memory is older than the disks, and has
    to go before the VM is said to be the target's."""
    GONE = "GONE"
    """Neither host has it, or has noticed yet that it has."""


@dataclass(frozen=True, slots=True)
class Views:
    """What both hosts say; `progress` belongs to the source."""

    source: Sight
    target: Sight
    progress: Progress = Progress.UNKNOWN

    @property
    def text(self) -> str:
        """For people: "source RUNNING, target SILENT, migration FAILED"."""
        return f"source {self.source}, target {self.target}, migration {self.progress}"


_HERE = frozenset({Sight.RUNNING, Sight.PAUSED, Sight.OFF})


def whereabouts(views: Views, *, ran: bool, shares_disks: bool = False) -> Whereabouts:
    """Say where the VM is.

    Args:
        ran: whether its guest was in memory when the migration began.
        shares_disks: whether both hosts have the same disks, so that one which is off is whole at either.
    """
    if views.progress is Progress.UNDER_WAY:
        return Whereabouts.UNDER_WAY
    if _GIVES_NO_STATE & {views.source} or views.target is Sight.DEAD:
        return _without_one(views)
    if views.target is Sight.RUNNING:
        return _beside_running_target(views.source)
    has_one_not_noticed_yet = views.progress is Progress.COMPLETE and views.target is Sight.ABSENT
    is_torn = (
        views.progress is Progress.TORN and views.source is not Sight.RUNNING and not _has_ended_there(views, ran=ran)
    )
    if has_one_not_noticed_yet or is_torn:
        return Whereabouts.UNKNOWN
    if views.source is Sight.RUNNING or views.target is Sight.ABSENT:
        return Whereabouts.SOURCE
    return _both_still(views, ran=ran, shares_disks=shares_disks)


_GIVES_NO_STATE = frozenset({Sight.ABSENT, Sight.SILENT, Sight.DEAD})


def _without_one(views: Views) -> Whereabouts:
    if views.source is Sight.DEAD:
        return _after_death_of_source(views.target)
    return _after_death_of_target(views) if views.target is Sight.DEAD else _without_source(views)


def _after_death_of_source(target: Sight) -> Whereabouts:
    if target is Sight.RUNNING:
        return Whereabouts.TARGET
    # One that stands still there may be about to vanish with what was sent, or may have come over whole.
    return Whereabouts.UNKNOWN if target in (Sight.PAUSED, Sight.SILENT) else Whereabouts.SOURCE


def _after_death_of_target(views: Views) -> Whereabouts:
    if views.source in (Sight.RUNNING, Sight.OFF):
        return Whereabouts.SOURCE
    if views.source is Sight.ABSENT:
        return Whereabouts.TARGET
    # One that stands still may have run at the target meanwhile: its memory is older than its disks then.
    failed = views.source is Sight.PAUSED and views.progress is Progress.FAILED
    return Whereabouts.SOURCE if failed else Whereabouts.UNKNOWN


def _without_source(views: Views) -> Whereabouts:
    if views.source is Sight.SILENT:
        return Whereabouts.TARGET_UNCONFIRMED if views.target is Sight.RUNNING else Whereabouts.UNKNOWN
    if views.target in _HERE:
        return Whereabouts.TARGET
    return Whereabouts.GONE if views.target is Sight.ABSENT else Whereabouts.UNKNOWN


def _beside_running_target(source: Sight) -> Whereabouts:
    if source is Sight.OFF:
        return Whereabouts.TARGET
    # Two that run are beyond what a migration can do; nothing is decided for them.
    return Whereabouts.UNKNOWN if source is Sight.RUNNING else Whereabouts.TARGET_UNCONFIRMED


def _has_ended_there(views: Views, *, ran: bool) -> bool:
    """Tell a guest that came over and is off by now, while its source stands still and knows no more.

    One on its way is not kept at the target before it has come over whole: if it does not, it vanishes. And
    nothing else of the VM was there when it was let in.
    """
    knows_more = views.progress in (Progress.FAILED, Progress.COMPLETE)
    return ran and not knows_more and views.source is Sight.PAUSED and views.target is Sight.OFF


def _both_still(views: Views, *, ran: bool, shares_disks: bool) -> Whereabouts:
    """Decide where the source stands still or is off, and the target is silent or has it too, not running."""
    if _has_ended_there(views, ran=ran):
        return Whereabouts.ENDED_AT_TARGET
    if views.progress is Progress.FAILED:
        return Whereabouts.SOURCE
    if views.target is Sight.SILENT:
        # One that was off, and is, is where it was: nothing of it can have run elsewhere without having been started.
        return Whereabouts.SOURCE if views.source is Sight.OFF and not ran else Whereabouts.UNKNOWN
    if views.progress is Progress.COMPLETE:
        return Whereabouts.TARGET_UNCONFIRMED
    # Where its guest was in memory, that is lost by now; it can be started wherever its disks are.
    is_lost = views.source is Sight.OFF and views.target is Sight.OFF and shares_disks
    return Whereabouts.SOURCE if is_lost or (views.source is Sight.OFF and not ran) else Whereabouts.UNKNOWN
