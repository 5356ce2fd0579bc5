"""People: they use the product's services through any process, and ask again where that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from limiquantix.compute.v1.ha_service_pb2 import Fence, HaSettings
from limiquantix.errors import ApiError
from tests.simulation.cluster.host import Host
from tests.simulation.cluster.plane import Plane
from tests.simulation.cluster.plane_parts import Site

if TYPE_CHECKING:
    from controlplane.services.ha import HaService

AnswerT = TypeVar("AnswerT")

ATTEMPT_COUNT = 3
PAUSE_S = 2.5
STATEMENT = "both power cords are pulled"


class People:
    """They act in the processes that they call: what they do dies with those."""

    def __init__(self, site: Site, planes: dict[str, Plane]) -> None:
        self._site = site
        self._planes = planes

    def _any(self) -> Plane | None:
        up = [plane for plane in self._planes.values() if plane.process.is_up]
        return self._site.kernel.random.choice(up) if up else None

    def _do(
        self,
        act: Callable[[Plane], Awaitable[AnswerT]],
        note: Callable[[AnswerT], None],
        plane: Plane | None = None,
        attempt_count: int = ATTEMPT_COUNT,
    ) -> None:
        """Have somebody do something through a process, which may refuse it."""
        through = plane or self._any()
        if through is None:
            return

        async def work() -> None:
            for _ in range(attempt_count):
                try:
                    answer = await act(through)
                except ApiError as error:
                    self._site.kernel.note(f"{through.process.name} refuses a person: {error.message[:90]}")
                    await through.process.sleep(PAUSE_S)
                else:
                    note(answer)
                    return

        through.process.keep(work())

    # hosts

    def confirm_dead(self, host: Host, plane: Plane | None = None) -> None:
        """Say that a host is off."""
        self._do(lambda through: _ha(through).confirm_dead(host.id, host.id, STATEMENT, "ann"), self._note, plane)

    def fence(self, host: Host) -> None:
        """Have a host fenced, whether it is well or not."""
        self._do(lambda through: _ha(through).fence_node(host.id, "its disks lose writes", "ann"), self._note)

    def _note(self, fence: Fence) -> None:
        self._site.ledger.fenced(fence.id, fence.state)

    # settings

    def disarm(self) -> None:
        """Have nothing done."""
        self._do(lambda through: _ha(through).disarm("new switches", "bob"), self._note_settings)

    def arm(self) -> None:
        """Have everything done again."""
        self._do(lambda through: _ha(through).arm("bob"), self._note_settings)

    def _note_settings(self, settings: HaSettings) -> None:
        self._site.kernel.note(f"a person is told: is_armed {settings.is_armed}, version {settings.version}")
        self._site.ledger.set(settings.version)

    # VMs

    def start(self, vm_id: str) -> None:
        """Have a VM run."""
        self._do(lambda through: through.work.wish(vm_id, shall_run=True), lambda accepted: None)

    def stop(self, vm_id: str) -> None:
        """Have a VM off."""
        self._do(lambda through: through.work.wish(vm_id, shall_run=False), lambda accepted: None)

    def delete(self, vm_id: str) -> None:
        """Have a VM gone."""
        self._do(lambda through: through.work.wish(vm_id, shall_run=False, shall_go=True), lambda accepted: None)

    def migrate(self, vm_id: str, target: Host) -> None:
        """Have a VM moved while it runs."""
        self._do(lambda through: through.moves.begin(vm_id, target.id), lambda begun: None, attempt_count=1)


def _ha(plane: Plane) -> HaService:
    return plane.ha
