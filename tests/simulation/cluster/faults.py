"""Faults, drawn from the seed: what is broken, when, and for how long."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.cluster.host import Host
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site

FIRST_S = 6.0
"""When the first fault may come: VMs are about to run then."""
STORY_S = 52.0
"""How long faults that meet take to play out, which many more at the same time would keep from coming about."""


class Faults:
    """Breaks things until `stop`, which mends all."""

    def __init__(self, site: Site, planes: dict[str, Plane]) -> None:
        self.site = site
        self.planes = planes
        self.kernel = site.kernel
        self.network = site.database.network
        self.count = 0
        self.is_over = False
        self.is_alone = False
        """Whether a story of which the end is known by itself is told, so that nothing else may happen."""
        self._touched_s = dict.fromkeys(planes, 0.0)
        self.kinds: list[tuple[int, Callable[[float], str]]] = [
            (6, self._power_off),
            (9, self._cut_host_off),
            (5, self._cut_host_from_plane),
            (3, self._kill_daemon),
            (4, self._stop_daemon),
            (2, self._stop_guard),
            (1, self._kill_guard),
            (2, self._freeze_host),
            (3, self._kill_plane),
            (3, self._kill_plane_soon),
            (4, self._stop_plane),
            (4, self._cut_plane_from_store),
            (2, self._deafen_plane),
            (2, self._take_database_away),
            (2, self._slow_database),
            (2, self._take_etcd_away),
            (2, self._depose),
            (2, self._believe),
            (2, self._shake_network),
            (1, self._change_rates),
            (1, self._crash_guest),
            (4, self._split),
        ]
        self.stories: list[Callable[[float], str]] = [self._power_off, self._split, self._split]

    def schedule(self) -> float:
        """Draw the faults of this history; returns when they end."""
        draw = self.kernel.random
        if draw.random() < 0.3:
            end_s = draw.uniform(20.0, 45.0)
            for _ in range(draw.randint(2, 9)):
                self.kernel.at(draw.uniform(FIRST_S, end_s - 3.0), self._break)
            return end_s
        self.kernel.at(draw.uniform(FIRST_S, FIRST_S + 3.0), lambda: self._begin(draw.choice(self.stories)))
        for _ in range(draw.choice((0, 0, 1, 2))):
            self.kernel.at(draw.uniform(FIRST_S + 3.0, FIRST_S + STORY_S - 5.0), self._break)
        return FIRST_S + STORY_S

    def stop(self) -> None:
        """Mend everything."""
        self.is_over = True
        network, database, etcd = self.network, self.site.database, self.site.etcd
        network.cut.clear()
        network.lag_s.clear()
        network.release()
        network.loss = network.slow_s = network.straggle = 0.0
        network.is_calm = True
        database.is_away = etcd.is_away = False
        database.slow_s = 0.0
        for host in self.site.hosts.values():
            host.boot()
            host.begin_daemon()
            host.daemon.dies_in_steps = -1
            host.let_starts_go_on()
        for plane in self.planes.values():
            plane.begin()
            plane.process.dies_in_steps = -1
        self._touch()
        self.kernel.note("faults stop")

    def is_well_since(self, plane: str, since_s: float) -> bool:
        """Whether nothing was wrong with a control plane and its ways to database and etcd since then."""
        process, network, database = self.planes[plane].process, self.network, self.site.database
        is_well = process.is_up and not process.is_paused() and not database.is_away and not database.slow_s
        is_linked = not (network.loss or network.slow_s or network.straggle or network.lag_s or network.held)
        is_cut = any({plane, "db"} == set(link) for link in network.cut)
        return is_well and is_linked and not is_cut and self._touched_s[plane] < since_s

    def _break(self) -> None:
        if self.is_over or self.is_alone:
            return
        self._begin(self.kernel.random.choices(self.kinds, [weight for weight, _ in self.kinds])[0][1])

    def _begin(self, kind: Callable[[float], str]) -> None:
        draw = self.kernel.random
        span_s = draw.choice((draw.uniform(0.5, 5.0), draw.uniform(5.0, 20.0), draw.uniform(20.0, 40.0)))
        self.count += 1
        self.kernel.note(f"fault: {kind(span_s)} for {span_s:.1f} s")

    def _touch(self, *names: str) -> None:
        for name in names or tuple(self.planes):
            self._touched_s[name] = self.kernel.now_s

    def _host(self) -> Host:
        return self.kernel.random.choice(list(self.site.hosts.values()))

    def _busy_host(self) -> Host:
        """Draw a host that has something to lose, if there is one."""
        busy = [host for host in self.site.hosts.values() if host.running & host.disk.protected]
        return self.kernel.random.choice(busy or list(self.site.hosts.values()))

    def _follower(self) -> str:
        """Draw a control plane that does not decide, if there is one."""
        names = list(self.planes)
        return self.kernel.random.choice([name for name in names if name != self.site.etcd.leader] or names)

    def _plane(self) -> Plane:
        """Draw a control plane, preferably the one that decides."""
        leader = self.planes.get(self.site.etcd.leader)
        if leader is not None and self.kernel.random.random() < 0.6:
            return leader
        return self.kernel.random.choice(list(self.planes.values()))

    def _cut(self, pairs: list[tuple[str, str]], span_s: float) -> str:
        """Cut links, in both directions or in one."""
        way = self.kernel.random.choice(("both", "both", "to", "from"))
        links = set(pairs) if way in ("both", "to") else set()
        links |= {(other, one) for one, other in pairs} if way in ("both", "from") else set()
        self._cut_links(links, span_s)
        return f"cut ({way}) {pairs}"

    def _cut_both(self, pairs: list[tuple[str, str]], span_s: float) -> str:
        self._cut_links(set(pairs) | {(other, one) for one, other in pairs}, span_s)
        return f"cut {pairs}"

    def _cut_links(self, links: set[tuple[str, str]], span_s: float) -> None:
        self.network.cut |= links
        self._touch()

        def mend() -> None:
            self.network.cut -= links
            self._touch()

        self.kernel.after(span_s, mend)

    # hosts

    def _power_off(self, span_s: float) -> str:
        host = self._host()
        host.lose_power()
        self.kernel.after(span_s, host.boot)
        return f"power of {host.id} off"

    def _cut_host_off(self, span_s: float) -> str:
        host = self._host()
        return self._cut([(host.id, name) for name in self.planes], span_s)

    def _cut_host_from_plane(self, span_s: float) -> str:
        host, plane = self._host(), self._plane()
        return self._cut([(host.id, plane.process.name)], span_s)

    def _kill_daemon(self, span_s: float) -> str:
        host = self._host()
        if host.daemon.is_up and self.kernel.random.random() < 0.5:
            host.daemon.dies_in_steps = self.kernel.random.randint(0, 20)
        else:
            host.daemon.die()
        self.kernel.after(span_s, host.begin_daemon)
        return f"daemon of {host.id} dies"

    def _stop_daemon(self, span_s: float) -> str:
        host = self._host()
        host.daemon.pause(span_s)
        return f"daemon of {host.id} stopped"

    def _rests(self, host: Host) -> bool:
        """Whether the guard was interrupted a moment ago: more than one pause at an end of a lease is not promised."""
        if self.kernel.now_s < host.guard_rests_until_s:
            return True
        host.guard_rests_until_s = self.kernel.now_s + 6.0
        return False

    def _stop_guard(self, span_s: float) -> str:
        host = self._host()
        if not self._rests(host):
            host.guard.pause(self.kernel.random.uniform(0.0, host.clock.true_span(self.site.times.pause_s) - 0.05))
        return f"guard of {host.id} stopped (briefly)"

    def _kill_guard(self, span_s: float) -> str:
        host = self._host()
        if host.is_on and not self._rests(host):
            host.guard.die()

            def begin() -> None:
                if host.is_on and not host.guard.is_up:
                    host.guard.begin()
                    host.wind_guard()

            self.kernel.after(self.kernel.random.uniform(0.1, 0.8), begin)
        return f"guard of {host.id} dies (briefly)"

    def _freeze_host(self, span_s: float) -> str:
        host = self._host()
        if host.is_on and self.kernel.now_s >= host.frozen_until_s and not self._rests(host):
            host.freeze(span_s)
            host.guard_rests_until_s = self.kernel.now_s + span_s + 6.0
        return f"{host.id} frozen"

    def _crash_guest(self, span_s: float) -> str:
        host = self._host()
        self._crash_guest_of(host)
        return f"a guest of {host.id} crashes"

    def _crash_guest_of(self, host: Host) -> None:
        if host.running:
            guarded = sorted(host.running & host.disk.protected)
            host.running.discard(self.kernel.random.choice(guarded or sorted(host.running)))

    def _change_rates(self, span_s: float) -> str:
        for host in self.site.hosts.values():
            host.clock.change_rate()
            host.wind_guard()
        for plane in self.planes.values():
            plane.process.clock.change_rate()
        return "clocks run at other rates"

    # control planes

    def _kill_plane(self, span_s: float) -> str:
        plane = self._plane()
        plane.process.die()
        self._touch(plane.process.name)
        self.kernel.after(span_s, plane.begin)
        self.kernel.after(span_s, lambda: self._touch(plane.process.name))
        return f"{plane.process.name} dies"

    def _kill_plane_soon(self, span_s: float) -> str:
        plane = self._plane()
        plane.process.dies_in_steps = self.kernel.random.randint(0, 40)
        self._touch(plane.process.name)
        self.kernel.after(span_s + 5.0, plane.begin)
        self.kernel.after(span_s + 5.0, lambda: self._touch(plane.process.name))
        return f"{plane.process.name} dies within some steps"

    def _stop_plane(self, span_s: float) -> str:
        plane = self._plane()
        plane.process.pause(span_s)
        self._touch(plane.process.name)
        self.kernel.after(span_s, lambda: self._touch(plane.process.name))
        return f"{plane.process.name} stopped"

    def _cut_plane_from_store(self, span_s: float) -> str:
        plane = self._plane()
        stores = self.kernel.random.choice((["db"], ["etcd"], ["db", "etcd"]))
        return self._cut([(plane.process.name, store) for store in stores], span_s)

    def _deafen_plane(self, span_s: float) -> str:
        plane, hosts = self._plane(), list(self.site.hosts)
        deaf = self.kernel.random.sample(hosts, self.kernel.random.randint((len(hosts) + 1) // 2, len(hosts)))
        return self._cut([(host_id, plane.process.name) for host_id in deaf], span_s)

    def _split(self, span_s: float) -> str:
        """Cut a host from all control planes but one, which has lost the database, or etcd too, or is fine."""
        host, names = self._host(), list(self.planes)
        kept = self.kernel.random.choice(names)
        lost = self.kernel.random.choice(([], ["db"], ["db"], ["db", "etcd"]))
        pairs = [(host.id, name) for name in names if name != kept] + [(kept, store) for store in lost]
        return self._cut_both(pairs, max(span_s, 25.0))

    def _lag(self, source: str, target: str, lag_s: float, span_s: float) -> None:
        self.network.lag_s[source, target] = lag_s
        self._touch()

        def mend() -> None:
            self.network.lag_s.pop((source, target), None)
            self._touch()

        self.kernel.after(span_s, mend)

    def _later(self, delay_s: float, fault: Callable[[], object]) -> None:
        def happen() -> None:
            if not self.is_over:
                fault()

        self.kernel.after(delay_s, happen)

    # stores

    def _take_database_away(self, span_s: float) -> str:
        database = self.site.database
        database.is_away = True
        self._touch()

        def back() -> None:
            database.is_away = False
            self._touch()

        self.kernel.after(min(span_s, 15.0), back)
        return "database away (15 at most)"

    def _slow_database(self, span_s: float) -> str:
        database = self.site.database
        database.slow_s = self.kernel.random.choice((0.5, 2.0, 6.0))
        self._touch()

        def back() -> None:
            database.slow_s = 0.0
            self._touch()

        self.kernel.after(span_s, back)
        return f"database slow ({database.slow_s} s)"

    def _take_etcd_away(self, span_s: float) -> str:
        etcd = self.site.etcd
        etcd.is_away = True

        def back() -> None:
            etcd.is_away = False

        self.kernel.after(span_s, back)
        return "etcd away"

    def _depose(self, span_s: float) -> str:
        etcd, leader = self.site.etcd, self.site.etcd.leader
        etcd.leader = ""
        return f"session of {leader} lost"

    def _believe(self, span_s: float) -> str:
        plane = self.kernel.random.choice(list(self.planes.values()))
        if plane.process.is_up:
            plane.coordinator.believes_until_s = self.kernel.now_s + span_s
        return f"{plane.process.name} believes that it is elected"

    # network

    def _shake_network(self, span_s: float) -> str:
        network, draw = self.network, self.kernel.random
        network.loss = draw.choice((0.0, 0.05, 0.3))
        network.slow_s = draw.choice((0.0, 0.3, 2.0))
        network.straggle = draw.choice((0.0, 0.02, 0.2))
        self._touch()

        def calm() -> None:
            network.loss = network.slow_s = network.straggle = 0.0
            self._touch()

        self.kernel.after(span_s, calm)
        return f"network loses {network.loss}, slow {network.slow_s} s, straggles {network.straggle}"
