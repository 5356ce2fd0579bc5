"""How much of the failure harness runs: a sample in `make test`, everything in `make test-faults`."""

from __future__ import annotations

import os

RUNS_EVERYTHING = os.environ.get("LIMIQUANTIX_FAULTS") == "all"

_STRIDE_OF_SAMPLE = {"sqlite": 36, "postgresql": 180}
"""One of how many strikes is in the sample; which ones is always the same."""

_STRIDE_OF_EVERYTHING = {"sqlite": 1, "postgresql": 4}
"""On PostgreSQL the steps are the same; what differs is how transactions meet each other, and a part shows that."""

_SAMPLE_ON_POSTGRESQL = ("create and start", "delete by force", "grow", "stop")

AT_ONCE = 6 if RUNS_EVERYTHING else 2
"""Runs in parallel in one process: mostly they wait for threads and the disk."""


def stride_of(database: str) -> int:
    """One of how many strikes is to be tried."""
    return (_STRIDE_OF_EVERYTHING if RUNS_EVERYTHING else _STRIDE_OF_SAMPLE)[database]


def is_wanted(case: str, database: str) -> bool:
    """Whether a case is tried on a database at all."""
    return RUNS_EVERYTHING or database != "postgresql" or case in _SAMPLE_ON_POSTGRESQL


def _kills(of_sample: int, of_everything: int) -> int:
    return int(os.environ.get("LIMIQUANTIX_FAULT_KILLS", of_everything if RUNS_EVERYTHING else of_sample))


KILL_COUNTS = {
    "mock, SQLite": _kills(3, 100),
    "mock, two control planes on PostgreSQL": _kills(3, 50),
    "libvirt, SQLite": _kills(2, 100),
}
"""SIGKILLs of each test with random ones."""
