"""Refusals that are alike are counted; a flood of different ones stays within bounds."""

from __future__ import annotations

from dataclasses import replace

from controlplane.audit.refusals import MAX_KINDS, WINDOW_S, Refusals
from controlplane.domain.audit import AuditEntry
from tests.support.builders import START_OF_TIME

STRANGER = AuditEntry("1", START_OF_TIME, "/s/A", address="192.0.2.7", is_refusal=True, code=16)
KNOWN = replace(STRANGER, principal_id="u1", principal_name="ann", code=7)


def test_first_of_a_kind_is_told_at_once_and_the_others_as_a_number() -> None:
    refusals = Refusals()
    assert refusals.note(STRANGER, 0.0) is STRANGER
    assert [refusals.note(replace(STRANGER, method=f"/s/{i}"), 1.0) for i in range(5)] == [None] * 5
    assert refusals.told(WINDOW_S - 1) == []
    (summary,) = refusals.told(WINDOW_S)
    assert (summary.call_count, summary.method, summary.address) == (5, "", "192.0.2.7")
    assert refusals.note(STRANGER, WINDOW_S + 1) is STRANGER


def test_one_that_happened_once_is_not_told_again() -> None:
    refusals = Refusals()
    refusals.note(STRANGER, 0.0)
    assert refusals.told() == []


def test_those_of_somebody_known_differ_by_method_and_thing() -> None:
    refusals = Refusals()
    assert refusals.note(KNOWN, 0.0) is KNOWN
    for other in (replace(KNOWN, method="/s/B"), replace(KNOWN, resources=("vm/1",)), replace(KNOWN, code=5)):
        assert refusals.note(other, 0.0) is other
    assert refusals.note(KNOWN, 0.0) is None


def test_flood_from_everywhere_is_bounded_and_counted() -> None:
    refusals = Refusals()
    flood = [replace(STRANGER, address=f"addr-{i}") for i in range(MAX_KINDS + 500)]
    written = [each for each in flood if refusals.note(each, 0.0) is not None]
    assert len(written) == MAX_KINDS + 1
    (summary,) = refusals.told()
    assert (summary.call_count, summary.address) == (499, "")
