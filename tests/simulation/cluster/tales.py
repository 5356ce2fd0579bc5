"""Stories about people, hosts that go and come, and migrations: each the way to where one rule alone stands."""

from __future__ import annotations

from collections.abc import Callable

from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from tests.simulation.cluster.database import VmRow
from tests.simulation.cluster.doings import Doings
from tests.simulation.cluster.faults import STORY_S
from tests.simulation.cluster.going import go_down
from tests.simulation.cluster.host import Host

HOLDS_S = 4.0
"""How long commands are held, so that one that starts a VM is among them."""
LOOK_S = 0.2
"""Between looks for what a story waits for."""

_KINDS = AnnounceShutdownRequest.Kind


class Tales(Doings):
    """What stories are made of, and those of them."""

    def _doomed(self) -> Host | None:
        """Draw a host whose lease proves something, with something to lose; None if there is none."""
        hosts = [host for host in self.site.hosts.values() if host.can_self_fence and host.is_on]
        return self.kernel.random.choice([host for host in hosts if host.running & host.disk.protected] or [None])

    def _when(self, condition: Callable[[], bool], then: Callable[[], object]) -> None:
        """Have something happen once a condition holds."""

        def look() -> None:
            if not self.is_over:
                if condition():
                    then()
                else:
                    self.kernel.after(LOOK_S, look)

        look()

    def _is_fenced(self, host: Host) -> bool:
        return self.site.database.rows.fence_of(host.id) is not None

    def _is_moved_from(self, host: Host) -> bool:
        vms = self.site.database.rows.vms.values()
        return self._is_fenced(host) and not any(vm.node_id == host.id and vm.is_protected for vm in vms)

    def _is_elsewhere(self, vm: VmRow, host: Host) -> bool:
        row = self.site.database.rows.vms.get(vm.id)
        return row is not None and row.node_id != host.id

    def _links(self, host: Host) -> set[tuple[str, str]]:
        """Return all links between a host and control planes."""
        return {(host.id, name) for name in self.planes} | {(name, host.id) for name in self.planes}

    def _guest_of(self, host: Host, *, is_protected: bool = True) -> VmRow | None:
        vms = [vm for vm in self.site.database.rows.vms.values() if vm.node_id == host.id and vm.id in host.running]
        return self.kernel.random.choice([vm for vm in vms if vm.is_protected == is_protected] or [None])

    def _with_unprotected(self) -> Host | None:
        """Draw a host that runs a VM that no lease ends; None if there is none."""
        hosts = [host for host in self.site.hosts.values() if self._guest_of(host, is_protected=False)]
        return self.kernel.random.choice(hosts or [None])

    # starts

    def _hold_start_of(self, vm: VmRow, host: Host) -> None:
        """Have a VM crash, and the command that starts it again wait for `release`."""
        host.end({vm.id})
        for name in self.planes:
            self.network.hold(name, host.id)
        self._later(HOLDS_S, self.network.stop_holding)

    def _start_under_fence(self, span_s: float) -> str:
        """Have a person start a VM on a host that is about to be proven dead, and the start hang until it is back.

        The host hears, but is heard only by a process that has lost the database, which leases it until it is fenced.
        """
        host = self._doomed()
        vm = self._guest_of(host) if host is not None else None
        if host is None or vm is None or len(self.planes) < 2:
            return self._power_off(span_s)
        kept, deaf = self._follower(), {(host.id, name) for name in self.planes}

        def start() -> None:
            host.holds_starts = True
            self.people.start(vm.id)
            self._cut_links({(host.id, kept)}, STORY_S)

        def give_back() -> None:
            self.network.cut -= deaf
            self._when(lambda: not self._is_fenced(host), lambda: self._later(4.0, host.let_starts_go_on))

        self._cut_links(deaf - {(host.id, kept)}, STORY_S)
        self._cut_both([(kept, "db")], STORY_S)
        self._later(2.5, lambda: host.end({vm.id}))
        self._when(lambda: self._is_fenced(host), start)
        self._when(lambda: self._is_moved_from(host), give_back)
        return f"{host.id} is no longer heard, {vm.id} crashes, and is started by a person"

    def _stop_overtakes(self, span_s: float) -> str:
        """Have the command to start a VM be under way for long, and a person stop the VM meanwhile."""
        host = self._busy_host()
        vm = self._guest_of(host)
        if vm is None:
            return self._power_off(span_s)
        host.end({vm.id})
        for name in self.planes:
            self.network.hold(name, host.id)
        self._later(4.0, self.network.stop_holding)
        self._later(9.0, lambda: self.people.stop(vm.id))
        self._later(15.0, self.network.release)
        return f"{vm.id} crashes, is started late, and stopped by a person"

    def _start_after_reboot(self, span_s: float) -> str:
        """Have the command to start a VM that no lease ends reach its host after that was fenced, and rebooted."""
        host, draw = self._with_unprotected(), self.kernel.random
        vm = self._guest_of(host, is_protected=False) if host is not None else None
        if host is None or vm is None:
            return self._power_off(span_s)
        links = self._links(host)
        self._hold_start_of(vm, host)

        def lose_power() -> None:
            host.lose_power()
            self._cut_links(links, STORY_S)
            self._later(draw.uniform(4.5, 6.5), host.boot)

        def mend() -> None:
            self.network.cut -= links
            self._later(draw.uniform(0.2, 2.0), self.network.release)

        self._later(HOLDS_S, lose_power)
        self._when(lambda: self._is_fenced(host), mend)
        return f"{vm.id} crashes, {host.id} reboots, and {vm.id} is started late"

    def _start_after_power_off(self, span_s: float) -> str:
        """Have that command reach its host after that was off, as a person said, and is just on again."""
        host, draw = self._with_unprotected(), self.kernel.random
        vm = self._guest_of(host, is_protected=False) if host is not None else None
        if host is None or vm is None:
            return self._power_off(span_s)
        self._hold_start_of(vm, host)

        def boot() -> None:
            host.is_unplugged = False
            host.boot()
            self._later(draw.uniform(0.0, 0.3), self.network.release)

        self._later(HOLDS_S, lambda: self._pull_cords(host, 0.0))
        self._when(lambda: self._is_elsewhere(vm, host), boot)
        return f"{vm.id} crashes, {host.id} is off, and {vm.id} is started late"

    def _start_half_way(self, span_s: float) -> str:
        """Have that command reach its host after that ended its VMs to go, did not go, and has another daemon.

        It is heard once more then, only by a process that does not decide.
        """
        host, draw = self._with_unprotected(), self.kernel.random
        vm = self._guest_of(host, is_protected=False) if host is not None else None
        if host is None or vm is None or len(self.planes) < 2 or not self.site.etcd.leader:
            return self._power_off(span_s)
        self._hold_start_of(vm, host)
        kept, leader, late_s = self._follower(), self.planes[self.site.etcd.leader], draw.uniform(4.5, 7.0)

        def go() -> None:
            host.daemon.spawn(go_down(host, _KINDS.POWER_OFF, STORY_S))
            self._when(lambda: not host.daemon.is_up, part)

        def part() -> None:
            self._cut_both([(host.id, name) for name in self.planes if name != kept], STORY_S)
            self._when(is_late, begin)

        def is_late() -> bool:
            heard = leader.hearing.of(host.id)
            silent_s = leader.process.clock.now() - heard.at_s if heard is not None else 0.0
            return not host.daemon.is_up and silent_s > late_s

        def begin() -> None:
            host.begin_daemon()
            self._when(lambda: host.fencing.is_informed, start)

        def start() -> None:
            self._cut_links({(host.id, kept)}, STORY_S)
            self._later(draw.uniform(0.0, 1.5), self.network.release)

        self._later(HOLDS_S, go)
        return f"{vm.id} crashes, {host.id} does not quite go, and {vm.id} is started late"

    # people

    def _mistake(self, span_s: float) -> str:
        """Have a person say of a host that is well that it is off, to a process that does not hear it."""
        host = self._doomed()
        if host is None or len(self.planes) < 2:
            return self._power_off(span_s)
        self.is_alone = True
        plane = self._plane()
        self._later(self.kernel.random.uniform(9.0, 15.0), lambda: self.people.confirm_dead(host, plane))
        return f"a person takes {host.id} for off, {self._cut_both([(host.id, plane.process.name)], 40.0)}"

    def _arm_unheard(self, span_s: float) -> str:
        """Cut a host off while high availability is disarmed, and arm it again."""
        host = self._doomed()
        if host is None:
            return self._power_off(span_s)
        self.people.disarm()
        self._later(6.0, lambda: self._cut_links(self._links(host), 44.0))
        self._later(self.kernel.random.uniform(6.1, 12.0), self.people.arm)
        return f"a person disarms, {host.id} is cut off, and a person arms"

    # hosts that go

    def _go_unheard(self, span_s: float) -> str:
        """Cut a host off that says it goes; or one that went and came back."""
        host, draw = self._busy_host(), self.kernel.random
        if not host.daemon.is_up:
            return self._power_off(span_s)
        host.daemon.spawn(go_down(host, _KINDS.POWER_OFF, draw.uniform(0.5, 20.0)))
        if draw.random() < 0.5:
            self._later(draw.uniform(0.1, 3.0), lambda: self._cut_links(self._links(host), 40.0))
            return f"{host.id} says that it goes, and is cut off"

        def is_used_again() -> bool:
            return host.boot_count > boot_count and bool(host.running)

        boot_count = host.boot_count
        self._when(lambda: not host.is_on, lambda: self._later(1.0, host.boot))
        self._when(is_used_again, lambda: self._cut_links(self._links(host), 30.0))
        return f"{host.id} goes, comes back, and is cut off"

    def _start_as_it_goes(self, span_s: float) -> str:
        """Have a person start a VM that no lease ends on a host that goes, as it says so."""
        host, draw = self._with_unprotected(), self.kernel.random
        vm = self._guest_of(host, is_protected=False) if host is not None else None
        if host is None or vm is None or not host.daemon.is_up:
            return self._power_off(span_s)
        for name in self.planes:
            self._lag(host.id, name, draw.uniform(2.0, 4.5), 15.0)
        host.daemon.spawn(go_down(host, _KINDS.POWER_OFF, draw.uniform(14.0, 30.0)))
        self._when(lambda: host.is_closed, lambda: self.people.start(vm.id))
        return f"{host.id} goes, and a person starts {vm.id}"

    def _say_late(self, span_s: float) -> str:
        """Have a host that ended its VMs go on, its word that it did come again as it runs one, and cut it off."""
        host, draw = self._with_unprotected(), self.kernel.random
        if host is None or not host.daemon.is_up:
            return self._power_off(span_s)

        def go_on() -> None:
            word = host.last_word
            host.begin_daemon()
            self._when(lambda: bool(host.running), lambda: part(word))

        def part(word: AnnounceShutdownRequest | None) -> None:
            self._cut_links(self._links(host), STORY_S)
            if word is not None and word.all_vms_ended:
                host.hear_out(self._plane().process.name, word, lambda answer: None)

        host.daemon.spawn(go_down(host, _KINDS.POWER_OFF, STORY_S))
        self._when(lambda: not host.daemon.is_up, lambda: self._later(draw.uniform(0.2, 2.0), go_on))
        return f"{host.id} does not quite go, is said to have ended its VMs once more, and is cut off"

    def _die_twice(self, span_s: float) -> str:
        """Have a VM that no lease ends be started elsewhere, and that host cut off before it can say so."""
        host = self._with_unprotected()
        vm = self._guest_of(host, is_protected=False) if host is not None else None
        if host is None or vm is None:
            return self._power_off(span_s)

        def cut_off() -> None:
            host.is_unplugged = False
            host.boot()
            target_id = self.site.database.rows.vms[vm.id].node_id
            self._cut_links({(target_id, name) for name in self.planes}, STORY_S)

        self._when(lambda: self._is_elsewhere(vm, host), cut_off)
        return f"{vm.id} will be unprotected elsewhere, {self._pull_cords(host, 0.0)}"

    # migrations

    def _die_migrating(self, span_s: float) -> str:
        """Have a host of a migration die as the guest arrives, for good or not, and the target be slow to say so."""
        source, draw = self._doomed(), self.kernel.random
        vm = self._guest_of(source) if source is not None else None
        rows = self.site.database.rows
        targets = [host for host in self.site.hosts.values() if vm is not None and rows.free(host.id) >= vm.memory]
        targets = [host for host in targets if host is not source and host.can_self_fence]
        if source is None or vm is None or not targets:
            return self._power_off(span_s)
        target = draw.choice(targets)
        target.is_patient = True
        doomed, is_parted = draw.choice((source, source, target)), draw.random() < 0.3
        late_s, off_s = draw.choice((0.0, 3.2)), draw.choice((draw.uniform(1.0, 5.0), 45.0, 45.0))

        def die() -> None:
            doomed.lose_power()
            for name in self.planes:
                self._lag(name, target.id, late_s, 40.0)
            self._later(off_s, doomed.boot)
            if is_parted:
                self._cut_both([(source.id, target.id)], 40.0)

        doomed_at = draw.choice((lambda: vm.id in target.running, lambda: vm.id in target.arriving))
        self._when(doomed_at, lambda: self._later(draw.choice((0.0, 0.0, draw.uniform(0.0, 3.0))), die))
        self._later(0.1, lambda: self.people.migrate(vm.id, target))
        return f"{vm.id} is migrated from {source.id} to {target.id}, and one of them dies"
