"""One history from one seed: a cluster, faults, what must hold all the time, and that it mends once faults stop."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field, replace

from controlplane.domain.fencing import FenceState, HaSettings
from controlplane.domain.ha_times import HaTimes
from controlplane.ha.model import HaConfig, ShutdownPolicy
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED
from tests.simulation.cluster.database import Database, Etcd, NodeRow, Rows, VmRow, require
from tests.simulation.cluster.deciding import MAX_FENCING_SHARE
from tests.simulation.cluster.host import Host
from tests.simulation.cluster.kernel import Kernel, Network, Violation
from tests.simulation.cluster.ledger import Ledger
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site
from tests.simulation.cluster.rules import Rules
from tests.simulation.cluster.stories import Stories

MENDS_WITHIN_S = 240.0
LOOK_S = 2.0


@dataclass(slots=True)
class Outcome:
    """What became of a history."""

    seed: int
    violation: str = ""
    trace: list[str] = field(default_factory=list)
    event_count: int = 0
    virtual_s: float = 0.0
    start_count: int = 0
    fence_count: int = 0
    proven_count: int = 0
    failover_count: int = 0
    migration_count: int = 0
    ack_count: int = 0
    epoch_count: int = 0
    fault_count: int = 0
    check_count: int = 0


class History:
    """One cluster; `run` it once."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.outcome = Outcome(seed)
        self.kernel = kernel = Kernel(seed)
        draw = kernel.random
        drift = draw.choice((0.001, 0.03))
        times = HaTimes(clock_drift=drift)
        self.times = times = replace(times, proof_wait_s=times.least_proof_wait_s() * 1.0001)
        times.check()
        self.network = Network(kernel)
        self.database = Database(kernel, self.network, rules, self._watch)
        etcd = Etcd(kernel, self.network, rules)
        host_ids = [f"h{number}" for number in range(1, draw.choice((3, 4, 4, 5)) + 1)]
        plane_names = [f"p{number}" for number in range(1, draw.choice((1, 2, 3, 3)) + 1)]
        config = HaConfig(
            times.suspect_after_s,
            times.objection_s,
            times.proof_wait_s if rules.waits_out else 5.0,
            max_fencing_share=MAX_FENCING_SHARE if rules.has_share else 1.0,
            brake_share=0.5 if rules.has_brake else 2.0,
            shutdown_policy=draw.choice((ShutdownPolicy.CONDITIONAL, ShutdownPolicy.FAILOVER, ShutdownPolicy.FREEZE)),
            frozen_s=40.0,
        )
        agents = [host_id for host_id in host_ids if draw.random() < 0.3]
        self.site = Site(kernel, self.database, etcd, {}, rules, times, config, agents, Ledger(self.executing))
        self.planes = {name: Plane(self.site, name) for name in plane_names}
        for host_id in host_ids:
            self.site.hosts[host_id] = Host(
                host_id,
                kernel,
                self.network,
                rules,
                times,
                plane_names,
                lambda name, beat, answer: self.planes[name].take(beat, answer),
                lambda name, request, answer: self.planes[name].hear_out(request, answer),
                self._on_start,
                can_self_fence=draw.random() < 0.85,
            )
        for host in self.site.hosts.values():
            host.peers = self.site.hosts
        self._fill(host_ids)
        self.faults = Stories(self.site, self.planes)

    def _fill(self, host_ids: list[str]) -> None:
        draw, rows = self.kernel.random, self.database.rows
        rows.settings = HaSettings()
        rows.nodes = {host_id: NodeRow(host_id, host_id) for host_id in host_ids}
        rows.capacity = {host_id: draw.choice((3, 4, 6)) for host_id in host_ids}
        for number in range(1, draw.randint(2, 2 * len(host_ids)) + 1):
            node_id, memory = draw.choice(host_ids), draw.choice((1, 1, 2))
            if rows.free(node_id) >= memory:
                name = f"vm{number}"
                rows.vms[name] = VmRow(name, node_id, memory, wants_protection=draw.random() < 0.85)

    def run(self) -> Outcome:
        """Let it happen; what is wrong is in the outcome."""
        outcome, kernel = self.outcome, self.kernel
        asyncio._set_running_loop(kernel)  # type: ignore[arg-type]
        gc.disable()
        try:
            for host in self.site.hosts.values():
                host.boot()
            for plane in self.planes.values():
                plane.begin()
            kernel.run_until(self.faults.schedule())
            self.faults.stop()
            self._mend()
            self.site.ledger.check_end(self.database.rows)
        except Violation as violation:
            outcome.violation = str(violation)
            outcome.trace = list(kernel.trace)
        finally:
            asyncio._set_running_loop(None)
            gc.enable()
        rows = self.database.rows
        outcome.event_count, outcome.virtual_s = kernel.event_count, kernel.now_s
        outcome.fault_count, outcome.epoch_count = self.faults.count, rows.leadership.epoch
        outcome.fence_count = len(rows.fences)
        outcome.ack_count = self.site.ledger.count
        outcome.proven_count = sum(fence.proof is not None for fence in rows.fences.values())
        return outcome

    def _mend(self) -> None:
        end_s = self.kernel.now_s + MENDS_WITHIN_S
        while wrong := self._wrong():
            require(self.kernel.now_s < end_s, f"not mended {MENDS_WITHIN_S:.0f} s after faults stopped: {wrong}")
            self.kernel.run_until(self.kernel.now_s + LOOK_S)
            self.faults.look_after()

    def _wrong(self) -> str:
        """Say what is not mended yet; "" if all is."""
        rows = self.database.rows
        if fences := [fence.node_id for fence in rows.fences.values() if fence.is_current]:
            return f"{fences} are fenced"
        leaders = [name for name, plane in self.planes.items() if plane.manager.is_leader]
        if len(leaders) != 1 or rows.leadership.leader_id != leaders[0]:
            return f"leaders are {leaders}, {rows.leadership.leader_id} is recorded"
        if not rows.settings.is_armed or rows.moves:
            return f"is_armed is {rows.settings.is_armed}, and {[*rows.moves]} are being migrated"
        for vm in rows.vms.values():
            runs = vm.id in self.site.hosts[vm.node_id].running
            if vm.shall_go or runs != vm.shall_run:
                return f"{vm.id} runs on {vm.node_id}: {runs}; it shall: {vm.shall_run}; it shall go: {vm.shall_go}"
        return ""

    # what must hold

    def _on_start(self, host: Host, vm_id: str) -> None:
        self.outcome.start_count += 1
        self.outcome.check_count += 1
        where = self.executing(vm_id)
        require(len(where) <= 1, f"{vm_id} runs on {where}")
        self.site.ledger.check_start(vm_id)

    def executing(self, vm_id: str) -> list[str]:
        """Return the hosts on which a VM does anything now."""
        return [host.id for host in self.site.hosts.values() if host.executes(vm_id)]

    def _watch(self, before: Rows, after: Rows) -> None:
        """Check a transaction."""
        self.outcome.check_count += 1
        require(after.leadership.epoch >= before.leadership.epoch, "the epoch fell")
        for node in after.nodes.values():
            require(node.fence_token >= before.nodes[node.id].fence_token, "a token fell")
        for vm in after.vms.values():
            was = before.vms[vm.id]
            if was is not vm:
                self._check_vm(before, after, was, vm)
        self.site.ledger.check(before, after)
        for fence in after.fences.values():
            known = before.fences.get(fence.id)
            if known is None:
                self._check_opened(after, fence.id)
            elif fence.state == FenceState.PROVEN != known.state:
                self._check_proof(after, fence.id)

    def _check_vm(self, before: Rows, after: Rows, was: VmRow, vm: VmRow) -> None:
        require(vm.generation >= was.generation, f"the generation of {vm.id} fell")
        if vm.shall_run and not was.shall_run:
            self.site.ledger.wanted(vm.id)
        if was.node_id == vm.node_id:
            return
        self.kernel.note(f"{vm.id} is moved from {was.node_id} to {vm.node_id}")
        require(not self.site.hosts[was.node_id].executes(vm.id), f"{vm.id} leaves {was.node_id}, but runs there")
        require(after.free(vm.node_id) >= 0, f"more is claimed on {vm.node_id} than it has")
        move = before.moves.get(vm.id)
        if move is not None and move.target_id == vm.node_id:
            self.outcome.migration_count += 1
            return
        self.outcome.failover_count += 1
        require(was.shall_run, f"{vm.id} is started elsewhere, although it shall be off")
        fence = before.fence_of(was.node_id)
        require(
            fence is not None and fence.proof is not None, f"{vm.id} leaves {was.node_id}, which is not proven dead"
        )

    def _check_opened(self, rows: Rows, fence_id: str) -> None:
        fence = rows.fences[fence_id]
        self.kernel.note(f"{fence_id} of {fence.node_id} is opened in epoch {fence.epoch}")
        require(fence.epoch == rows.leadership.epoch, f"{fence_id} is opened by a leader of before")

    def _check_proof(self, rows: Rows, fence_id: str) -> None:
        fence = rows.fences[fence_id]
        assert fence.proof is not None
        self.kernel.note(f"{fence_id} of {fence.node_id} is proven: {fence.proof.evidence}")
        require(fence.proof.epoch == rows.leadership.epoch, f"{fence_id} is proven by a leader of before")
        is_by_lease = fence.proof.method == FENCE_METHOD_LEASE_EXPIRED
        for vm in rows.vms.values():
            if vm.node_id == fence.node_id and (vm.is_protected or not is_by_lease):
                runs = self.site.hosts[fence.node_id].executes(vm.id)
                require(not runs, f"{fence_id} is proven ({fence.proof.evidence}), but {vm.id} runs on {fence.node_id}")
        if not is_by_lease or fence.is_by_operator:
            return
        opened_s = fence.opened_at.timestamp()
        for name, plane in self.planes.items():
            if not self.faults.is_well_since(name, opened_s - 1.0):
                continue
            heard = plane.hearing.of(fence.node_id)
            age_s = plane.process.clock.now() - heard.at_s if heard is not None else 1e9
            heard_s = self.kernel.now_s - age_s
            if age_s > 3.0 and heard_s > opened_s + 2.0:
                raise Violation(f"{fence_id} is proven although {name} heard {fence.node_id} at {heard_s:.3f}")


def run_history(seed: int, rules: Rules | None = None) -> Outcome:
    """Run one history; the same seed gives the same one."""
    return History(seed, rules or Rules()).run()
