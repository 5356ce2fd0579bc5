"""Live migrations as a control plane carries them out, simplified; where the VM is, is told by the product's rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from controlplane.domain.fencing import proves_dead
from controlplane.domain.migration_truth import Progress, Sight, Views, Whereabouts, whereabouts
from limiquantix.errors import ApiError
from tests.simulation.cluster.commands import Command, View
from tests.simulation.cluster.database import MoveRow, Rows, Transaction

if TYPE_CHECKING:
    from tests.simulation.cluster.plane import Plane

CALL_LIMIT_S = 3.0
FOLLOWED_COUNT = 20
"""How often a process asks both hosts before it leaves a migration to whoever hears one of them next."""
PAUSE_S = 1.0
CONFIRMED_COUNT = 5
"""How often both hosts are asked until the word of the one that runs the guest is enough."""


class Moves:
    """One a process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._site = plane.site

    async def begin(self, vm_id: str, target_id: str) -> bool:
        """Claim the target, and carry the VM over; returns whether it was begun."""
        now_s = self._site.kernel.now_s

        async def claim(tx: Transaction) -> MoveRow | None:
            rows, vm = tx.rows, tx.rows.vms.get(vm_id)
            if vm is None or not vm.shall_run or vm.shall_go or vm_id in rows.starts or vm_id in rows.moves:
                return None
            if vm.node_id == target_id or rows.free(target_id) < vm.memory:
                return None
            if rows.is_proven_dead(vm.node_id) or rows.fence_of(target_id) is not None:
                return None
            rows.vms[vm_id] = replace(vm, generation=vm.generation + 1)
            move = rows.moves[vm_id] = MoveRow(vm_id, vm.node_id, target_id, vm.generation + 1, now_s)
            return move

        move = await self._plane.store.run(claim)
        if move is None:
            return False
        is_protected = await self._tell(move, "prepare", move.target_id)
        if is_protected is not None:
            await self._tell(move, "send", move.source_id)
        for count in range(FOLLOWED_COUNT):
            if await self._settle(move, count, is_protected=bool(is_protected)):
                break
            await self._plane.process.sleep(PAUSE_S)
        return True

    async def settle(self, vm_id: str) -> None:
        """Find out what became of a migration that nobody carries on; once, it is asked again."""

        async def take(tx: Transaction) -> MoveRow | None:
            move = tx.rows.moves.get(vm_id)
            if move is None:
                return None
            taken = tx.rows.moves[vm_id] = replace(move, taken_at_s=self._site.kernel.now_s)
            return taken

        move = await self._plane.store.run(take)
        for count in range(CONFIRMED_COUNT + 1) if move is not None else ():
            assert move is not None
            if await self._settle(move, count):
                return
            await self._plane.process.sleep(PAUSE_S)

    async def _tell(self, move: MoveRow, does: str, node_id: str) -> bool | None:
        """Give one of the hosts a command, unless the migration is over, or it is proven dead."""

        async def read(tx: Transaction) -> Command | None:
            vm, now = tx.rows.vms.get(move.vm_id), tx.rows.moves.get(move.vm_id)
            is_over = does != "tidy" and (now is None or now.key != move.key)
            if vm is None or is_over or tx.rows.is_proven_dead(node_id):
                return None
            token, epoch = tx.rows.nodes[node_id].fence_token, tx.rows.leadership.epoch
            protects = vm.wants_protection
            return Command(does, vm.id, epoch, token, move.key, protects, move.key, move.target_id)

        command = await self._plane.store.read(read)
        return await self._plane.work.call(node_id, command) if command is not None else None

    async def _settle(self, move: MoveRow, count: int, *, is_protected: bool = False) -> bool:
        """Ask both hosts, and write down where the VM is if they say so; returns whether the migration is over."""
        try:
            place = await self._place(move)
        except ApiError:
            return False
        if place is None:
            return True
        is_confirmed = count >= CONFIRMED_COUNT
        if place is Whereabouts.TARGET or (place is Whereabouts.TARGET_UNCONFIRMED and is_confirmed):
            await self._plane.store.run(lambda tx: self._end(tx, move, move.target_id, is_protected=is_protected))
            await self._tell(move, "tidy", move.source_id)
            return True
        if place is Whereabouts.ENDED_AT_TARGET and is_confirmed:
            await self._tell(move, "tidy", move.source_id)
        elif place is Whereabouts.SOURCE or (place is Whereabouts.GONE and is_confirmed):
            is_dead = self._site.database.rows.is_proven_dead(move.target_id)
            # One that takes a silent host for one without the VM does not ask it either; else this would save it.
            if self._site.rules.asks_both and not is_dead and await self._tell(move, "tidy", move.target_id) is None:
                return False
            await self._plane.store.run(lambda tx: self._end(tx, move, move.source_id, is_protected=None))
            return True
        return False

    async def _place(self, move: MoveRow) -> Whereabouts | None:
        """Ask the source, and then both, about the VM; None if the migration is over."""

        async def read(tx: Transaction) -> tuple[bool, bool] | None:
            rows: Rows = tx.rows
            now, vm = rows.moves.get(move.vm_id), rows.vms.get(move.vm_id)
            if now is None or now.key != move.key or vm is None:
                return None
            source, target = rows.fence_of(move.source_id), rows.fence_of(move.target_id)
            return (
                source is not None and proves_dead(source, is_protected=vm.is_protected),
                target is not None and proves_dead(target, is_protected=False),
            )

        dead = await self._plane.store.read(read)
        if dead is None:
            return None
        first = await self._look(move, move.source_id, is_dead=dead[0])
        source = await self._look(move, move.source_id, is_dead=dead[0])
        target = await self._look(move, move.target_id, is_dead=dead[1])
        sight = target.sight
        if not self._site.rules.asks_both and sight is Sight.SILENT:
            sight = Sight.ABSENT
        return whereabouts(Views(source.sight, sight, first.progress), ran=True, shares_disks=True)

    async def _look(self, move: MoveRow, node_id: str, *, is_dead: bool) -> View:
        if is_dead:
            return View(Sight.DEAD, Progress.UNKNOWN)
        host, process = self._site.hosts[node_id], self._plane.process
        serve: Callable[[Callable[[Any], None]], bool]
        serve = lambda answer: host.commands.look(move.vm_id, move.key, answer)  # noqa: E731
        try:
            view: View = await self._site.database.network.call(process, process.name, node_id, serve, CALL_LIMIT_S)
        except ApiError:
            return View(Sight.SILENT, Progress.UNKNOWN)
        return view

    async def _end(self, tx: Transaction, move: MoveRow, node_id: str, *, is_protected: bool | None) -> None:
        """Write where the VM is; what was recorded meanwhile stands."""
        now, vm = tx.rows.moves.get(move.vm_id), tx.rows.vms.get(move.vm_id)
        if vm is None or now is None or now.key != move.key:
            return
        noted = vm.is_protected if is_protected is None else is_protected
        tx.rows.vms[vm.id] = replace(vm, node_id=node_id, is_protected=noted)
        del tx.rows.moves[vm.id]
