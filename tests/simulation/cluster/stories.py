"""Faults that meet: each the shortest way to where one rule alone stands between a VM and its double."""

from __future__ import annotations

from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site


class Stories(Faults):
    """Faults, and stories made of several."""

    def __init__(self, site: Site, planes: dict[str, Plane]) -> None:
        super().__init__(site, planes)
        self.stories = [
            self._start_late,
            self._start_late,
            self._answer_late,
            self._write_late,
            self._die_unpublished,
            self._split,
            self._split,
            self._cut_and_stop,
            self._power_off,
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

    def _write_late(self, span_s: float) -> str:
        """Have what a leader writes arrive late, when another may have been elected; a host is cut off meanwhile."""
        host, draw, leader = self._busy_host(), self.kernel.random, self.site.etcd.leader
        if not leader:
            return "nothing"
        cut = self._cut_both([(host.id, name) for name in self.planes], draw.uniform(20.0, 35.0))

        late_s = draw.uniform(1.5, 2.8)
        self._later(2.5, lambda: self._lag(leader, "db", late_s, 14.0))
        self._later(draw.uniform(3.0, 10.0), lambda: self._depose(span_s))
        return f"{leader} writes late and is deposed, {cut}"

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
