"""Prints what the failure harness found as a table, if it was asked for everything (`make test-faults`)."""

from __future__ import annotations

import pytest

from tests.faults.scale import RUNS_EVERYTHING
from tests.support.failure_harness_table import Cell, lines_of

CELL, FIGURE = "fault_cell", "fault_figure"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Gather what tests left in their reports, which also come from other processes."""
    if not RUNS_EVERYTHING:
        return
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call"
    ]
    kept = [pair for report in reports for pair in report.user_properties]
    cells = [Cell.from_words(str(text)) for name, text in kept if name == CELL]
    figures = [str(text) for name, text in kept if name == FIGURE]
    if cells or figures:
        terminalreporter.section("faults")
        for line in (*lines_of(cells), *figures):
            terminalreporter.write_line(line)
