"""Sees to it that VMs which shall run do, where their policy asks for that.

It looks at what is recorded, again and again, and so needs no memory of its own: after a restart, or beside other
processes that do the same, it asks for the same restarts under the same request ids, which makes each one happen once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.back_off import back_off_s
from controlplane.domain.node import Phase
from controlplane.domain.node_shutdown import shutdown_of
from controlplane.domain.operation import OperationState
from controlplane.domain.restarts import is_relocated_next, is_used_up
from controlplane.domain.vm import PowerOperation, PowerState, Vm
from controlplane.operations.desk import OperationDesk, Order
from controlplane.operations.vm_failover import FinishFailover, require_restartable
from controlplane.operations.vm_power import StartVm, require_allowed
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.reconcile.repairs import RECONCILER
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import HaPolicy
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restart:
    """A VM is to be started again at a time."""

    due_at: datetime
    number: int
    """How many restarts in a row it is, from 1."""


def restart_of(vm: Vm) -> Restart | None:
    """Say when a VM that shall run and does not is started again; None if its policy leaves it off. Pure.

    A guest that shuts itself down is STOPPED and only restarted under ALWAYS; one that died is CRASHED and restarted
    under ON_FAILURE too. Restarts in a row come slower each time, and no more than `max_restarts` (0: no limit), after
    which one that does not start is tried on other nodes.
    """
    policy = vm.spec.ha_policy
    if vm.details.failover_unfinished:
        return _next(vm) if is_restarted_elsewhere(vm.spec) else None
    wants_it = policy.condition == HaPolicy.ALWAYS or (
        policy.condition == HaPolicy.ON_FAILURE and vm.power_state == PowerState.CRASHED
    )
    if not policy.auto_restart or not wants_it:
        return None
    if is_used_up(vm):
        return None
    return _next(vm)


def _next(vm: Vm) -> Restart:
    wait_s = max(float(vm.spec.ha_policy.restart_delay_sec), back_off_s(vm.restart_count))
    since = max(vm.state_changed_at, vm.updated_at)
    return Restart(since + timedelta(seconds=wait_s), vm.restart_count + 1)


def order_of(vm: Vm, restart: Restart) -> Order:
    """Say which operation a restart is. Pure.

    A VM that did not start as often as its policy has it on one node goes elsewhere, as often as its policy has that.
    One that was moved, and did not run since, is defined where it is before it is started.
    """
    parameters = {"restart_count": restart.number}
    if is_relocated_next(vm):
        return Order(RelocateVm.kind, vm.id, parameters=parameters, check=require_restartable)
    if not vm.details.failover_unfinished:
        return Order(
            StartVm.kind,
            vm.id,
            parameters=parameters,
            check=lambda current: require_allowed(current, PowerOperation.START),
        )
    return Order(FinishFailover.kind, vm.id, parameters=parameters, check=require_restartable)


async def _stopped_where_heard(tx: Transaction) -> Sequence[Vm]:
    """VMs that shall run and do not, but for those whose node is fenced or silent: these may be started elsewhere.

    Nor those whose node said that it goes down, until it is back, nor those that are just being started elsewhere.
    """
    vms = await tx.stopped_against_will()
    if not vms:
        return vms
    fenced = {fence.node_id for fence in await tx.current_fences()}
    nodes = await tx.nodes({vm.node_id for vm in vms} - fenced)
    heard = {node.id for node in nodes if node.phase != Phase.NOT_READY and shutdown_of(node.annotations) is None}
    moving = await tx.active_resource_ids([vm.id for vm in vms if vm.details.failover_unfinished])
    return [vm for vm in vms if vm.node_id in heard and vm.id not in moving]


class Keeper:
    """Starts what shall run; one task (`run`) a process."""

    def __init__(self, store: Store, desk: OperationDesk, now: Callable[[], datetime], interval_s: float = 2.0) -> None:
        self._store = store
        self._desk = desk
        self._now = now
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look every interval until cancelled; a database that is away is waited for."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except ApiError as error:
                _log.warning("vms_not_looked_after", reason=error.reason, message=error.message)

    async def look(self) -> None:
        """Ask for the restarts that are due.

        Raises:
            Unavailable: the database does not answer.
        """
        for vm in await self._store.read(_stopped_where_heard):
            restart = restart_of(vm)
            if restart is not None and restart.due_at <= self._now():
                await self.restart(vm, restart)

    async def restart(self, vm: Vm, restart: Restart) -> None:
        """Ask for one restart; asked for twice it happens once. Never raises an `ApiError`."""
        request_id = f"restart-{vm.id}-{restart.number}-{vm.state_changed_at.isoformat()}"
        order = order_of(vm, restart)
        try:
            operation = await self._desk.submit(order, RECONCILER.with_request(request_id, request_id))
            while operation.state == OperationState.CANCELLED:
                # By something else that was asked of the VM and came to nothing, since it shall run still.
                request_id = f"restart-{vm.id}-{restart.number}-after-{operation.id}"
                operation = await self._desk.submit(order, RECONCILER.with_request(request_id, request_id))
        except ApiError as error:
            _log.warning("vm_not_restarted", vm_id=vm.id, reason=error.reason, message=error.message)
        else:
            _log.info("vm_restarted", vm_id=vm.id, number=restart.number, operation_id=operation.id)
