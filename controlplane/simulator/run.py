"""Let events happen to a cluster, one after the other, and tell what became of it.

An event begins when the one before it has ended. What happens within one is limited and takes its time as it would
in a cluster: migrations by `journeys`, starts a few at a time on each node.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from controlplane.domain.node import Node, Phase
from controlplane.domain.vm import PowerState
from controlplane.drs.planner import loads_of
from controlplane.drs.planner import plan as plan_moves
from controlplane.scheduler.plan import HeldBack, Mode, Placement, Unplaced, plan
from controlplane.simulator.balancing import config_of, load_of, rules_of
from controlplane.simulator.cluster_file import ClusterFile, NodeEntry
from controlplane.simulator.journeys import Journeys, Wish
from controlplane.simulator.result import EventSummary, Fate, Outcome, Result, TimelineRow, counted, reasons_of
from controlplane.simulator.scenario import ALL, Balance, Event, NewVms, Place, Scenario
from controlplane.simulator.world import SimVm, World, request_of, restart_order, vm_of
from limiquantix.compute.v1.node_pb2 import NodeStatus

_CANNOT_SEND: Final = frozenset({Phase.NOT_READY, Phase.OFFLINE, Phase.UNKNOWN, Phase.PENDING})
_MAX_WARNINGS: Final = 20


class EventUnusable(Exception):
    """An event that makes no sense in this cluster; the message has its number and what it lacks."""


def simulate(cluster: ClusterFile, scenario: Scenario) -> Result:
    """Run a scenario.

    Raises:
        EventUnusable: an event names a node that is not there, or a name that is taken.
    """
    run = _Run(World(cluster))
    warnings = run.warnings()
    before, imbalance = run.world.look(), loads_of(load_of(run.world))[1]
    for number, event in enumerate(scenario.events, 1):
        run.happen(number, event)
    return Result(
        before=before,
        after=run.world.look(),
        events=tuple(run.events),
        timeline=tuple(run.timeline),
        outcomes=tuple(run.outcomes),
        ended_s=run.now_s,
        imbalance_before=imbalance,
        imbalance_after=loads_of(load_of(run.world))[1],
        warnings=warnings,
    )


class _Run:
    """A simulation under way. Every method that an event has adds to what happened, and moves time on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now_s = 0.0
        self.number = 0
        self.events: list[EventSummary] = []
        self.timeline: list[TimelineRow] = []
        self.outcomes: list[Outcome] = []

    def warnings(self) -> tuple[str, ...]:
        """Say what is odd about the cluster before anything happens."""
        found = []
        for candidate in self.world.view.candidates:
            claimed, capacity = candidate.allocated, candidate.capacity
            if claimed.vcpus > capacity.vcpus or claimed.memory_bytes > capacity.memory_bytes:
                found.append(f"node {candidate.hostname} has more claimed than may be; nothing is placed there")
        homeless = sum(1 for _ in self.world.homeless())
        if homeless:
            found.append(f"{homeless} {'VM is' if homeless == 1 else 'VMs are'} on no node and take no part")
        more = [f"and {len(found) - _MAX_WARNINGS} more warnings"] if len(found) > _MAX_WARNINGS else []
        return tuple(found[:_MAX_WARNINGS] + more)

    def happen(self, number: int, event: Event) -> None:
        """Let one event happen."""
        self.number = number
        began_s, first = self.now_s, len(self.outcomes)
        title, note = self._dispatch(event)
        fates = counted(self.outcomes[first:])
        self.events.append(EventSummary(number, title, began_s, self.now_s, fates, note))

    def _dispatch(self, event: Event) -> tuple[str, str]:
        """Return the title of the event and what is to be said of it."""
        for names, happens in ((event.drain, self.drain), (event.fail, self.fail), (event.enable, self.enable)):
            if names is not None:
                return happens(self._nodes(names))
        if event.place is not None:
            return self.place(event.place)
        if event.balance is not None:
            return self.balance(event.balance)
        if event.add_nodes is not None:
            return self.add_nodes(event.add_nodes)
        wait_s = event.wait or 0
        self.now_s += wait_s
        return f"wait {wait_s} s", ""

    def _nodes(self, names: Sequence[str]) -> list[Node]:
        found = []
        for name in dict.fromkeys(names):
            try:
                found.append(self.world.nodes[self.world.node_id_of(name)])
            except KeyError:
                raise EventUnusable(f"event {self.number}: there is no node {name!r}") from None
        return found

    # -- placing

    def place(self, wish: Place) -> tuple[str, str]:
        """Place new VMs."""
        vms = [vm for entry in wish.vms for vm in _new_vms(entry)]
        title = f"place {_counted(len(vms), 'VM')}" + (", all or nothing" if wish.mode == ALL else "")
        ids = {vm.id for vm in vms}
        taken = next((vm.name for vm in vms if vm.id in self.world.vms), "")
        if taken or len(ids) != len(vms):
            raise EventUnusable(f"event {self.number}: there is a VM {taken or 'of one of these names'!r} already")
        mode = Mode.ALL_OR_NOTHING if wish.mode == ALL else Mode.AS_MANY_AS_FIT
        outcomes = plan(self.world.view, [request_of(vm) for vm in vms], self.world.scheduler, mode=mode).outcomes
        slots = _Slots(self.world.settings.times.starts_per_node, self.now_s)
        reasons = _Reasons()
        for vm, outcome in zip(vms, outcomes, strict=True):
            self._take_in(vm, outcome, slots, reasons)
        self.now_s = slots.ends_s
        held_back = any(isinstance(outcome, HeldBack) for outcome in outcomes)
        return title, "not all of them fit, so none is placed" if held_back else ""

    def _take_in(self, vm: SimVm, outcome: Placement | Unplaced, slots: _Slots, reasons: _Reasons) -> None:
        if isinstance(outcome, Unplaced):
            self._note(vm, Fate.UNPLACED, "", *reasons.of(vm, outcome))
            return
        reasons.forget()
        self.world.add_vm(replace(vm, node_id=outcome.node_id))
        took_s = float(self.world.settings.times.create)
        at_s = slots.take(outcome.node_id, took_s)
        node = self.world.nodes[outcome.node_id].hostname
        self.timeline.append(TimelineRow(at_s, took_s, self.number, "create", vm.name, "", node))
        self._note(vm, Fate.PLACED, node, at_s=at_s + took_s)

    # -- nodes

    def drain(self, nodes: Sequence[Node]) -> tuple[str, str]:
        """Move all VMs off nodes, the largest first, and leave the nodes in maintenance."""
        for node in nodes:
            if node.phase in _CANNOT_SEND:
                name = Phase.Name(node.phase)
                raise EventUnusable(f"event {self.number}: node {node.hostname} is {name}; VMs cannot be moved off it")
            self._set_phase(node, Phase.DRAINING)
        vms = [vm for node in nodes for vm in self.world.vms_on(node.id)]
        vms.sort(key=lambda vm: (-vm.claim.memory_bytes, vm.id))
        at_once = self.world.settings.times.migrations_per_node
        self._travel([Wish(vm.id) for vm in vms], at_once, Fate.STAYS)
        for node in nodes:
            if not self.world.vms_on(node.id):
                self._set_phase(self.world.nodes[node.id], Phase.MAINTENANCE)
        return f"drain {_names(nodes)}", ""

    def _travel(self, wishes: Sequence[Wish], at_once: int, failed: Fate, *, in_order: bool = False) -> None:
        journeys = Journeys(self.world, self.number, self.now_s, at_once, failed, in_order)
        self.now_s = journeys.make(wishes)
        self.timeline += journeys.timeline
        self.outcomes += journeys.outcomes

    def fail(self, nodes: Sequence[Node]) -> tuple[str, str]:
        """Have nodes die, and start their VMs elsewhere once that is noticed."""
        times = self.world.settings.times
        for node in nodes:
            self._set_phase(node, Phase.NOT_READY)
        vms = restart_order(vm for node in nodes for vm in self.world.vms_on(node.id))
        self.now_s += times.failure_noticed
        slots = _Slots(times.starts_per_node, self.now_s)
        for vm in vms:
            self._restart(vm, slots, float(times.start))
        self.now_s = slots.ends_s
        return f"fail {_names(nodes)}", f"noticed after {times.failure_noticed} s"

    def _restart(self, vm: SimVm, slots: _Slots, took_s: float) -> None:
        source = self.world.nodes[vm.node_id].hostname
        if vm.state != PowerState.RUNNING:
            self._note(vm, Fate.LEFT, source, f"it was {PowerState.Name(vm.state)}")
            return
        if not vm.may_restart:
            self._note(vm, Fate.LEFT, source, "it is not to be started again by itself")
            return
        outcome = self.world.choose(vm)
        if isinstance(outcome, Unplaced):
            self._note(vm, Fate.DOWN, source, outcome.summary, reasons_of(outcome))
            return
        self.world.set_out(vm.id, outcome.node_id)
        self.world.arrive(vm.id, self.now_s)
        at_s = slots.take(outcome.node_id, took_s, float(vm.spec.ha_policy.restart_delay_sec))
        node = self.world.nodes[outcome.node_id].hostname
        self.timeline.append(TimelineRow(at_s, took_s, self.number, "restart", vm.name, source, node))
        self._note(vm, Fate.RESTARTED, node, at_s=at_s + took_s)

    def enable(self, nodes: Sequence[Node]) -> tuple[str, str]:
        """Have nodes take VMs, whatever kept them from it; those on a dead one are back with it."""
        for node in nodes:
            was_dead = node.phase in _CANNOT_SEND
            self._set_phase(node, Phase.READY)
            for vm in self.world.vms_on(node.id) if was_dead else ():
                if vm.state == PowerState.RUNNING:
                    self._note(vm, Fate.BACK, node.hostname)
        return f"enable {_names(nodes)}", ""

    def add_nodes(self, entries: Sequence[NodeEntry]) -> tuple[str, str]:
        """Have new nodes."""
        added = []
        for entry in entries:
            try:
                added.append(self.world.add_node(entry))
            except ValueError as error:
                raise EventUnusable(f"event {self.number}: {error}") from error
            self._tell_node(added[-1], "added")
        return f"add {_names(added)}", ""

    def _set_phase(self, node: Node, phase: NodeStatus.Phase.ValueType) -> None:
        spec = node.spec
        if phase == Phase.READY and not spec.scheduling.schedulable:
            spec = type(spec)()
            spec.CopyFrom(node.spec)
            spec.scheduling.schedulable = True
        self.world.change_node(replace(node, phase=phase, spec=spec))
        self._tell_node(node, Phase.Name(phase))

    def _tell_node(self, node: Node, note: str) -> None:
        self.timeline.append(TimelineRow(self.now_s, 0.0, self.number, "node", "", "", node.hostname, note))

    # -- balancing

    def balance(self, wish: Balance) -> tuple[str, str]:
        """Make the moves that the balancer plans."""
        settings = self.world.settings.balancing
        config, notes = config_of(settings), []
        for _ in range(wish.runs):
            made = plan_moves(load_of(self.world), config, self.now_s, rules_of(self.world))
            before, after = made.imbalance_before, made.imbalance_after
            notes.append(f"imbalance {before:.2f} to {after:.2f} points, {_counted(len(made.moves), 'move')}")
            notes.append(made.message)
            if not made.moves:
                break
            wishes = [Wish(move.vm.id, move.target.node_id, f"gains {move.gain_percent:.1f} %") for move in made.moves]
            self._travel(wishes, settings.max_concurrent_moves, Fate.SKIPPED, in_order=True)
        return "balance", "; ".join(dict.fromkeys(notes))

    def _note(
        self,
        vm: SimVm,
        fate: Fate,
        node: str,
        reason: str = "",
        per_node: tuple[tuple[str, str], ...] = (),
        at_s: float | None = None,
    ) -> None:
        moment = self.now_s if at_s is None else at_s
        self.outcomes.append(Outcome(self.number, vm.id, vm.name, fate, node, moment, reason, per_node))


