"""The table of the failure harness: operations and their boundaries down, faults across."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.support.failure_harness_faults import Fault

OK, BAD = "ok", "FAIL"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    database: str
    case: str
    boundary: str
    fault: str
    is_ok: bool

    def as_words(self) -> str:
        """Write it down for a test report, which carries text between processes."""
        return "\t".join((self.database, self.case, self.boundary, self.fault, OK if self.is_ok else BAD))

    @classmethod
    def from_words(cls, text: str) -> Cell:
        """Read what `as_words` wrote."""
        database, case, boundary, fault, verdict = text.split("\t")
        return cls(database, case, boundary, fault, verdict == OK)


def lines_of(cells: Iterable[Cell]) -> Sequence[str]:
    """Lay out the table, one part for each database and operation, and a line of sums."""
    parts: dict[tuple[str, str], dict[str, dict[str, bool]]] = {}
    for cell in cells:
        row = parts.setdefault((cell.database, cell.case), {}).setdefault(cell.boundary, {})
        row[cell.fault] = row.get(cell.fault, True) and cell.is_ok
    lines = []
    for (database, case), rows in sorted(parts.items()):
        faults = [fault for fault in Fault if any(fault in row for row in rows.values())]
        width = max(map(len, rows))
        lines.append("")
        lines.append(f"{case} ({database})".ljust(width) + "".join(f"  {fault}" for fault in faults))
        for boundary, row in sorted(rows.items()):
            verdicts = [("" if fault not in row else OK if row[fault] else BAD).center(len(fault)) for fault in faults]
            lines.append(boundary.ljust(width) + "".join(f"  {verdict}" for verdict in verdicts))
    runs = [is_ok for rows in parts.values() for row in rows.values() for is_ok in row.values()]
    bad = runs.count(False)
    return [*lines, "", f"{len(runs)} runs: {len(runs) - bad} {OK}, {bad} {BAD}"] if runs else []
