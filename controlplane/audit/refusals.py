"""Refusals that are alike, counted: a flood of them must neither fill the disk nor hide."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from controlplane.domain.audit import AuditEntry

WINDOW_S: Final = 60.0
"""The first of its kind is written at once, and how many more there were at the end of this."""
MAX_KINDS: Final = 1000
"""Told apart at once; what is beyond is counted together."""

_Kind = tuple[str, ...]
_BEYOND: _Kind = ("beyond",)


@dataclass(slots=True)
class _Tally:
    first: AuditEntry
    until_s: float
    methods: set[str]
    last: AuditEntry
    more_count: int = 0


class Refusals:
    """Counts. Owned by the event loop's thread."""

    def __init__(self) -> None:
        self._tallies: OrderedDict[_Kind, _Tally] = OrderedDict()

    def note(self, refusal: AuditEntry, now_s: float) -> AuditEntry | None:
        """Count a refusal; returns it if it is the first of its kind, to be written now."""
        kind = _kind_of(refusal)
        if kind not in self._tallies and len(self._tallies) >= MAX_KINDS:
            kind = _BEYOND
        tally = self._tallies.get(kind)
        if tally is None:
            self._tallies[kind] = _Tally(refusal, now_s + WINDOW_S, {refusal.method}, refusal)
            return refusal
        tally.more_count += 1
        tally.last = refusal
        if len(tally.methods) < 2:
            tally.methods.add(refusal.method)
        return None

    def told(self, now_s: float | None = None) -> Sequence[AuditEntry]:
        """Take out what was counted until now_s; None takes everything. What happened once is on record already."""
        entries = []
        while self._tallies:
            kind, tally = next(iter(self._tallies.items()))
            if now_s is not None and tally.until_s > now_s:
                break
            del self._tallies[kind]
            if tally.more_count:
                entries.append(_summary(tally, is_beyond=kind == _BEYOND))
        return entries


def _kind_of(refusal: AuditEntry) -> _Kind:
    if not refusal.principal_id:
        return ("", refusal.address, str(refusal.code))
    facts = (refusal.principal_id, refusal.method, ",".join(refusal.resources), refusal.address, str(refusal.code))
    return (*facts, refusal.message)


def _summary(tally: _Tally, *, is_beyond: bool) -> AuditEntry:
    """Describe those after the first, by what they have in common."""
    summary = replace(
        tally.last,
        method=tally.first.method if len(tally.methods) == 1 else "",
        request_json="",
        request_id="",
        call_count=tally.more_count,
    )
    return replace(summary, address="", principal_id="", principal_name="") if is_beyond else summary
