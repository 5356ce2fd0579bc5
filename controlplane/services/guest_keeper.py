"""Watches over guests whose policy asks for it: one that fell silent is told of, or reset.

The agents are asked, not what hosts report: that changes seldom on purpose, and a guest that hangs changes nothing.
Only an agent that was heard since its VM started can fall silent, so a guest without one, or one that does not get as
far as starting it, is never reset, and no reset follows another without a sign of life between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import structlog

from controlplane.daemons.interface import DaemonPool, NodeDaemon
from controlplane.domain.alert import AlertKind, AlertSeverity, Finding
from controlplane.domain.event import VM
from controlplane.domain.node import Node, Phase
from controlplane.domain.vm import PowerOperation, PowerState, Vm
from controlplane.operations.desk import OperationDesk, Order
from controlplane.operations.vm_power import RebootVm, require_allowed
from controlplane.reconcile.repairs import RECONCILER
from controlplane.services.alerts import AlertService
from controlplane.services.ha_clock import clock_s
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import HaPolicy
from limiquantix.errors import ApiError, Reason

_log = structlog.get_logger(__name__)

INTERVAL_S: Final = 10.0
DEFAULT_TIMEOUT_S: Final = 120.0
"""Of silence, where the policy does not say: longer than a guest takes that reboots itself."""
ASKED_AT_ONCE: Final = 8
"""Of all agents; an agent that hangs keeps a thread of its host's for some seconds."""

_SILENT = frozenset({Reason.GUEST_AGENT_SILENT, Reason.GUEST_AGENT_ABSENT})


@dataclass(frozen=True, slots=True)
class Hearing:
    """What was heard of a guest. `heard_s` is the last sign of life by the clock of this process; None for none yet."""

    vm: Vm
    heard_s: float | None

    @property
    def policy(self) -> HaPolicy:
        """What its VM's policy says."""
        return self.vm.spec.ha_policy

    def is_silent(self, now_s: float) -> bool:
        """Whether it has been silent for longer than its policy allows."""
        return self.heard_s is not None and now_s - self.heard_s >= timeout_s(self.policy)

    @property
    def may_be_reset(self) -> bool:
        """Whether its policy has it reset, and not as often as that allows already."""
        limit = self.policy.max_restarts
        return self.policy.guest_action == HaPolicy.GUEST_ACTION_RESET and (not limit or self.vm.restart_count < limit)


def timeout_s(policy: HaPolicy) -> float:
    """How long an agent may be silent."""
    return float(policy.guest_timeout_sec) or DEFAULT_TIMEOUT_S


def heard_before(vm: Vm, now_s: float) -> float | None:
    """When a guest counts as heard that is looked at anew: now, if its agent spoke since the VM started."""
    told = vm.details.guest_info
    spoke = bool(told.agent_version) and told.last_heartbeat.seconds >= int(vm.state_changed_at.timestamp())
    return now_s if spoke else None


