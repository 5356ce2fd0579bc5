"""A wish for a migration as the parameters of its operation."""

from __future__ import annotations

from dataclasses import asdict

from controlplane.domain.migration import MigrationWish
from controlplane.domain.operation import Json
from controlplane.domain.vm import Vm


def parameters_of(wish: MigrationWish, vm: Vm) -> Json:
    """What the steps need of a wish, and where the VM was when it was uttered."""
    return {"wish": asdict(wish), "from_node_id": vm.node_id}


def wish_of(parameters: Json) -> MigrationWish:
    """Read what `parameters_of` wrote."""
    stored = parameters["wish"]
    return MigrationWish(**{**stored, "excluded_node_ids": tuple(stored["excluded_node_ids"])})
