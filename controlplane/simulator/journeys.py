"""Migrations in virtual time: how long each takes, and which wait for which.

Limits, queue and forecast are those of the control plane. A VM claims room at its target when it gets in line, and
gives back what it had when it has arrived, as it does there.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from controlplane.domain import migration_rules
from controlplane.domain.migration import (
    COST_OF_MEMORY,
    COST_WITH_DISKS,
    Migration,
    MigrationRules,
    MigrationWish,
    share_storage,
    turns,
)
from controlplane.domain.migration_forecast import Forecast, Load, forecast
from controlplane.domain.node import Node
from controlplane.domain.vm import ALIVE_STATES
from controlplane.scheduler.plan import Placement
from controlplane.simulator.result import Fate, Outcome, TimelineRow, reasons_of
from controlplane.simulator.world import EPOCH, SimVm, World
from limiquantix.errors import ApiError


@dataclass(frozen=True, slots=True)
class Wish:
    """A VM that shall move; without a target to the scheduler's choice, at the moment when it gets in line."""

    vm_id: str
    target_id: str = ""
    note: str = ""


@dataclass(slots=True)
class Journeys:
    """Makes the moves of one event.

    Args:
        at_once: moves of one source that are in line or under way at a time.
        failed: fate of those that are not moved.
    """

    world: World
    event: int
    now_s: float
    at_once: int
    failed: Fate
    in_order: bool = False
    timeline: list[TimelineRow] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    _line: list[Migration] = field(default_factory=list)
    _notes: dict[str, str] = field(default_factory=dict)
    _ends: list[tuple[float, int, str]] = field(default_factory=list)
    _count: int = 0

    def make(self, wishes: Sequence[Wish]) -> float:
        """Make the moves, and return when the last one is done."""
        waiting = list(wishes)
        while waiting or self._line:
            waiting = self._line_up(waiting)
            self._begin()
            if not self._ends:
                for wish in waiting:
                    self._refuse(wish)
                break
            self._end_next()
        return self.now_s

    def _line_up(self, waiting: Sequence[Wish]) -> list[Wish]:
        """Give targets to VMs whose turn it is; those without one are asked again when another has arrived."""
        left: list[Wish] = []
        # A plan may move a VM twice; the second time it has to have arrived first.
        under_way = {each.vm_id for each in self._line}
        in_line = Counter("" if self.in_order else each.source_node_id for each in self._line)
        for wish in waiting:
            vm = self.world.vms[wish.vm_id]
            key = "" if self.in_order else vm.node_id
            if in_line[key] >= self.at_once or vm.id in under_way or (self.in_order and left):
                left.append(wish)
                continue
            obstacle = _obstacle(vm)
            if obstacle:
                self._note(vm, self.failed, obstacle)
                continue
            target_id = self._target(wish, vm)
            if not target_id:
                left.append(wish)
                continue
            if self._is_taken_in(wish, vm, target_id):
                in_line[key] += 1
                under_way.add(vm.id)
        return left

    def _target(self, wish: Wish, vm: SimVm) -> str:
        if wish.target_id:
            candidate = self.world.candidate(wish.target_id)
            free_vcpus = candidate.capacity.vcpus - candidate.allocated.vcpus
            free_bytes = candidate.capacity.memory_bytes - candidate.allocated.memory_bytes
            has_room = vm.claim.vcpus <= free_vcpus and vm.claim.memory_bytes <= free_bytes
            return wish.target_id if has_room else ""
        outcome = self.world.choose(vm)
        return outcome.node_id if isinstance(outcome, Placement) else ""

    def _is_taken_in(self, wish: Wish, vm: SimVm, target_id: str) -> bool:
        """Put a VM in line, with its room at the target; not if its migration would never end."""
        took, copies = self._forecast(vm, target_id)
        if not took.ends:
            rate_mib = vm.writes_bytes_per_s // 2**20
            why = f"the guest writes {rate_mib} MiB/s, more than the network carries; allow auto-converge or post-copy"
            self._note(vm, self.failed, why)
            return False
        self.world.set_out(vm.id, target_id)
        cost = COST_WITH_DISKS if copies else COST_OF_MEMORY
        asked_at = EPOCH + timedelta(seconds=self.now_s)
        self._line.append(Migration(vm.id, "", vm.node_id, target_id, asked_at, cost=cost, copies_disks=copies))
        self._notes[vm.id] = wish.note
        return True

    def _forecast(self, vm: SimVm, target_id: str) -> tuple[Forecast, bool]:
        source, target = self.world.nodes[vm.node_id], self.world.nodes[target_id]
        copies = bool(vm.spec.disks) and _tells_storage(source, target) and not share_storage(source, target)
        disk_bytes = sum(disk.size_gib for disk in vm.spec.disks) * 2**30 if copies else 0
        memory_bytes = vm.claim.memory_bytes if vm.state in ALIVE_STATES else 0
        default_mbps = self.world.settings.times.bandwidth_mbps
        bandwidth = migration_rules.bandwidth_between(source, target, default_mbps)
        way = migration_rules.way_of(vm.spec.migration, MigrationWish(), bandwidth)
        return forecast(Load(memory_bytes, vm.writes_bytes_per_s, disk_bytes), way), copies

    def _begin(self) -> None:
        times = self.world.settings.times
        rules = MigrationRules(node_units=times.migrations_per_node, cluster_units=times.migrations_per_cluster)
        may_begin = set(turns(self._line, rules).may_begin)
        for index, each in enumerate(self._line):
            if each.vm_id not in may_begin:
                continue
            self._line[index] = replace(each, granted_at=EPOCH + timedelta(seconds=self.now_s))
            vm = self.world.vms[each.vm_id]
            took, _ = self._forecast(vm, each.target_node_id)
            heapq.heappush(self._ends, (self.now_s + took.duration_ms / 1000, self._count, vm.id))
            self._count += 1
            nodes = self.world.nodes
            still = f"stands still for {took.downtime_ms} ms" if took.downtime_ms else ""
            note = "; ".join(text for text in (self._notes[vm.id], still) if text)
            source, target = nodes[each.source_node_id].hostname, nodes[each.target_node_id].hostname
            self.timeline.append(
                TimelineRow(self.now_s, took.duration_ms / 1000, self.event, "migrate", vm.name, source, target, note)
            )

    def _end_next(self) -> None:
        self.now_s, _, vm_id = heapq.heappop(self._ends)
        (done,) = (each for each in self._line if each.vm_id == vm_id)
        self._line.remove(done)
        vm = self.world.arrive(vm_id, self.now_s)
        node = self.world.nodes[done.target_node_id].hostname
        self.outcomes.append(Outcome(self.event, vm.id, vm.name, Fate.MOVED, node, self.now_s, self._notes[vm_id]))

    def _refuse(self, wish: Wish) -> None:
        vm = self.world.vms[wish.vm_id]
        if wish.target_id:
            target = self.world.nodes[wish.target_id].hostname
            self._note(vm, self.failed, f"node {target} has no room for it now")
            return
        outcome = self.world.choose(vm)
        if isinstance(outcome, Placement):  # it waited behind one that could not begin
            self._note(vm, self.failed, "it did not get its turn")
            return
        self._note(vm, self.failed, outcome.summary, reasons_of(outcome))

    def _note(self, vm: SimVm, fate: Fate, reason: str, per_node: tuple[tuple[str, str], ...] = ()) -> None:
        node = self.world.nodes[vm.node_id].hostname
        self.outcomes.append(Outcome(self.event, vm.id, vm.name, fate, node, self.now_s, reason, per_node))


def _obstacle(vm: SimVm) -> str:
    """Say why a VM cannot be migrated at all; "" if it can."""
    try:
        migration_rules.require_migratable(vm.record())
    except ApiError as error:
        return error.message
    return ""


def _tells_storage(source: Node, target: Node) -> bool:
    """Whether both say on what they keep VMs; of others it is taken that they share it."""
    return bool(source.spec.storage_domains) and bool(target.spec.storage_domains)
