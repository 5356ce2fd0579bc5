"""`make sim ARGS=--product`: histories of the product's own processes, one by its seed, or all breaks of rules."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tests.simulation.product.broken import RULES, SEED_COUNT
from tests.simulation.product.runs import Told, run_many, seek

PROGRESS_S = 10.0
SHOWN_FAILURES = 5
_COUNTED = ("virtual_s", "step_count", "check_count", "fault_count", "move_count", "ack_count")


def product(seed: int | None, seeds: range, process_count: int | None, broken: str, seeks_breaks: bool) -> int:
    """Run what is asked for; 1 if anything was violated, or a broken rule was not noticed."""
    if seeks_breaks:
        return _seek_breaks([broken] if broken else list(RULES))
    if seed is not None:
        (told,) = run_many([seed], broken)
        _say("\n".join(told["trace"]))
        _say(f"seed {seed}: {told['violation'] or 'nothing violated, and mended'}")
        return int(bool(told["violation"]))
    began_s = said_s = time.monotonic()
    totals: Counter[str] = Counter()
    failed_count = 0
    for count, told in enumerate(run_many(seeds, broken, process_count), 1):
        totals.update(_figures(told))
        if told["violation"]:
            failed_count += 1
            if failed_count <= SHOWN_FAILURES:
                _say("\n".join(told["trace"][-200:]))
            _say(f"seed {told['seed']}: {told['violation']}\n  again: make sim SEED={told['seed']} ARGS=--product")
        now_s = time.monotonic()
        if now_s - said_s >= PROGRESS_S or count == len(seeds):
            said_s = now_s
            sums = ", ".join(f"{totals[name]:,.0f} {name.removesuffix('_count')}" for name in _COUNTED)
            _say(
                f"{count} of {len(seeds)} histories, {count / (now_s - began_s):.2f}/s, {failed_count} violated; {sums}"
            )
    return int(bool(failed_count))


def _figures(told: Told) -> dict[str, float]:
    return {name: told[name] for name in _COUNTED}  # type: ignore[literal-required]


def _seek_breaks(names: list[str]) -> int:
    missed = 0
    for name in names:
        told = seek(name, range(SEED_COUNT))
        missed += told is None
        found = "NOT FOUND" if told is None else f"seed {told['seed']:4}  {told['violation'].splitlines()[0]}"
        _say(f"{name:24} {found}")
    return int(bool(missed))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
