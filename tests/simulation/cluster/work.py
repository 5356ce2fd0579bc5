"""What a control plane has hosts do: starts, stops and deletes as operations, simplified from the product's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from controlplane.domain.fencing import proves_dead
from limiquantix.errors import ApiError
from tests.simulation.cluster.commands import Command
from tests.simulation.cluster.database import Rows, StartRow, Transaction

if TYPE_CHECKING:
    from tests.simulation.cluster.plane import Plane

TAKEN_S = 8.0
START_LIMIT_S = 5.0


def unless_unforeseen(result: Any, error: BaseException | None) -> None:
    """Let pass what can pass by itself."""
    if error is not None and not isinstance(error, ApiError):
        raise error


class Work:
    """One a process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._site = plane.site

    # what is to be done

    def level(self, node_id: str, running: frozenset[str]) -> None:
        """Have VMs started, stopped and removed that a host, which has just been heard, runs or does not against what
        is recorded; and have migrations settled that nobody carries on."""

        def wrong(rows: Rows) -> list[StartRow]:
            return [
                StartRow(vm.id, stops=not vm.shall_run, target_id=node_id)
                for vm in rows.vms.values()
                if vm.node_id == node_id and vm.id not in rows.starts and vm.id not in rows.moves
                if (vm.id in running) != vm.shall_run or vm.shall_go or (vm.wants_protection > vm.is_protected)
                if vm.shall_run or vm.shall_go or vm.id in running
            ]

        rows = self._site.database.rows  # a peek that only saves asking when there is nothing to ask for
        if wrong(rows) and rows.fence_of(node_id) is None:

            async def write(tx: Transaction) -> None:
                if tx.rows.fence_of(node_id) is None:
                    tx.rows.starts.update({start.vm_id: start for start in wrong(tx.rows)})

            self._plane.process.spawn(self._plane.store.run(write), unless_unforeseen)
        for move in list(rows.moves.values()):
            if node_id in (move.source_id, move.target_id) and self._site.kernel.now_s - move.taken_at_s > TAKEN_S:
                self._plane.process.spawn(self._plane.moves.settle(move.vm_id), unless_unforeseen)

    async def wish(self, vm_id: str, *, shall_run: bool, shall_go: bool = False) -> bool:
        """Record what a person wants of a VM; returns whether that was accepted."""

        async def write(tx: Transaction) -> bool:
            vm = tx.rows.vms.get(vm_id)
            standing = tx.rows.starts.get(vm_id)
            if vm is None or vm.shall_go or vm_id in tx.rows.moves or (standing is not None and standing.is_moved):
                return False
            generation = vm.generation + 1
            tx.rows.vms[vm_id] = replace(vm, shall_run=shall_run, shall_go=shall_go, generation=generation)
            tx.rows.starts[vm_id] = StartRow(vm_id, stops=not shall_run, target_id=vm.node_id)
            return True

        return await self._plane.store.run(write)

    # doing it

    async def round(self) -> None:
        """Take every operation that nobody works on."""
        kernel, name = self._site.kernel, self._plane.process.name
        if not self._site.database.rows.starts:
            return

        async def take(tx: Transaction) -> StartRow | None:
            for vm_id, start in tx.rows.starts.items():
                if not start.taken_by or kernel.now_s - start.taken_at_s > TAKEN_S:
                    taken = tx.rows.starts[vm_id] = replace(start, taken_by=name, taken_at_s=kernel.now_s)
                    return taken
            return None

        while (start := await self._plane.store.run(take)) is not None:
            self._plane.process.spawn(self._carry_out(start), unless_unforeseen)

    async def _carry_out(self, start: StartRow) -> None:
        """Move a VM if it is to be moved, have it started or stopped, and note what came of it."""
        site, store = self._site, self._plane.store
        if start.fence_id and site.rules.settles_moves and start.vm_id in site.database.rows.moves:
            await self._plane.moves.settle(start.vm_id)
        told = await store.run(lambda tx: self._told(tx, start))
        if told is None:
            return
        node_id, command = told
        if not command.protects and not start.stops and site.rules.unprotects_first:
            await store.run(lambda tx: self._unprotect(tx, command))
        if site.kernel.random.random() < 0.02 and not site.database.network.is_calm:
            await self._plane.process.sleep(site.kernel.random.uniform(5.0, 40.0))  # it hangs on something else
        is_protected = await self.call(node_id, command)
        await store.run(lambda tx: self._note(tx, start, node_id, command, is_protected))

    async def call(self, node_id: str, command: Command, limit_s: float = START_LIMIT_S) -> bool | None:
        """Give a command; None if it failed, or nobody knows."""
        process, host = self._plane.process, self._site.hosts[node_id]
        serve: Callable[[Callable[[Any], None]], bool] = lambda answer: host.commands.take(command, answer)  # noqa: E731
        try:
            result: bool = await self._site.database.network.call(process, process.name, node_id, serve, limit_s)
        except ApiError:
            return None
        return result

    async def _told(self, tx: Transaction, start: StartRow) -> tuple[str, Command] | None:
        """Say which command goes where; None if the operation is not to be carried out any more."""
        rows, vm = tx.rows, tx.rows.vms.get(start.vm_id)
        standing = rows.starts.get(start.vm_id)
        if vm is None or standing is None or not _is_same(standing, start, self._plane.process.name):
            return None
        if start.fence_id and not standing.is_moved and not self._move(rows, standing):
            del rows.starts[start.vm_id]
            return None
        vm = rows.vms[start.vm_id]
        if rows.is_proven_dead(vm.node_id) or vm.node_id != start.target_id or vm.shall_run == start.stops:
            del rows.starts[start.vm_id]
            return None
        does, token = "stop" if start.stops else "start", rows.nodes[vm.node_id].fence_token
        protects = vm.wants_protection and not start.stops
        return vm.node_id, Command(does, vm.id, rows.leadership.epoch, token, vm.generation, protects)

    def _move(self, rows: Rows, start: StartRow) -> bool:
        """Move a VM whose node is proven dead; returns whether that may be."""
        vm, fence, rules = rows.vms[start.vm_id], rows.fences.get(start.fence_id), self._site.rules
        if fence is None or vm.node_id != fence.node_id or (not vm.shall_run and rules.heeds_wishes):
            return False
        is_protected = vm.is_protected or not rules.spares_unprotected
        is_dead = proves_dead(fence, is_protected=is_protected) or not rules.checks_proof
        if not is_dead or rows.fence_of(start.target_id) is not None or rows.free(start.target_id) < vm.memory:
            return False
        if rules.settles_moves and vm.id in rows.moves:
            return False
        rows.moves.pop(vm.id, None)
        # As in the product: nothing is there yet, and it is written to be unprotected before it is there so.
        moved = replace(vm, node_id=start.target_id, is_protected=True, generation=vm.generation + 1)
        rows.vms[vm.id] = moved if rules.heeds_wishes else replace(moved, shall_run=True)
        rows.starts[vm.id] = replace(start, is_moved=True)
        return True

    async def _unprotect(self, tx: Transaction, command: Command) -> None:
        vm = tx.rows.vms.get(command.vm_id)
        if vm is not None and vm.generation == command.generation:
            tx.rows.vms[vm.id] = replace(vm, is_protected=False)

    async def _note(
        self, tx: Transaction, start: StartRow, node_id: str, command: Command, is_protected: bool | None
    ) -> None:
        standing, vm = tx.rows.starts.get(start.vm_id), tx.rows.vms.get(start.vm_id)
        if vm is None or standing is None or not _is_same(standing, start, self._plane.process.name):
            return
        del tx.rows.starts[start.vm_id]
        if is_protected is None or vm.node_id != node_id or vm.generation != command.generation:
            return
        if start.stops:
            self._site.ledger.stopped(vm.id, is_gone=vm.shall_go)
            if vm.shall_go:
                del tx.rows.vms[vm.id]
        else:
            tx.rows.vms[vm.id] = replace(vm, is_protected=is_protected and vm.wants_protection)


def _is_same(standing: StartRow, start: StartRow, name: str) -> bool:
    """Whether an operation that a process took is still its own, and not another one in its place."""
    return (standing.taken_by, standing.fence_id, standing.stops) == (name, start.fence_id, start.stops)
