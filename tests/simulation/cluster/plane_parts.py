"""What the manager works with beside the product's parts: pictures, power, the desk, a scheduler; simulated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from controlplane.domain.fencing import FenceState, NodeGuard
from controlplane.domain.ha_times import HaTimes
from controlplane.domain.node_shutdown import NotedShutdown, shutdown_of, with_shutdown
from controlplane.ha.model import Choice, CutPower, Effect, HaConfig, PowerResult
from controlplane.operations.desk import Caller, Order
from controlplane.services.ha_effects import Term
from controlplane.services.ha_observe import Picture, PowerAttempt
from limiquantix.errors import ApiError
from tests.simulation.cluster.database import Database, Etcd, NodeRow, Rows, StartRow, Transaction, VmRow
from tests.simulation.cluster.host import Host
from tests.simulation.cluster.kernel import Kernel
from tests.simulation.cluster.ledger import Ledger
from tests.simulation.cluster.rules import Rules

if TYPE_CHECKING:
    from controlplane.domain.node import Node
    from tests.simulation.cluster.plane import Plane


@dataclass(frozen=True, slots=True)
class Site:
    """What all processes share."""

    kernel: Kernel
    database: Database
    etcd: Etcd
    hosts: dict[str, Host]
    rules: Rules
    times: HaTimes
    config: HaConfig
    power_agents: Collection[str]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as the manager's picture has it."""

    node: Any


class Observer:
    """Reads pictures of the simulated database."""

    scheduler = None

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def look(self) -> Picture:
        return await self._plane.store.read(self._read)

    async def given_up(self) -> Sequence[Effect]:
        """Nothing: restarts in place are tried here without end."""
        return ()

    async def _read(self, tx: Transaction) -> Picture:
        rows = tx.rows
        fences = {fence.node_id: fence for fence in rows.fences.values() if fence.is_current}
        self._plane.seen_vms = tuple(rows.vms.values())
        rules = self._plane.site.rules
        lost = [vm for vm in rows.vms.values() if vm.node_id in fences and (vm.shall_run or not rules.heeds_wishes)]
        return Picture(
            leadership=rows.leadership,
            settings=rows.settings,
            nodes=cast("Any", {node.id: SeenNode(self._node(node)) for node in rows.nodes.values()}),
            fences=fences,
            guards=self._guards(rows) if fences else {},
            vms=[cast("Any", _Vm.of(vm, rules)) for vm in lost],
            failing_over=frozenset(vm_id for vm_id, start in rows.starts.items() if start.fence_id),
        )

    def _node(self, node: NodeRow) -> NodeRow:
        """Return a node as it is; without `minds_boots` with what it said in any boot taken for said in this one."""
        noted = shutdown_of(node.annotations)
        heard = self._plane.hearing.of(node.id)
        if self._plane.site.rules.minds_boots or noted is None or heard is None:
            return node
        said = NotedShutdown(noted.kind, heard.boot_id, noted.all_vms_ended)
        return cast("NodeRow", with_shutdown(cast("Node", node), said, self._plane.now()))

    def _guards(self, rows: Rows) -> dict[str, NodeGuard]:
        """Return what is recorded of guards; without `asks_version` as if all hosts knew the newest settings."""
        if self._plane.site.rules.asks_version:
            return dict(rows.guards)
        return {node_id: replace(guard, ha_version=10**9) for node_id, guard in rows.guards.items()}


@dataclass(frozen=True, slots=True)
class _Policy:
    priority: int = 0
    restart_delay_sec: int = 0
    max_restarts: int = 1
    max_relocations: int = 1
    starts_after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Spec:
    ha_policy: _Policy = _Policy()


@dataclass(frozen=True, slots=True)
class _Vm:
    id: str
    node_id: str
    is_protected: bool
    spec: _Spec = _Spec()

    @staticmethod
    def of(vm: Any, rules: Rules) -> _Vm:
        return _Vm(vm.id, vm.node_id, vm.is_protected or not rules.spares_unprotected)


class Alerts:
    async def sync(self, found: Sequence[Effect], only: Collection[object] = ()) -> None:
        """Tell nobody."""


class _Controllers:
    """Which hosts have power controllers that answer, mostly."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def of(self, hostname: str) -> object | None:
        return self if hostname in self._plane.site.power_agents else None


@dataclass(slots=True)
class Power:
    """Cuts the power of hosts; the controller answers, or is as dead as its host."""

    plane: Plane
    attempts: dict[str, PowerAttempt] = field(default_factory=dict)

    @property
    def controllers(self) -> _Controllers:
        return _Controllers(self.plane)

    def of(self, fence_id: str) -> PowerAttempt:
        return self.attempts.get(fence_id, PowerAttempt())

    def begin(self, term: Term, effect: CutPower, hostname: str) -> None:
        if self.of(effect.fence_id).result in (PowerResult.NOT_TRIED, PowerResult.FAILED):
            self.attempts[effect.fence_id] = PowerAttempt(PowerResult.UNDER_WAY)
            self.plane.process.keep(self._cut(term, effect))

    async def _cut(self, term: Term, effect: CutPower) -> None:
        site, process = self.plane.site, self.plane.process
        draw = site.kernel.random
        await process.sleep(draw.uniform(0.2, 3.0))

        async def still_open(tx: Transaction) -> bool:
            await tx.require_epoch(term.epoch)
            fence = await tx.get_fence(effect.fence_id)
            return fence is not None and fence.state == FenceState.OPEN and not fence.heard_by

        try:
            is_open = await self.plane.store.run(still_open)
        except ApiError:
            is_open = False
        if not is_open or draw.random() < 0.4:
            self.attempts[effect.fence_id] = PowerAttempt(PowerResult.FAILED, "it does not answer")
            return
        site.hosts[effect.node_id].lose_power()
        self.attempts[effect.fence_id] = PowerAttempt(PowerResult.OFF, "it says off")

    def keep(self, fence_ids: Collection[str]) -> None:
        for fence_id in set(self.attempts) - set(fence_ids):
            del self.attempts[fence_id]

    async def stop(self) -> None:
        """Nothing is left to stop."""


class Desk:
    """Takes restarts as rows, see `StartRow`."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def submit(self, order: Order, caller: Caller) -> StartRow:
        asked = order.parameters
        row = StartRow(order.resource_id, str(asked["fence_id"]), target_id=str(asked["target_node_id"]))

        async def write(tx: Transaction) -> None:
            started = tx.rows.starts.get(row.vm_id)
            if started is None or not started.fence_id:
                tx.rows.starts[row.vm_id] = row

        await self._plane.store.run(write)
        return row


class Chooser:
    """A simple scheduler: the node with most room."""

    def __init__(self, rows: Rows, vms: Sequence[VmRow]) -> None:
        self._rows = rows
        self._vms = vms
        self._free: dict[str, int] = {}

    def __call__(self, vm_id: str, excluded: frozenset[str]) -> Choice:
        if not self._free:
            self._free = {node_id: self._rows.free(node_id) for node_id in self._rows.capacity}
        memory = next(vm.memory for vm in self._vms if vm.id == vm_id)
        fitting = [node_id for node_id, left in self._free.items() if left >= memory and node_id not in excluded]
        if not fitting:
            return Choice(reason="none has room")
        node_id = max(fitting, key=lambda each: (self._free[each], each))
        self._free[node_id] -= memory
        return Choice(node_id)
