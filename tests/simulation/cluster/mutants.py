"""Rules broken one at a time: what the checker has to notice, or it proves nothing."""

from __future__ import annotations

from dataclasses import fields, replace

from tests.simulation.cluster.rules import Rules

SEED_COUNT = 1000
"""Within so many seeds each must be found."""


def mutants() -> dict[str, Rules]:
    """Return all rules with one broken, by the name of that."""
    return {rule.name: replace(Rules(), **{rule.name: False}) for rule in fields(Rules)}
