"""A chain of audit records tells what was altered, removed, added and put elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.audit.chain import ChainCheck, ChainKey
from controlplane.domain.audit import AuditChain, AuditEnd, AuditEntry, AuditRecord
from tests.support.builders import START_OF_TIME

KEY = ChainKey(bytes(range(32)))


def chain_of(count: int) -> tuple[AuditChain, list[AuditRecord]]:
    """Make a chain in two transactions, whose records all ended."""
    entries = [
        AuditEntry(f"r{i}", START_OF_TIME + timedelta(seconds=i), "/s/M", "user", "u1", "ann", (f"vm/{i}",))
        for i in range(count)
    ]
    chain, first = KEY.extended(AuditChain("w"), entries[: count // 2])
    chain, second = KEY.extended(chain, entries[count // 2 :])
    ended = []
    for record in (*first, *second):
        end = AuditEnd(record.entry.id, record.entry.begun_at, 0, "")
        ended.append(replace(record, end=end, end_digest=KEY.ended(record.digest, end)))
    return chain, ended


def faults(chain: AuditChain, records: list[AuditRecord], key: ChainKey = KEY) -> list[tuple[int, str]]:
    check = ChainCheck(key, chain)
    found = [*check.faults_of(records), *check.faults_at_end()]
    return [(each.number, each.description) for each in found]


def test_chain_as_it_was_written_has_no_faults() -> None:
    assert faults(*chain_of(7)) == []
    assert faults(KEY.sealed(AuditChain("w")), []) == []


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize(
    "change",
    [{"principal_name": "bob"}, {"code": 7}, {"resources": ()}, {"begun_at": START_OF_TIME - timedelta(days=1)}],
)
def test_record_that_was_altered_is_found(at: int, change: dict[str, object]) -> None:
    chain, records = chain_of(7)
    records[at] = replace(records[at], entry=replace(records[at].entry, **change))  # type: ignore[arg-type]
    assert faults(chain, records) == [(at + 1, "the record was altered")]


def test_end_that_was_altered_is_found_and_one_that_is_missing_is_unknown() -> None:
    chain, records = chain_of(3)
    ended = records[1].end
    assert ended is not None
    altered = [records[0], replace(records[1], end=replace(ended, code=5)), records[2]]
    assert faults(chain, altered) == [(2, "what is said of its end was altered")]
    lost = [records[0], replace(records[1], end=None, end_digest=""), records[2]]
    assert faults(chain, lost) == []


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (slice(1, None), [(1, "a record is missing")]),
        (slice(2, None), [(1, "2 records are missing")]),
        (slice(None, -1), [(7, "a record is missing")]),
        (slice(None, 0), [(1, "7 records are missing")]),
    ],
)
def test_records_removed_at_either_end_are_found(left: slice, found: list[tuple[int, str]]) -> None:
    chain, records = chain_of(7)
    assert faults(chain, records[left]) == found


def test_record_removed_from_the_middle_is_found() -> None:
    chain, records = chain_of(7)
    assert faults(chain, records[:3] + records[4:]) == [(4, "a record is missing")]


def test_end_of_chain_cannot_be_moved_without_the_key() -> None:
    chain, records = chain_of(7)
    shorter = replace(chain, number=5, digest=records[4].digest)
    assert faults(shorter, records[:5]) == [(5, "what is said of the chain's ends was altered")]
    later = replace(chain, forgotten_number=2, forgotten_digest=records[1].digest)
    assert faults(later, records[2:]) == [(7, "what is said of the chain's ends was altered")]


def test_forgotten_records_are_not_missed() -> None:
    chain, records = chain_of(7)
    assert faults(KEY.forgotten(chain, records[3]), records[4:]) == []
    assert faults(KEY.forgotten(chain, records[6]), []) == []


def test_chain_of_another_key_is_wrong_everywhere() -> None:
    chain, records = chain_of(2)
    assert len(faults(chain, records, ChainKey(bytes(32)))) == 5


def test_key_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ChainKey(b"short")
