"""`make sim`: many histories, one by its seed with everything that happened, or all mutants."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.cluster.history import Outcome
from tests.simulation.cluster.mutants import SEED_COUNT, mutants
from tests.simulation.cluster.rules import Rules
from tests.simulation.cluster.runs import be_quiet, run_many, run_one, seek_all
from tests.simulation.product.command import product

SHOWN_FAILURES = 5
PROGRESS_S = 10.0
_COUNTED = (
    "event_count",
    "check_count",
    "fault_count",
    "start_count",
    "fence_count",
    "proven_count",
    "failover_count",
    "migration_count",
    "ack_count",
    "epoch_count",
    "virtual_s",
)


def main() -> int:
    """Run what is asked for; 1 if anything was violated, or a mutant was not found."""
    parser = argparse.ArgumentParser(prog="make sim")
    parser.add_argument("--seed", type=int, help="run this one, and print all that happened")
    parser.add_argument("--count", type=int, default=1000, help="of histories")
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--broken", default="", help="a rule that does not hold")
    parser.add_argument("--mutants", action="store_true", help="seek a seed for every rule that could be broken")
    parser.add_argument("--product", action="store_true", help="histories of the product's own processes")
    asked = parser.parse_args()
    if asked.product:
        return product(
            asked.seed, range(asked.first, asked.first + asked.count), asked.processes, asked.broken, asked.mutants
        )
    rules = mutants()[asked.broken] if asked.broken else Rules()
    if asked.mutants:
        return _seek_mutants(asked.processes)
    if asked.seed is not None:
        return _run_seed(asked.seed, rules)
    return _run_count(range(asked.first, asked.first + asked.count), rules, asked.processes, asked.broken)


def _run_seed(seed: int, rules: Rules) -> int:
    be_quiet()
    outcome = run_one((seed, rules))
    _say("\n".join(outcome.trace))
    _say(_sum_up(Counter({name: getattr(outcome, name) for name in _COUNTED}), 1))
    _say(f"seed {seed}: {outcome.violation or 'nothing violated, and mended'}")
    return int(bool(outcome.violation))


def _run_count(seeds: range, rules: Rules, process_count: int | None, broken: str) -> int:
    began_s = said_s = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[Outcome] = []
    for count, outcome in enumerate(run_many(seeds, rules, process_count), 1):
        totals.update({name: getattr(outcome, name) for name in _COUNTED})
        if outcome.violation:
            failed.append(outcome)
            if len(failed) <= SHOWN_FAILURES:
                _say("\n".join(outcome.trace))
            again = f"make sim SEED={outcome.seed}" + (f" BROKEN={broken}" if broken else "")
            _say(f"seed {outcome.seed}: {outcome.violation}\n  again: {again}")
        now_s = time.monotonic()
        if now_s - said_s >= PROGRESS_S or count == len(seeds):
            said_s = now_s
            rate = count / (now_s - began_s)
            _say(f"{count} of {len(seeds)} histories, {rate:.0f}/s, {len(failed)} violated; {_sum_up(totals, count)}")
    return int(bool(failed))


def _seek_mutants(process_count: int | None) -> int:
    missed = 0
    for name, outcome in seek_all(mutants(), range(SEED_COUNT), process_count):
        missed += outcome is None
        found = "NOT FOUND" if outcome is None else f"seed {outcome.seed:4}  {outcome.violation.splitlines()[0]}"
        _say(f"{name:24} {found}")
    return int(bool(missed))


def _sum_up(totals: Counter[str], count: int) -> str:
    words = [f"{totals[name]:,.0f} {name.removesuffix('_count')}" for name in _COUNTED]
    return ", ".join(words) + f" in {count} histories"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