def finding_of(hearing: Hearing, now_s: float) -> Finding:
    """Say that a guest is silent, and what is done about it."""
    vm, limit = hearing.vm, hearing.policy.max_restarts
    silent_s = now_s - (hearing.heard_s or now_s)
    if hearing.may_be_reset:
        done = "it is reset"
    elif hearing.policy.guest_action == HaPolicy.GUEST_ACTION_RESET:
        done = f"it is not reset again, after {vm.restart_count} restarts of {limit} that its policy allows; look at it"
    else:
        done = "its policy has that told only; look at its console"
    text = f"the guest agent of VM {vm.name} has been silent for {silent_s:.0f} s: {done}"
    return Finding(VM, vm.id, AlertSeverity.WARNING, text)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is recorded. `watched` has of each placed VM its version, and whether its guest is watched over."""

    watched: Mapping[str, tuple[int, bool]]
    running: Sequence[tuple[Vm, Node]] = ()
    is_armed: bool = True


@dataclass(slots=True)
class GuestKeeper:
    """Asks and resets; one task (`run`) a process, of which one at a time is active.

    Attributes:
        is_active: whether this process is the one.
        clock: one that only goes forward, in seconds.
    """

    store: Store
    daemons: DaemonPool
    desk: OperationDesk
    alerts: AlertService
    is_active: Callable[[], bool]
    clock: Callable[[], float] = clock_s
    interval_s: float = INTERVAL_S
    _hearings: Mapping[str, Hearing] = field(default_factory=dict)
    _watched: Mapping[str, tuple[int, bool]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look every interval until cancelled; a database that is away is waited for."""
        while True:
            await asyncio.sleep(self.interval_s)
            try:
                await self.look()
            except ApiError as error:
                _log.warning("guests_not_looked_after", reason=error.reason, message=error.message)

    async def look(self) -> None:
        """Ask all agents that are to be watched, and do what is due.

        Raises:
            Unavailable: the database does not answer.
        """
        if not self.is_active():
            self._hearings, self._watched = {}, {}
            return
        seen = await self.store.read(self._see)
        self._watched = seen.watched
        known, now_s = self._hearings, self.clock()
        turns = asyncio.Semaphore(ASKED_AT_ONCE)
        heard = await asyncio.gather(
            *(
                self._ask(self._hearing_of(vm, known.get(vm.id), now_s), self.daemons.daemon(node), turns)
                for vm, node in seen.running
            )
        )
        self._hearings = {each.vm.id: each for each in heard}
        now_s = self.clock()
        silent = [each for each in heard if each.is_silent(now_s)]
        await self.alerts.sync(AlertKind.HA_GUEST_SILENT, [finding_of(each, now_s) for each in silent])
        for each in silent:
            if each.may_be_reset and seen.is_armed and self.is_active():
                await self._reset(each.vm)

    async def _see(self, tx: Transaction) -> _Seen:
        """Read which VMs run undisturbed whose guests are watched over, reading policies only of those that changed."""
        versions = {each.vm_id: each.version for each in await tx.vm_versions()}
        changed = [vm_id for vm_id, version in versions.items() if self._watched.get(vm_id, (0, False))[0] != version]
        watched = {vm_id: looked_at for vm_id, looked_at in self._watched.items() if vm_id in versions}
        for each in await tx.standing_vms(changed) if changed else ():
            action = each.spec.ha_policy.guest_action
            watched[each.id] = (each.version, action != HaPolicy.GUEST_ACTION_UNSPECIFIED)
        wanted = [vm_id for vm_id, (_, is_watched) in watched.items() if is_watched]
        if not wanted:
            return _Seen(watched)
        busy = await tx.active_resource_ids(wanted)
        found = [vm for vm_id in wanted if vm_id not in busy and (vm := await tx.get_vm(vm_id)) is not None]
        vms = [vm for vm in found if vm.is_managed and vm.power_state == PowerState.RUNNING and not vm.sightings]
        fenced = {fence.node_id for fence in await tx.current_fences()}
        nodes = {node.id: node for node in await tx.nodes({vm.node_id for vm in vms} - fenced)}
        heard = {node.id: node for node in nodes.values() if node.phase != Phase.NOT_READY and node.agent_endpoint}
        running = [(vm, heard[vm.node_id]) for vm in vms if vm.node_id in heard]
        return _Seen(watched, running, (await tx.ha_settings()).is_armed)

    @staticmethod
    def _hearing_of(vm: Vm, known: Hearing | None, now_s: float) -> Hearing:
        """Go on where it was left, unless something was done to the VM meanwhile, or it stopped by itself."""
        if known is None or _moment_of(known.vm) != _moment_of(vm):
            return Hearing(vm, heard_before(vm, now_s))
        return replace(known, vm=vm)

    async def _ask(self, hearing: Hearing, daemon: NodeDaemon, turns: asyncio.Semaphore) -> Hearing:
        """Ask one agent. A host that does not answer says nothing of its guests: their time begins anew."""
        async with turns:
            try:
                await daemon.ping_guest(hearing.vm.id)
            except ApiError as error:
                if error.reason in _SILENT or hearing.heard_s is None:
                    return hearing
        return replace(hearing, heard_s=self.clock())

    async def _reset(self, vm: Vm) -> None:
        """Ask for one reset; asked for twice it happens once. Never raises an `ApiError`."""
        number = vm.restart_count + 1
        request_id = f"guest-reset-{vm.id}-{number}-{vm.state_changed_at.isoformat()}"
        order = Order(
            RebootVm.kind,
            vm.id,
            parameters={"force": True, "restart_count": number},
            check=lambda current: require_allowed(current, PowerOperation.REBOOT),
        )
        try:
            operation = await self.desk.submit(order, RECONCILER.with_request(request_id, request_id))
        except ApiError as error:
            _log.warning("silent_guest_not_reset", vm_id=vm.id, reason=error.reason, message=error.message)
        else:
            _log.warning("silent_guest_reset", vm_id=vm.id, restart_count=number, operation_id=operation.id)


def _moment_of(vm: Vm) -> tuple[int, datetime]:
    return vm.generation, vm.state_changed_at
