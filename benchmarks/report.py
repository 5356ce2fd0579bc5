"""Show results to people as aligned text, to programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.machine import Machine
from benchmarks.measurement import Row, Section

_HEADINGS = ("", "RATIO", "MIN..MAX", "OURS", "REFERENCE", "")


def to_text(machine: Machine, sections: Sequence[Section]) -> str:
    """Lay out all results, the machine first."""
    blocks = [f"machine: {machine.describe()}"]
    blocks += [_block(section) for section in sections]
    return "\n\n".join(blocks)


def to_json(machine: Machine, sections: Sequence[Section]) -> str:
    """Write all results as one JSON document."""
    return json.dumps({"machine": asdict(machine), "sections": [asdict(section) for section in sections]}, indent=2)


def _block(section: Section) -> str:
    title = f"{section.name}: {section.title}"
    if section.skipped:
        return f"{title}\n  left out: {section.skipped}"
    lines = [title, *_table([_HEADINGS, *(_cells(row) for row in section.rows)])]
    lines += [f"  {note}" for note in section.notes]
    for group, figures in section.figures.items():
        lines.append(f"  {group}: " + ", ".join(f"{name} {_number(value)}" for name, value in figures.items()))
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = row.ratio
    return (
        row.name,
        f"{ratio.median:.2f}",
        f"{ratio.lowest:.2f}..{ratio.highest:.2f}" if ratio.pair_count > 1 else "one",
        f"{_number(row.ours)} {row.unit}",
        f"{_number(row.reference)} {row.unit}",
        _verdict(row),
    )


def _verdict(row: Row) -> str:
    verdicts = []
    if row.goal is not None:
        verdicts.append(f"goal {row.goal.limit:g} {_met(row.goal.is_met_by(row.ratio.median))}")
        if row.goal.later is not None:
            verdicts.append(f"later {row.goal.later:g}")
    if row.limit is not None:
        verdicts.append(f"goal {row.limit.value:g} {row.unit} {_met(row.limit.is_met_by(row.ours))}")
    return ", ".join(verdicts)


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first and the last to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers, last in rows:
        middle = "  ".join(cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"  {first.ljust(widths[0])}  {middle}  {last}".rstrip())
    return lines
