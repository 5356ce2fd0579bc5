"""Many histories on all cores, in processes of their own: a history takes over what asyncio knows of its thread."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from tests.simulation.cluster.history import Outcome, run_history
from tests.simulation.cluster.rules import Rules


def be_quiet() -> None:
    """Have the product log nothing in this process, and what is imported looked through by no collection."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=True)
    gc.freeze()


def run_one(job: tuple[int, Rules]) -> Outcome:
    """Run one history; an exception of the product is a violation too."""
    seed, rules = job
    try:
        return run_history(seed, rules)
    except Exception:  # noqa: BLE001 - nothing may be raised that the product does not handle
        return Outcome(seed, violation=f"raised:\n{traceback.format_exc()}")


def run_many(seeds: Iterable[int], rules: Rules | None = None, process_count: int | None = None) -> Iterator[Outcome]:
    """Run histories; outcomes come as they are done, about in order."""
    jobs = ((seed, rules or Rules()) for seed in seeds)
    context = multiprocessing.get_context("spawn")
    with context.Pool(process_count or os.cpu_count(), initializer=be_quiet) as pool:
        yield from pool.imap(run_one, jobs, chunksize=4)


def _seek(job: tuple[str, Rules, Sequence[int]]) -> tuple[str, Outcome | None]:
    name, rules, seeds = job
    for seed in seeds:
        outcome = run_one((seed, rules))
        if outcome.violation:
            return name, outcome
    return name, None


def seek_all(
    broken: Mapping[str, Rules],
    seeds: Sequence[int],
    process_count: int | None = None,
    look_first_at: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Outcome | None]]:
    """Find for each broken rule a seed at which it is noticed; None if it is not.

    Args:
        look_first_at: a seed by the rule's name, tried before all others.
    """
    first = look_first_at or {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(process_count or os.cpu_count(), initializer=be_quiet) as pool:
        jobs = [(name, rules, [*([first[name]] if name in first else []), *seeds]) for name, rules in broken.items()]
        yield from pool.imap_unordered(_seek, jobs)
