"""Runs histories in processes that do nothing else: the product is imported there into a simulated outside world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypedDict, cast

FAST_DIR = Path("/dev/shm")


class Told(TypedDict):
    """How a history went, see `history.Outcome`; `violation` is "" if nothing was violated."""

    seed: int
    violation: str
    is_unsafe: bool
    virtual_s: float
    step_count: int
    check_count: int
    fault_count: int
    move_count: int
    ack_count: int
    trace: list[str]


def run_many(seeds: Iterable[int], broken: str = "", process_count: int | None = None) -> Iterator[Told]:
    """Run histories, each alike whatever ran before it; outcomes come as they are done.

    Args:
        broken: a rule of `broken.RULES` that does not hold.
    """
    jobs = list(seeds)
    count = max(1, min(process_count or os.cpu_count() or 1, len(jobs)))
    with tempfile.TemporaryDirectory(prefix="limiquantix-simulation-", dir=_fast_dir()) as directory:
        processes = [_start(jobs[number::count], broken, directory) for number in range(count)]
        try:
            yield from _told(processes)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with the history that branched off from it
                process.wait()


def _told(processes: Sequence[subprocess.Popen[str]]) -> Iterator[Told]:
    lines: SimpleQueue[str | None] = SimpleQueue()
    for process in processes:
        Thread(target=_read, args=(process, lines), daemon=True).start()
    for _ in processes:
        while (line := lines.get()) is not None:
            yield cast(Told, json.loads(line))
    for process in processes:
        if process.wait():
            raise RuntimeError(f"a process of histories ended with status {process.returncode}")


def _fast_dir() -> Path | None:
    """Say where files need no disk; None where there is no such place."""
    return FAST_DIR if os.access(FAST_DIR, os.W_OK) else None


def seek(broken: str, seeds: Sequence[int]) -> Told | None:
    """Find a seed at which something happens that never may, since a rule does not hold; None if there is none."""
    for told in run_many(seeds, broken, process_count=1):
        if told["is_unsafe"]:
            return told
    return None


def _start(seeds: Sequence[int], broken: str, directory: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.simulation.product", *([broken] if broken else [])]
    # Sets of strings have one order in all processes of one seed for hashes.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": directory}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write("".join(f"{seed}\n" for seed in seeds))
    process.stdin.close()
    return process


def _read(process: subprocess.Popen[str], lines: SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
