"""The hosts and guests of a scenario: what runs where, what obeys, what fails.

A host that hears from no majority for `LEASE_S` is switched off by its watchdog if VMs belong to it, so that nothing
runs there any more; that it takes longer to be started elsewhere is what the scenarios are about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.ha.model import OpenFence, Shutdown
from tests.support.ha_scenarios.scenario import Scenario, VmSetting

LEASE_S = 60.0
_REMOVABLE_LOCKS = frozenset({"backup", "mounted"})
"""Left behind by work that died with its host; others say that something is not as it should be."""


@dataclass(slots=True)
class Host:
    """A host. `contact_s` is when a majority last heard it, `leased_s` the same in this boot.

    Attributes:
        may_decide: False while its part in deciding is stopped.
        store_faults: what fails of the store that hosts share; without it, it is in the majority and has no lease.
        wants_maintenance: somebody asked for it; it is `in_maintenance` once it heard of that.
        boot_count: how often it was switched on; `fenced_boot_count` how often that was when its fence was opened.
        is_left_empty: it went down after what ran there moved away; what is off waits for its return.
    """

    id: str
    is_on: bool = False
    has_network: bool = False
    contact_s: float | None = None
    leased_s: float | None = None
    wants_maintenance: bool = False
    in_maintenance: bool = False
    shutdown: Shutdown | None = None
    has_ended_vms: bool = False
    fence: OpenFence | None = None
    may_decide: bool = True
    store_faults: set[str] = field(default_factory=set)
    boot_count: int = 0
    fenced_boot_count: int = 0
    is_left_empty: bool = False
    proofs: list[str] = field(default_factory=list)

    @property
    def is_member(self) -> bool:
        """Whether it is up and has network."""
        return self.is_on and self.has_network

    @property
    def is_reachable(self) -> bool:
        """Whether it is up, has network, and can read and write what all share."""
        return self.is_member and not self.store_faults

    def power_on(self) -> None:
        """Boot, if it is off, and have network; nothing that was said before a boot counts any more."""
        self.has_network = True
        if not self.is_on:
            self.is_on = True
            self.boot_count += 1
            self.leased_s, self.shutdown, self.has_ended_vms = None, None, False
            self.may_decide, self.store_faults = True, set()


@dataclass(slots=True)
class Guest:
    """A VM: what is wanted, where it belongs, on which hosts it really runs.

    Attributes:
        command: a move that somebody asked for: whether live, and where to.
        moving_to: target of a move under way; "" for none.
        home_id: node that it left because of maintenance, and goes back to.
        failed_nodes: where it did not start, in this series.
        is_settling: it is new on its node, and counts there until that one has seen whether it is off.
    """

    id: str
    node_id: str
    state: str
    setting: VmSetting
    running_on: set[str] = field(default_factory=set)
    is_given_up: bool = False
    command: tuple[bool, str] | None = None
    moving_to: str = ""
    moves_live: bool = False
    home_id: str = ""
    lock: str = ""
    failed_start_count: int = 0
    relocation_count: int = 0
    failed_nodes: list[str] = field(default_factory=list)
    asked: str = ""
    is_settling: bool = True
    _start_tries: int = 0
    _move_tries: int = 0

    @classmethod
    def of(cls, setting: VmSetting) -> Guest:
        """Make one that does not run yet."""
        return cls(setting.id, setting.node_id, setting.state, setting, lock=setting.lock)

    @property
    def runs(self) -> bool:
        """Whether it runs where it belongs."""
        return self.node_id in self.running_on

    def _fault(self, position: int, default: int = 0) -> int:
        """What a digit of a VM that misbehaves says, for the node where it is."""
        kind, _, digits = self.id.partition(":")
        if kind != "fa":
            return 0
        only_on = digits[5:6]
        if only_on not in ("", "0") and not self.node_id.endswith(only_on):
            return 0
        return int(digits[position : position + 1] or default)

    def forget_failures(self) -> None:
        """Begin a new series."""
        self.failed_start_count = self.relocation_count = 0
        self.failed_nodes.clear()

    def start(self) -> None:
        """Try to start."""
        if self.lock or self._start_tries < self._fault(1):
            self._start_tries += 1
            self.failed_start_count += 1
            if self.failed_start_count % (self.setting.max_restarts + 1) == 0:
                self.failed_nodes.append(self.node_id)
            return
        self._start_tries = 0
        self.running_on.add(self.node_id)
        self.forget_failures()

    def stop(self) -> None:
        """Try to stop; one that does not is given up, unless nothing but being off was ever wanted of it."""
        if self.runs and (self.lock or self._fault(3)):
            self.is_given_up = self.state != "disabled"
            return
        self.running_on.discard(self.node_id)

    def move(self, *, target_is_up: bool) -> None:
        """Carry out a move: live, or by stopping it here; then it is started there."""
        target, self.moving_to = self.moving_to, ""
        if self.lock or not target_is_up or self._move_tries < self._fault(2):
            self._move_tries += 1
            self.failed_start_count = 0
            return
        self._move_tries = 0
        self.running_on = {target} if self.moves_live and self.runs else set()
        self.node_id, self.failed_start_count = target, 0

    def begin_move(self, target: str, *, live: bool) -> None:
        """Note that it moves."""
        self.moving_to, self.moves_live, self.asked = target, live, ""

    def start_elsewhere(self, target: str) -> None:
        """Belong to another node after its own died."""
        self.node_id, self.moving_to, self.command, self.failed_start_count = target, "", None, 0
        self.is_settling = True
        if self.lock in _REMOVABLE_LOCKS:
            self.lock = ""


@dataclass(slots=True)
class Site:
    """All hosts and guests, at one moment. `skipped_rounds` are those in which nobody decides, or no host obeys."""

    hosts: dict[str, Host]
    guests: dict[str, Guest]
    now_s: float = 0.0
    skipped_rounds: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, scenario: Scenario) -> Site:
        """Build it; hosts are off unless the scenario says otherwise."""
        site = cls({each: Host(each) for each in scenario.node_ids}, {vm.id: Guest.of(vm) for vm in scenario.vms})
        for guest in site.guests.values():
            guest.is_given_up = guest.id in scenario.errors
            guest.home_id = scenario.homes.get(guest.id, "")
        for host_id in scenario.in_maintenance:
            site.hosts[host_id].wants_maintenance = site.hosts[host_id].in_maintenance = True
        for host_id in scenario.on:
            site.hosts[host_id].power_on()
        return site

    @property
    def members(self) -> Sequence[Host]:
        """Hosts that are up and have network, if they are more than half of all; none otherwise."""
        found = [host for host in self.hosts.values() if host.is_member]
        return found if 2 * len(found) > len(self.hosts) else []

    @property
    def reachable(self) -> Sequence[Host]:
        """Those of them that hear and are heard."""
        return [host for host in self.members if host.is_reachable]

    def guests_of(self, host_id: str) -> Sequence[Guest]:
        """VMs that belong to a host."""
        return [guest for guest in self.guests.values() if guest.node_id == host_id]

    def power_off(self, host_id: str) -> None:
        """Switch a host off, and all that runs there with it."""
        host = self.hosts[host_id]
        host.is_on = host.has_network = False
        for guest in self.guests.values():
            guest.running_on.discard(host_id)
            if guest.node_id == host_id:
                guest.asked = guest.moving_to = ""

    def beat(self, leader_id: str) -> None:
        """Have hosts hear from the majority, and end those that did not for too long."""
        for host in self.reachable:
            host.contact_s = host.leased_s = self.now_s
            host.is_left_empty = host.is_left_empty and host.fence is not None
        for host in self.hosts.values():
            is_cut_off = host.is_on and host.leased_s is not None and self.now_s - host.leased_s >= LEASE_S
            if is_cut_off and (host.id == leader_id or self.is_in_use(host)):
                self.power_off(host.id)

    def is_in_use(self, host: Host) -> bool:
        """Whether a VM runs on a host, or shall; others need no lease."""
        return any(
            host.id in guest.running_on or (guest.node_id == host.id and guest.state == "started")
            for guest in self.guests.values()
        )

    def obey(self) -> None:
        """Have hosts do what they were asked for, then what follows from being shut down."""
        reachable = {host.id for host in self.reachable}
        for host_id in reachable:
            self.hosts[host_id].in_maintenance = self.hosts[host_id].wants_maintenance
        for guest in [self.guests[vm_id] for vm_id in sorted(self.guests)]:
            if guest.node_id not in reachable:
                continue
            asked, guest.asked = guest.asked, ""
            guest.is_settling = False
            if guest.moving_to:
                guest.move(target_is_up=guest.moving_to in reachable)
            elif asked == "start":
                guest.start()
            elif asked == "stop":
                guest.stop()

    def go_down(self, host: Host) -> None:
        """Take one step of a shutdown: end all VMs, then switch off, and on again for a reboot."""
        if not host.has_ended_vms:
            for guest in self.guests.values():
                guest.running_on.discard(host.id)
            host.has_ended_vms = True
            return
        is_reboot = host.shutdown is Shutdown.REBOOT
        self.power_off(host.id)
        if is_reboot:
            host.power_on()
