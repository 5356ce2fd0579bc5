"""Where a VM is, from what its two hosts say: the whole table, by its laws."""

from __future__ import annotations

import itertools

import pytest

from controlplane.domain.migration_truth import Progress, Sight, Views, Whereabouts, whereabouts

EVERYTHING = [
    (Views(source, target, progress), ran)
    for source, target, progress in itertools.product(Sight, Sight, Progress)
    for ran in (True, False)
]
AT_TARGET = {Whereabouts.TARGET, Whereabouts.TARGET_UNCONFIRMED, Whereabouts.ENDED_AT_TARGET}
DECIDED = [(views, ran) for views, ran in EVERYTHING if views.progress is not Progress.UNDER_WAY]


@pytest.mark.parametrize(("source", "target", "progress", "ran", "place"), [
    (Sight.ABSENT, Sight.RUNNING, Progress.COMPLETE, True, Whereabouts.TARGET),
    (Sight.ABSENT, Sight.OFF, Progress.COMPLETE, False, Whereabouts.TARGET),
    (Sight.ABSENT, Sight.OFF, Progress.COMPLETE, True, Whereabouts.TARGET),
    (Sight.ABSENT, Sight.PAUSED, Progress.UNKNOWN, True, Whereabouts.TARGET),
    (Sight.ABSENT, Sight.ABSENT, Progress.UNKNOWN, True, Whereabouts.GONE),
    (Sight.ABSENT, Sight.SILENT, Progress.COMPLETE, True, Whereabouts.UNKNOWN),
    (Sight.RUNNING, Sight.ABSENT, Progress.FAILED, True, Whereabouts.SOURCE),
    (Sight.RUNNING, Sight.ABSENT, Progress.COMPLETE, True, Whereabouts.UNKNOWN),
    (Sight.RUNNING, Sight.ABSENT, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.RUNNING, Sight.SILENT, Progress.FAILED, True, Whereabouts.SOURCE),
    (Sight.RUNNING, Sight.PAUSED, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.RUNNING, Sight.RUNNING, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.RUNNING, Sight.PAUSED, Progress.UNDER_WAY, True, Whereabouts.UNDER_WAY),
    (Sight.PAUSED, Sight.RUNNING, Progress.UNDER_WAY, True, Whereabouts.UNDER_WAY),
    (Sight.PAUSED, Sight.RUNNING, Progress.COMPLETE, True, Whereabouts.TARGET_UNCONFIRMED),
    (Sight.PAUSED, Sight.PAUSED, Progress.FAILED, True, Whereabouts.SOURCE),
    # The target ran it and lost the network, or died: what the source has in memory is no longer what the disks hold.
    (Sight.PAUSED, Sight.PAUSED, Progress.TORN, True, Whereabouts.UNKNOWN),
    (Sight.PAUSED, Sight.ABSENT, Progress.TORN, True, Whereabouts.UNKNOWN),
    (Sight.PAUSED, Sight.RUNNING, Progress.TORN, True, Whereabouts.TARGET_UNCONFIRMED),
    (Sight.PAUSED, Sight.PAUSED, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.PAUSED, Sight.SILENT, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    # It came over and ended there: one on its way that does not come over is not kept there, off.
    (Sight.PAUSED, Sight.OFF, Progress.UNKNOWN, True, Whereabouts.ENDED_AT_TARGET),
    (Sight.PAUSED, Sight.OFF, Progress.TORN, True, Whereabouts.ENDED_AT_TARGET),
    (Sight.PAUSED, Sight.OFF, Progress.FAILED, True, Whereabouts.SOURCE),
    (Sight.PAUSED, Sight.OFF, Progress.UNKNOWN, False, Whereabouts.UNKNOWN),
    (Sight.OFF, Sight.RUNNING, Progress.COMPLETE, True, Whereabouts.TARGET),
    (Sight.OFF, Sight.ABSENT, Progress.FAILED, True, Whereabouts.SOURCE),
    (Sight.OFF, Sight.SILENT, Progress.UNKNOWN, False, Whereabouts.SOURCE),
    (Sight.OFF, Sight.SILENT, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.SILENT, Sight.RUNNING, Progress.UNKNOWN, True, Whereabouts.TARGET_UNCONFIRMED),
    (Sight.SILENT, Sight.PAUSED, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.SILENT, Sight.ABSENT, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.SILENT, Sight.SILENT, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    # One of them is proven to run nothing, which the other one may not have noticed yet.
    (Sight.DEAD, Sight.RUNNING, Progress.UNKNOWN, True, Whereabouts.TARGET),
    (Sight.DEAD, Sight.PAUSED, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.DEAD, Sight.SILENT, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.DEAD, Sight.OFF, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.DEAD, Sight.ABSENT, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.DEAD, Sight.DEAD, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.RUNNING, Sight.DEAD, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.OFF, Sight.DEAD, Progress.UNKNOWN, True, Whereabouts.SOURCE),
    (Sight.PAUSED, Sight.DEAD, Progress.FAILED, True, Whereabouts.SOURCE),
    (Sight.PAUSED, Sight.DEAD, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
    (Sight.PAUSED, Sight.DEAD, Progress.TORN, True, Whereabouts.UNKNOWN),
    (Sight.ABSENT, Sight.DEAD, Progress.COMPLETE, True, Whereabouts.TARGET),
    (Sight.SILENT, Sight.DEAD, Progress.UNKNOWN, True, Whereabouts.UNKNOWN),
])  # fmt: skip
def test_whereabouts_as_the_table_says(
    source: Sight, target: Sight, progress: Progress, ran: bool, place: Whereabouts
) -> None:
    assert whereabouts(Views(source, target, progress), ran=ran) is place


def test_guest_that_is_off_at_both_is_where_it_was_if_both_have_its_disks() -> None:
    both_off = Views(Sight.OFF, Sight.OFF, Progress.UNKNOWN)
    assert whereabouts(both_off, ran=True, shares_disks=True) is Whereabouts.SOURCE
    assert whereabouts(both_off, ran=True, shares_disks=False) is Whereabouts.UNKNOWN, "one copy may be a part"
    changed = [
        views
        for views, ran in EVERYTHING
        if whereabouts(views, ran=ran, shares_disks=True) is not whereabouts(views, ran=ran, shares_disks=False)
    ]
    assert changed == [both_off]


@pytest.mark.parametrize(("views", "ran"), EVERYTHING)
def test_nothing_is_decided_while_it_is_under_way(views: Views, ran: bool) -> None:
    assert (whereabouts(views, ran=ran) is Whereabouts.UNDER_WAY) == (views.progress is Progress.UNDER_WAY)


@pytest.mark.parametrize(("views", "ran"), DECIDED)
def test_host_that_is_said_to_have_it_said_so(views: Views, ran: bool) -> None:
    place = whereabouts(views, ran=ran)
    here = {Sight.RUNNING, Sight.PAUSED, Sight.OFF, Sight.DEAD}
    assert place is not Whereabouts.SOURCE or views.source in here
    assert place not in AT_TARGET or views.target in here
    assert place is not Whereabouts.GONE or (views.source, views.target) == (Sight.ABSENT, Sight.ABSENT)


@pytest.mark.parametrize(("views", "ran"), DECIDED)
def test_running_guest_is_never_said_to_be_elsewhere(views: Views, ran: bool) -> None:
    place = whereabouts(views, ran=ran)
    assert views.source is not Sight.RUNNING or place in (Whereabouts.SOURCE, Whereabouts.UNKNOWN)
    assert views.target is not Sight.RUNNING or place in (*AT_TARGET, Whereabouts.UNKNOWN)


@pytest.mark.parametrize("ran", [True, False])
@pytest.mark.parametrize("target", [Sight.ABSENT, Sight.OFF, Sight.PAUSED, Sight.SILENT])
def test_silent_source_is_never_taken_for_gone(target: Sight, ran: bool) -> None:
    for progress in (Progress.UNKNOWN, Progress.FAILED, Progress.COMPLETE):
        assert whereabouts(Views(Sight.SILENT, target, progress), ran=ran) is Whereabouts.UNKNOWN


@pytest.mark.parametrize(
    ("views", "ran"), [(views, ran) for views, ran in DECIDED if Sight.DEAD in (views.source, views.target)]
)
def test_proof_of_one_death_says_nothing_of_a_host_that_is_silent(views: Views, ran: bool) -> None:
    if Sight.SILENT in (views.source, views.target):
        assert whereabouts(views, ran=ran) is Whereabouts.UNKNOWN
