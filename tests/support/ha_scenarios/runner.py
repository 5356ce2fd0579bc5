"""Runs one scenario: rounds of 20 s, commands every fifth, and the real decision in the process that is elected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Choice,
    Effect,
    EndFence,
    HaConfig,
    HaState,
    NodeHealth,
    NodeSeen,
    Observed,
    OpenAFence,
    OpenFence,
    ProveFence,
    Relocate,
    Restart,
    Seen,
    Shutdown,
    ShutdownPolicy,
    StartInPlace,
    Stop,
    VmSeen,
    Wanted,
    WithdrawFence,
)
from controlplane.ha.step import step
from tests.support.ha_scenarios.commands import obey
from tests.support.ha_scenarios.placer import Placer, Rules, Standing
from tests.support.ha_scenarios.scenario import Outcome, Scenario
from tests.support.ha_scenarios.site import Guest, Host, Site

ROUND_S = 20.0
ROUNDS_A_BATCH = 5
QUIET_S = 800.0
"""After the last batch: longer than a host's death, its proof, a restart and some failed starts take."""
_MAX_TURNS = 12
_WANTED = {"started": Wanted.STARTED, "stopped": Wanted.STOPPED, "disabled": Wanted.STOPPED, "ignored": Wanted.IGNORED}

CONFIG = HaConfig(
    suspect_after_s=60.0,
    objection_s=0.0,
    proof_wait_s=80.0,
    max_fencing_share=0.5,
    frozen_s=1e9,
    first_retry_s=ROUND_S,
)
"""The scenarios' site takes its time: what their scripts do meanwhile depends on it. It waits for a host that reboots
for as long as it takes; fewer than half are ever fenced, since nothing is decided without a majority."""
ELECTION_S = 140.0
"""For how long nobody else decides after the elected host was last heard, unless it said that it goes."""


