"""The chain of audit records: each holds a keyed digest over itself and the one before it.

One chain for each process that writes. With one for the cluster, every change anywhere would wait for the commit of the
change before it; here only those of one process do, which go into one transaction together.

Keyed (HMAC-SHA256, RFC 2104), with a key that the database holds sealed only: who can write into the database, but
has not the key, can neither alter a record nor remove one from the middle or the beginning unnoticed. Of a process that
has ended, the last records could be taken away together with the end of its chain as it was before them, by somebody
who kept that; an export elsewhere shows it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

from controlplane.domain.audit import AuditChain, AuditEnd, AuditEntry, AuditFault, AuditRecord

KEY_BYTES = 32

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ChainKey:
    """Makes and checks digests.

    Args:
        key: secret, of `KEY_BYTES`.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"needs a key of {KEY_BYTES} bytes")
        self._key = key

    def extended(self, chain: AuditChain, entries: Sequence[AuditEntry]) -> tuple[AuditChain, Sequence[AuditRecord]]:
        """Return the chain with the entries at its end, and their records."""
        records: list[AuditRecord] = []
        number, digest = chain.number, chain.digest
        for entry in entries:
            number += 1
            digest = self._of_entry(chain.writer_id, number, digest, entry)
            records.append(AuditRecord(entry, chain.writer_id, number, digest))
        return self.sealed(replace(chain, number=number, digest=digest)), records

    def forgotten(self, chain: AuditChain, last: AuditRecord) -> AuditChain:
        """Return the chain without its records up to `last`, which are removed for their age."""
        return self.sealed(replace(chain, forgotten_number=last.number, forgotten_digest=last.digest))

    def ended(self, digest: str, end: AuditEnd) -> str:
        """Return the digest of the end of the record with that digest."""
        return self._digest("end", digest, _microseconds(end.ended_at), end.code, end.message)

    def sealed(self, chain: AuditChain) -> AuditChain:
        """Return the chain with its seal."""
        return replace(chain, seal=self._seal(chain))

    def holds(self, record: AuditRecord, before: str) -> bool:
        """Whether an entry is as it was written after the record with the digest `before`."""
        return hmac.compare_digest(record.digest, self._of_entry(record.writer_id, record.number, before, record.entry))

    def is_sealed(self, chain: AuditChain) -> bool:
        """Whether the ends of a chain are where they were written."""
        return hmac.compare_digest(chain.seal, self._seal(chain))

    def _of_entry(self, writer_id: str, number: int, before: str, entry: AuditEntry) -> str:
        facts = asdict(entry) | {"begun_at": _microseconds(entry.begun_at), "resources": list(entry.resources)}
        return self._digest("entry", writer_id, number, before, facts)

    def _seal(self, chain: AuditChain) -> str:
        facts = asdict(chain)
        del facts["seal"]
        return self._digest("chain", facts)

    def _digest(self, *parts: object) -> str:
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class ChainCheck:
    """Compares a chain with its records, which come in their order, some at a time."""

    def __init__(self, key: ChainKey, chain: AuditChain) -> None:
        self._key = key
        self._chain = chain
        self._number, self._digest = chain.forgotten_number, chain.forgotten_digest

    @property
    def number(self) -> int:
        """Of the last record that was looked at."""
        return self._number

    def faults_of(self, records: Iterable[AuditRecord]) -> Iterator[AuditFault]:
        """Look at the next records, and tell each place that is not as it was written."""
        for record in records:
            if record.number != self._number + 1:
                yield self._fault(self._number + 1, _missing(self._number + 1, record.number - 1))
            elif not self._key.holds(record, self._digest):
                yield self._fault(record.number, "the record was altered")
            if record.end is not None and record.end_digest != self._key.ended(record.digest, record.end):
                yield self._fault(record.number, "what is said of its end was altered")
            self._number, self._digest = record.number, record.digest

    def faults_at_end(self) -> Iterator[AuditFault]:
        """Look at where the chain ends, after all records."""
        if not self._key.is_sealed(self._chain):
            yield self._fault(self._chain.number, "what is said of the chain's ends was altered")
        if self._number < self._chain.number:
            yield self._fault(self._number + 1, _missing(self._number + 1, self._chain.number))
        elif self._digest != self._chain.digest:
            yield self._fault(self._number, "the last record is another one")

    def _fault(self, number: int, description: str) -> AuditFault:
        return AuditFault(self._chain.writer_id, number, description)


def _missing(first: int, last: int) -> str:
    if last < first:
        return "a record is there twice, or was never written"
    return "a record is missing" if first == last else f"{last - first + 1} records are missing"


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
