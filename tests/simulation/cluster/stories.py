"""Faults that meet: each the shortest way to where one rule alone stands between a VM and its double."""

from __future__ import annotations

from controlplane.ha.model import OpenAFence
from tests.simulation.cluster.faults import STORY_S
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site
from tests.simulation.cluster.tales import Tales


class Stories(Tales):
    """Faults, and stories made of several."""

    def __init__(self, site: Site, planes: dict[str, Plane]) -> None:
        super().__init__(site, planes)
        self.stories = [
            self._start_late,
            self._start_last,
            self._answer_late,
            self._answer_last,
            self._write_late,
            self._die_unpublished,
            self._split,
            self._split,
            self._cut_and_stop,
            self._power_off,
            self._start_under_fence,
            self._stop_overtakes,
            self._start_after_reboot,
            self._start_after_power_off,
            self._start_half_way,
            self._start_half_way,
            self._mistake,
            self._arm_unheard,
            self._go_unheard,
            self._start_as_it_goes,
            self._say_late,
            self._die_twice,
            self._die_twice,
            self._die_migrating,
            self._die_migrating,
        ]

    def _start_late(self, span_s: float) -> str:
        """Crash a guest, have its start hang or the command to start it be under way for long, and cut its host off.

        It may come back at first to be heard by all, but to hear only one that has lost the database.
        """
        host, draw = self._busy_host(), self.kernel.random
        self._crash_guest_of(host)
        late_s, cut_s = draw.uniform(28.0, 44.0), draw.uniform(22.0, 28.0)
        if draw.random() < 0.5:
            host.next_start_s = late_s
        else:
            for name in self.planes:
                self._lag(name, host.id, late_s, 4.0)
        kept = self._follower()
        deaf = {(name, host.id) for name in self.planes if name != kept}
        all_links = [(host.id, name) for name in self.planes]
        self._later(4.0, lambda: self._cut_both(all_links, cut_s))
        if draw.random() < 0.5:
            self._later(cut_s, lambda: self._cut_both([(kept, "db")], 20.0))
            self._later(4.0 + cut_s - 0.1, lambda: self._cut_links(deaf, 16.0))
        return f"a guest of {host.id} crashes, is started {late_s:.1f} s later, and {host.id} cut off"

    def _start_last(self, span_s: float) -> str:
        """Have the start of a VM hang until its host was fenced and given back, and is without word of that fence.

        It is heard by all then, but hears only a process that has lost the database, and has a lease of that.
        """
        host, draw, leader = self._doomed(), self.kernel.random, self.site.etcd.leader
        if host is None or len(self.planes) < 2 or not leader:
            return self._start_late(span_s)
        kept = self._follower()
        self._crash_guest_of(host)
        host.holds_starts = draw.random() < 0.5
        if not host.holds_starts:
            for name in self.planes:
                self.network.hold(name, host.id)
        links = self._links(host)
        deaf = {(name, host.id) for name in self.planes if name != kept}

        def give_back() -> None:
            self._cut_both([(kept, "db")], STORY_S)
            self._cut_links(deaf, STORY_S)
            self.network.cut -= links - deaf
            self._when(lambda: not self._is_fenced(host), lambda: self._later(draw.uniform(1.0, 6.0), go_on))
            self._later(12.0, go_on)

        def go_on() -> None:
            self.network.release()
            host.let_starts_go_on()

        self._later(4.0, lambda: self._cut_links(links, STORY_S))
        self._when(lambda: self._is_moved_from(host), give_back)
        return f"a guest of {host.id} crashes, is started once it is given back, and {host.id} cut off"

    def _cut_and_stop(self, span_s: float) -> str:
        """Cut a host off while its daemon is stopped or dead, so that its guard is alone."""
        host, draw = self._busy_host(), self.kernel.random
        if draw.random() < 0.6:
            self._later(draw.uniform(0.0, 6.0), lambda: host.daemon.pause(40.0))
        else:
            self._later(draw.uniform(0.0, 4.0), host.daemon.die)
            self._later(draw.uniform(4.0, 7.0), host.begin_daemon)
        return self._cut_both([(host.id, name) for name in self.planes], draw.uniform(25.0, 40.0))

    def _answer_late(self, span_s: float) -> str:
        """Leave a host only a control plane that has lost the database, and whose answers come late."""
        host, draw = self._busy_host(), self.kernel.random
        kept, late_s = self._follower(), draw.uniform(4.0, 7.5)
        self._lag(kept, host.id, late_s, 40.0)
        pairs = [(host.id, name) for name in self.planes if name != kept] + [(kept, "db")]
        return f"answers to {host.id} are {late_s:.1f} s late, " + self._cut_both(pairs, 40.0)

    def _answer_last(self, span_s: float) -> str:
        """Leave a host one control plane, without the database; as it is fenced, etcd is lost and answers get late.

        So the last lease that may be granted is granted as late, and arrives as late, as can be.
        """
        host, draw = self._doomed(), self.kernel.random
        if host is None or len(self.planes) < 2:
            return self._answer_late(span_s)
        kept, late_s = self._follower(), draw.uniform(6.0, 7.8)
        host.is_patient = True

        def part() -> None:
            self._cut_both([(kept, "etcd")], STORY_S)
            self._lag(kept, host.id, late_s, STORY_S)

        self._when(lambda: self._is_fenced(host), part)
        pairs = [(host.id, name) for name in self.planes if name != kept] + [(kept, "db")]
        return f"answers to {host.id} will be {late_s:.1f} s late, " + self._cut_both(pairs, STORY_S)

    def _write_late(self, span_s: float) -> str:
        """Have a leader that alone does not hear a host be deposed while its word that it fences it is under way."""
        host, draw, leader = self._busy_host(), self.kernel.random, self.site.etcd.leader
        if not leader or len(self.planes) < 2:
            return self._split(span_s)
        cut = self._cut_both([(host.id, leader)], 30.0)

        def is_late() -> bool:
            heard = old.hearing.of(host.id)
            return heard is not None and old.process.clock.now() - heard.at_s > 6.0

        def is_opening() -> bool:
            moment = old.manager.moment
            return moment is not None and any(isinstance(effect, OpenAFence) for effect in moment.effects)

        def depose() -> None:
            new = self.planes[self._follower()]
            self.site.etcd.leader = ""
            self.site.etcd.campaign(new.process.name)
            old.coordinator.believes_until_s = self.kernel.now_s + 8.0
            new.process.spawn(new.coordinator.campaign(), lambda result, error: None)

        old, late_s = self.planes[leader], draw.uniform(1.0, 1.6)
        self._when(is_late, lambda: self._lag(leader, "db", late_s, 8.0))
        self._when(is_opening, depose)
        return f"{leader} writes late as it fences, and is deposed, {cut}"

    def _die_unpublished(self, span_s: float) -> str:
        """Cut a leader from etcd as it is about to fence a host that another one, without the database, still hears.

        Its session lasts longer than it knows, as it does when etcd itself elects; a third one decides then.
        """
        host, draw, etcd, leader = self._busy_host(), self.kernel.random, self.site.etcd, self.site.etcd.leader
        others = [name for name in self.planes if name != leader]
        if not leader or len(others) < 2:
            return self._split(span_s)
        kept, third = draw.sample(others, 2)
        pairs = [(host.id, name) for name in self.planes if name != kept] + [(kept, "db")]
        cut = self._cut_both(pairs, 40.0)

        def lose() -> None:
            self._cut_both([(leader, "etcd")], 30.0)
            etcd.until_s = self.kernel.now_s + session_s

        lost_s, session_s = draw.uniform(2.5, 5.0), draw.uniform(7.0, 14.0)
        self._later(lost_s, lose)
        self._later(lost_s + session_s, lambda: etcd.campaign(third))
        return f"{leader} is cut from etcd soon, {cut}"