@dataclass
class Runner:
    """One run."""

    scenario: Scenario
    site: Site = field(init=False)
    rules: Rules = field(init=False)
    config: HaConfig = field(init=False)
    leader_id: str = ""
    led_s: float = 0.0
    elected_s: float = -math.inf
    proven: set[str] = field(default_factory=set)
    state: HaState = field(default_factory=lambda: HaState(0.0))
    fence_count: int = 0
    chosen: dict[str, str] = field(default_factory=dict)
    restarts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.site = Site.of(self.scenario)
        self.rules = Rules.of(self.scenario.node_rules, self.scenario.vm_rules, len(self.scenario.node_ids))
        self.config = replace(CONFIG, shutdown_policy=self.scenario.shutdown_policy)

    def run(self) -> Outcome:
        """Run to the end.

        Raises:
            AssertionError: a VM ran on two hosts at once.
        """
        batches, not_before_s, quiet_since_s, number = list(self.scenario.script), 0.0, 0.0, 0
        while batches or self.site.now_s - quiet_since_s < QUIET_S:
            self.site.now_s += ROUND_S
            if self.site.now_s >= not_before_s:
                if number % ROUNDS_A_BATCH == 0 and batches:
                    delays = [obey(self.site, command) for command in batches.pop(0)]
                    quiet_since_s, not_before_s = self.site.now_s, self.site.now_s + max(delays, default=0.0)
                number += 1
            self.round()
        return self.outcome()

    def round(self) -> None:
        """Let 20 s pass."""
        self.site.beat(self.leader_id)
        skipped = self.site.skipped_rounds
        if self._elects() and not skipped["crm"]:
            self._decide()
        if not skipped["lrm"]:
            self.site.obey()
        skipped.subtract([whose for whose, count in skipped.items() if count > 0])
        for host in self.site.hosts.values():
            if host.is_on and host.shutdown is not None and not self._is_emptied_first(host):
                self.site.go_down(host)
                host.is_left_empty = self._is_left(host)
                if host.id == self.leader_id and (not host.is_on or host.shutdown is None):
                    self.leader_id = ""
                    self._elects()
        twice = {guest.id: guest.running_on for guest in self.site.guests.values() if len(guest.running_on) > 1}
        assert not twice, f"at {self.site.now_s:g} s these run on more than one host: {twice}"

    def _elects(self) -> bool:
        """Whether somebody decides in this round; who does so for the first time knows nothing of before."""
        now_s = self.site.now_s
        if self.leader_id and not self.site.hosts[self.leader_id].may_decide:
            self.leader_id = ""
        reachable = sorted(host.id for host in self.site.reachable if host.may_decide)
        if self.leader_id in reachable:
            if now_s - self.led_s > ROUND_S:
                self.state = HaState(now_s)
        elif reachable and (not self.leader_id or now_s - self.led_s >= ELECTION_S):
            if self.leader_id:
                self.elected_s = now_s
            self.leader_id, self.state = reachable[0], HaState(now_s)
        else:
            return False
        self.led_s = now_s
        return True

    def _config_now(self) -> HaConfig:
        """Whoever is elected after one that died has waited for longer than leases last, and does not wait again."""
        is_new = self.site.now_s - self.elected_s <= self.config.suspect_after_s
        return replace(self.config, proof_wait_s=0.0) if is_new else self.config

    def outcome(self) -> Outcome:
        """Say where everything is."""
        hosts = self.site.hosts
        return Outcome(
            {
                guest.id: (guest.node_id, self._state_of(guest))
                for guest in self.site.guests.values()
                if guest.state != "ignored"
            },
            {host.id: self._node_state(host) for host in hosts.values()},
            frozenset(guest.id for guest in self.site.guests.values() if guest.runs),
            {host.id: host.proofs for host in hosts.values() if host.proofs},
            self.restarts,
        )

    # -- deciding

    def _decide(self) -> None:
        for _ in range(_MAX_TURNS):
            is_moved = self._move_vms()
            self.chosen.clear()
            self.proven = {host.id for host in self.site.hosts.values() if host.fence and host.fence.is_proven}
            self.state, effects = step(self._config_now(), self.state, self._observed(), self.site.now_s)
            done = [self._carry_out(effect) for effect in effects]
            is_moved |= self._take_over_stopped()
            if not is_moved and not any(done):
                return

    def _observed(self) -> Observed:
        return Observed(
            [
                NodeSeen(
                    host.id,
                    heard_s=host.contact_s,
                    takes_part=not host.in_maintenance,
                    fence=host.fence,
                    lease_proves=True,
                    is_rebooted=self._is_rebooted(host),
                    has_ended_vms=host.has_ended_vms or not self.site.is_in_use(host),
                    shutdown=host.shutdown,
                )
                for host in self.site.hosts.values()
            ],
            [self._vm_seen(guest) for guest in self.site.guests.values()],
            choose=self._choose,
        )

    def _is_rebooted(self, host: Host) -> bool:
        return host.is_reachable and host.boot_count > host.fenced_boot_count

    def _vm_seen(self, guest: Guest) -> VmSeen:
        fence = self.site.hosts[guest.node_id].fence
        return VmSeen(
            guest.id,
            guest.node_id,
            wanted=Wanted.IGNORED if guest.is_given_up else _WANTED[guest.state],
            seen=Seen.RUNNING if guest.runs else Seen.FAILED if guest.failed_start_count else Seen.STOPPED,
            is_busy=bool(guest.moving_to),
            proves_dead=fence is not None and fence.is_proven,
            priority=guest.setting.priority,
            max_restarts=guest.setting.max_restarts,
            max_relocations=guest.setting.max_relocations,
            failed_start_count=guest.failed_start_count,
            relocation_count=guest.relocation_count,
            starts_after=guest.setting.starts_after,
        )

    def _choose(self, vm_id: str, excluded: frozenset[str]) -> Choice:
        self._take_over_stopped(before=vm_id)
        guest = self.site.guests[vm_id]
        is_alive = self.site.hosts[guest.node_id].fence is None
        without = excluded.union(guest.failed_nodes if is_alive else ())
        self.chosen.pop(vm_id, None)
        placer = self._placer()
        target = guest.home_id if guest.home_id in placer.fitting(vm_id, without) else placer.best(vm_id, without)
        if target:
            self.chosen[vm_id] = target
        return Choice(target, "no node that its rules allow is up")

    def _carry_out(self, effect: Effect) -> bool:
        """Do what was decided; returns whether that changed anything."""
        match effect:
            case OpenAFence() | WithdrawFence() | ProveFence() | EndFence():
                self._fence(effect, self.site.hosts[effect.node_id])
            case Restart():
                self.site.guests[effect.vm_id].start_elsewhere(effect.to_node_id)
                self.restarts.append(effect.vm_id)
            case Relocate():
                guest = self.site.guests[effect.vm_id]
                guest.relocation_count += 1
                guest.begin_move(effect.to_node_id, live=False)
            case StartInPlace() | Stop():
                guest = self.site.guests[effect.vm_id]
                before, guest.asked = guest.asked, "start" if isinstance(effect, StartInPlace) else "stop"
                return before != guest.asked
            case Alerting(kind=AlertOf.VM_NOT_RESTARTED):
                guest = self.site.guests[effect.resource_id]
                before_it, guest.is_given_up = guest.is_given_up, True
                return not before_it
            case _:
                return False
        return True

    def _fence(self, effect: OpenAFence | WithdrawFence | ProveFence | EndFence, host: Host) -> None:
        match effect:
            case OpenAFence():
                self.fence_count += 1
                host.fence = OpenFence(f"fence-{self.fence_count}")
                host.fenced_boot_count = host.boot_count
            case ProveFence():
                host.fence = OpenFence(effect.fence_id, is_proven=True)
                host.proofs.append(effect.method.name.lower().replace("_", " "))
            case _:
                host.fence = None

    # -- what other parts of the product do: moves by command, by rules, for maintenance

    def _placer(self) -> Placer:
        up = {
            host.id
            for host in self.site.reachable
            if host.fence is None and not host.in_maintenance and host.shutdown is None
        }
        standing = {guest.id: self._standing(guest) for guest in self.site.guests.values() if guest.state != "ignored"}
        return Placer(self.rules, up, standing)

    def _standing(self, guest: Guest) -> Standing:
        host = self.site.hosts[guest.node_id]
        is_lost = host.fence is not None or not host.is_reachable
        counts = guest.state == "started" or guest.runs or guest.is_given_up or guest.is_settling
        nodes = {guest.moving_to, self.chosen.get(guest.id, ""), "" if is_lost else guest.node_id}
        return Standing(frozenset(nodes - {""}), counts)

    def _move_vms(self) -> bool:
        is_moved = False
        for vm_id in sorted(self.site.guests):
            guest = self.site.guests[vm_id]
            if guest.is_given_up or guest.state == "ignored":
                guest.command = None
                continue
            if guest.moving_to:
                continue
            host = self.site.hosts[guest.node_id]
            if host in self.site.reachable and host.fence is None:
                is_moved |= self._move(guest, host)
        return is_moved

    def _take_over_stopped(self, before: str = "") -> bool:
        """Have VMs that are off, and that somebody counts on, belong to a node that lives.

        `before` leaves those alone that come later: each VM is given a node in its turn, those that run like others.
        """
        is_moved = False
        for vm_id in sorted(self.site.guests):
            guest = self.site.guests[vm_id]
            host = self.site.hosts[guest.node_id]
            if guest.state != "stopped" or guest.is_given_up or host.is_left_empty or (before and vm_id >= before):
                continue
            if host.id in self.proven and (target := self._placer().best(vm_id)):
                guest.start_elsewhere(target)
                is_moved = True
        return is_moved

    def _move(self, guest: Guest, host: Host) -> bool:
        placer = self._placer()
        if guest.command is not None:
            return self._obey_command(guest, placer)
        if guest.state != "started" or guest.failed_start_count:
            return False
        if host.in_maintenance or self._is_left(host):
            if target := placer.best(guest.id):
                guest.home_id = guest.node_id
                guest.begin_move(target, live=guest.id.startswith("vm:"))
            return bool(target)
        if host.shutdown is not None:
            return False
        target = self._better_place(guest, placer)
        if target:
            guest.begin_move(target, live=guest.id.startswith("vm:"))
        return bool(target)

    @staticmethod
    def _better_place(guest: Guest, placer: Placer) -> str:
        if not guest.setting.is_failback and placer.is_allowed(guest.id, guest.node_id):
            companions = placer.companions(guest.id)
            if not companions or guest.node_id in companions:
                return ""
        fitting = placer.fitting(guest.id)
        if guest.home_id in fitting:
            home, guest.home_id = guest.home_id, ""
            return home if home != guest.node_id else ""
        target = "" if guest.node_id in fitting else placer.best(guest.id)
        if target and guest.home_id != guest.node_id:
            guest.home_id = ""
        return target

    def _obey_command(self, guest: Guest, placer: Placer) -> bool:
        """Move a VM, and its company with it, if rules allow that; otherwise the command is dropped."""
        (live, target), guest.command = guest.command or (False, ""), None
        if target == guest.node_id or not placer.is_allowed(guest.id, target):
            return False
        for member_id in sorted(self.rules.company.get(guest.id, {guest.id})):
            member = self.site.guests.get(member_id)
            if member is not None and member.node_id != target and not member.moving_to:
                member.begin_move(target, live=live)
        return True

    # -- words

    def _policy(self, host: Host) -> ShutdownPolicy:
        if self.config.shutdown_policy is not ShutdownPolicy.CONDITIONAL:
            return self.config.shutdown_policy
        return ShutdownPolicy.FREEZE if host.shutdown is Shutdown.REBOOT else ShutdownPolicy.FAILOVER

    def _is_left(self, host: Host) -> bool:
        """Whether what runs on a host moves away because it is shut down."""
        return host.shutdown is not None and self._policy(host) is ShutdownPolicy.MIGRATE

    def _is_emptied_first(self, host: Host) -> bool:
        if not self._is_left(host) or host.has_ended_vms:
            return False
        return any(guest.runs and guest.state == "started" for guest in self.site.guests_of(host.id))

    def _state_of(self, guest: Guest) -> str:
        host = self.site.hosts[guest.node_id]
        if guest.is_given_up:
            return "error"
        if host.shutdown is not None and self._policy(host) is ShutdownPolicy.FREEZE:
            return "freeze"
        if guest.state == "disabled":
            return "stopped"
        if host.fence is not None and (guest.state == "started" or not host.is_left_empty):
            return "recovery" if host.fence.is_proven else "fence"
        if guest.state == "started":
            return "migrate" if guest.moving_to else "started"
        return "request_stop" if guest.runs else "stopped"

    def _node_state(self, host: Host) -> str:
        if host not in self.site.members:
            return "unknown"
        known = self.state.nodes.get(host.id)
        if known is not None and known.health is NodeHealth.MAINTENANCE:
            return "maintenance"
        return "online" if host.fence is None else "fence"
