"""Migrations of VMs: what is wished, what is recorded of one, and which may begin. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.domain.node import Capacity, Node

NOTHING_CLAIMED = Capacity(0, 0)

COST_OF_MEMORY = 1
"""Of a migration between hosts that share the VM's storage, in units of `MigrationRules`."""

COST_WITH_DISKS = 2
"""Of one that copies disks too, which keeps the network and both hosts' disks busy for longer."""


@dataclass(frozen=True, slots=True)
class MigrationWish:
    """How somebody wants a VM moved; what is 0, "" or None takes the VM's own setting.

    `target_node_id` "" leaves the choice to the scheduler, which takes none of `excluded_node_ids`.
    """

    target_node_id: str = ""
    live: bool = True
    max_downtime_ms: int = 0
    bandwidth_mbps: int = 0
    post_copy: bool | None = None
    auto_converge: bool | None = None
    shared_storage_only: bool = False
    excluded_node_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MigrationRules:
    """How many migrations go at once, in units of cost, and how long hosts are waited for, in seconds.

    `patience_s` is how long hosts that do not answer are asked what became of a VM. `confirmation_s` is how long the
    source is asked whether it let go of a VM that runs at the target, which it need not confirm to be true.
    """

    node_units: int = 2
    cluster_units: int = 8
    patience_s: float = 600.0
    confirmation_s: float = 30.0
    poll_s: float = 0.5
    bandwidth_mbps: int = 1000
    """What the network is taken to carry where no host tells the speed of its cards; for forecasts only."""


@dataclass(frozen=True, slots=True)
class Migration:
    """The last migration of a VM, until nothing of it is left to do.

    `ran` says whether its guest was in memory when it began. `claimed` is what the target keeps free for it, beside
    what VMs placed there claim. `granted_at` is None while it waits for its turn. `is_settled` says whether it is known
    on which of its two nodes the VM is.
    """

    vm_id: str
    operation_id: str
    source_node_id: str
    target_node_id: str
    asked_at: datetime
    copies_disks: bool = False
    ran: bool = True
    claimed: Capacity = NOTHING_CLAIMED
    cost: int = COST_OF_MEMORY
    granted_at: datetime | None = None
    is_settled: bool = False

    @property
    def node_ids(self) -> tuple[str, str]:
        """Source and target."""
        return self.source_node_id, self.target_node_id

    def with_claim(self, claimed: Capacity) -> Migration:
        """Return it with another claim on its target."""
        return replace(self, claimed=claimed)


@dataclass(frozen=True, slots=True)
class Turns:
    """Which of the waiting may begin, and the places of the others in the queue, from 1, by VM id."""

    may_begin: tuple[str, ...]
    places: dict[str, int]


def turns(in_order: Sequence[Migration], rules: MigrationRules) -> Turns:
    """Say who may begin: first come, first served, but whoever shares nothing with one that waits may pass it.

    What is held up by the limit of the cluster holds up all behind it, and what is held up by a node all that touch
    either of its nodes: nobody waits for ever behind smaller ones that come later. One that costs more than there are
    units takes all of them.

    Args:
        in_order: those that are worked on, oldest first.
    """
    held = [each for each in in_order if each.granted_at is not None]
    node_use = Counter[str]()
    for each in held:
        _add(node_use, each)
    cluster_use = sum(each.cost for each in held)
    awaited: set[str] = set()
    is_full = False
    begin: list[str] = []
    places: dict[str, int] = {}
    for each in (each for each in in_order if each.granted_at is None):
        fits_cluster = cluster_use + min(each.cost, rules.cluster_units) <= rules.cluster_units
        fits_nodes = all(
            node_use[node_id] + min(each.cost, rules.node_units) <= rules.node_units for node_id in each.node_ids
        )
        if not is_full and fits_cluster and fits_nodes and awaited.isdisjoint(each.node_ids):
            begin.append(each.vm_id)
            _add(node_use, each)
            cluster_use += each.cost
            continue
        is_full = is_full or not fits_cluster
        awaited.update(each.node_ids)
        places[each.vm_id] = len(places) + 1
    return Turns(tuple(begin), places)


def _add(node_use: Counter[str], migration: Migration) -> None:
    for node_id in migration.node_ids:
        node_use[node_id] += migration.cost


def share_storage(source: Node, target: Node) -> bool:
    """Whether the target has all the storage that the source keeps VMs on."""
    kept = {domain.id for domain in source.spec.storage_domains}
    return bool(kept) and kept <= {domain.id for domain in target.spec.storage_domains if not domain.is_lost}
