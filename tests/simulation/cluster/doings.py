"""What people do while things break: start, stop, delete and move VMs, fence hosts, disarm, and shut hosts down."""

from __future__ import annotations

from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from tests.simulation.cluster.database import VmRow
from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.going import go_down
from tests.simulation.cluster.host import Host
from tests.simulation.cluster.people import People
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site

LEFT_S = 40.0
"""How long people leave a host that somebody had fenced to what else may prove it dead."""


class Doings(Faults):
    """Faults, and what people do."""

    def __init__(self, site: Site, planes: dict[str, Plane]) -> None:
        super().__init__(site, planes)
        self.people = People(site, planes)
        self.kinds += [
            (2, self._confirm_dead),
            (2, self._fence_by_person),
            (2, self._disarm),
            (4, self._go_down),
            (3, self._stop_vm),
            (2, self._stop_and_start_vm),
            (1, self._delete_vm),
            (5, self._migrate_vm),
        ]

    def stop(self) -> None:
        """Mend everything."""
        for host in self.site.hosts.values():
            host.is_unplugged = False
        super().stop()

    def look_after(self) -> None:
        """Do what people have to, once faults stopped: arm, and switch hosts on; or off, where nothing else ends it.

        That is a host that somebody had fenced of which neither a lease nor a power controller proves anything.
        """
        rows = self.site.database.rows
        if not rows.settings.is_armed:
            self.people.arm()
        for host in self.site.hosts.values():
            fence = rows.fence_of(host.id)
            is_asked_for = fence is not None and fence.is_by_operator
            opened_s = fence.opened_at.timestamp() if fence is not None else 0.0
            if host.is_unplugged or self.kernel.random.random() > 0.2:
                continue
            if is_asked_for and not rows.is_proven_dead(host.id) and self.kernel.now_s - opened_s > LEFT_S:
                self._pull_cords(host, 0.0)
            elif not host.is_on:
                host.boot()

    def _vm(self) -> VmRow | None:
        return self.kernel.random.choice([*self.site.database.rows.vms.values()] or [None])

    def _confirm_dead(self, span_s: float) -> str:
        """Have somebody pull a host's cords, see to it that they stay out, and say so."""
        return self._pull_cords(self._host(), span_s)

    def _pull_cords(self, host: Host, span_s: float) -> str:
        host.lose_power()
        host.is_unplugged = True

        def plug_in() -> None:
            host.is_unplugged = False
            host.boot()

        self.kernel.after(self.kernel.random.uniform(7.0, 12.0), lambda: self.people.confirm_dead(host))
        self.kernel.after(max(span_s, 30.0), plug_in)
        return f"a person pulls the cords of {host.id}"

    def _fence_by_person(self, span_s: float) -> str:
        host = self._host()
        self.people.fence(host)
        return f"a person has {host.id} fenced"

    def _disarm(self, span_s: float) -> str:
        self.people.disarm()
        self.kernel.after(span_s, lambda: self.people.arm() if not self.is_over else None)
        return "a person disarms"

    def _go_down(self, span_s: float) -> str:
        """Shut a host down, or reboot it, on purpose."""
        host, draw, kinds = self._host(), self.kernel.random, AnnounceShutdownRequest.Kind
        kind = draw.choice((kinds.REBOOT, kinds.POWER_OFF))
        if host.daemon.is_up:
            take_s = draw.choice((draw.uniform(0.1, 2.0), draw.uniform(2.0, 25.0)))
            host.daemon.spawn(go_down(host, kind, take_s))
            self.kernel.after(take_s + max(span_s, 8.0), host.boot)
        return f"{host.id} goes on purpose ({kinds.Name(kind)})"

    def _stop_vm(self, span_s: float) -> str:
        vm = self._vm()
        if vm is not None:
            self.people.stop(vm.id)
        return f"a person stops {vm.id if vm is not None else 'nothing'}"

    def _stop_and_start_vm(self, span_s: float) -> str:
        vm = self._vm()
        if vm is not None:
            self.people.stop(vm.id)
            self._later(self.kernel.random.uniform(0.1, 20.0), lambda: self.people.start(vm.id))
        return f"a person stops {vm.id if vm is not None else 'nothing'}, and starts it later"

    def _delete_vm(self, span_s: float) -> str:
        vm = self._vm()
        if vm is not None:
            self.people.delete(vm.id)
        return f"a person deletes {vm.id if vm is not None else 'nothing'}"

    def _migrate_vm(self, span_s: float) -> str:
        vm, target = self._vm(), self._host()
        if vm is not None:
            self.people.migrate(vm.id, target)
        return f"a person migrates {vm.id if vm is not None else 'nothing'} to {target.id}"