class _Reasons:
    """Why VMs have no node: worked out once for VMs that are alike, until another one is placed."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[str, tuple[tuple[str, str], ...]]] = {}

    def of(self, vm: SimVm, outcome: Unplaced) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return the summary and the reason of each node."""
        if isinstance(outcome, HeldBack):
            return outcome.summary, ()
        key = (vm.claim, vm.project_id, tuple(sorted(vm.labels.items())), vm.spec.SerializeToString(deterministic=True))
        if key not in self._known:
            self._known[key] = outcome.summary, reasons_of(outcome)
        return self._known[key]

    def forget(self) -> None:
        """Forget what was true before a VM was placed."""
        self._known.clear()


class _Slots:
    """Starts a few things at a time on each node, and knows when the last of them is done."""

    def __init__(self, count: int, now_s: float) -> None:
        self._count = count
        self._now_s = now_s
        self._busy: dict[str, list[float]] = defaultdict(list)
        self.ends_s = now_s

    def take(self, node_id: str, took_s: float, delay_s: float = 0.0) -> float:
        """Return when something that is to start on a node does."""
        busy = self._busy[node_id]
        at_s = self._now_s + delay_s
        if len(busy) >= self._count:
            at_s = max(at_s, heapq.heappop(busy))
        heapq.heappush(busy, at_s + took_s)
        self.ends_s = max(self.ends_s, at_s + took_s)
        return at_s


def _new_vms(entry: NewVms) -> list[SimVm]:
    if entry.count == 1:
        return [vm_of(entry, "")]
    return [vm_of(entry, "", name=f"{entry.name}-{number}") for number in range(1, entry.count + 1)]


def _names(nodes: Sequence[Node]) -> str:
    return ", ".join(node.hostname for node in nodes)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
