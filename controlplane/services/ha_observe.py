"""What the decision about high availability is made from: one snapshot of the database, and what this process heard.

Nothing is decided here. Records become the plain facts that `controlplane.ha` knows, and the scheduler is put where it
can be asked for targets without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.domain.fencing import (
    Fence,
    FenceState,
    HaSettings,
    Leadership,
    NodeGuard,
    lease_proves,
    proves_dead,
)
from controlplane.domain.node import Node, Phase
from controlplane.domain.node_shutdown import NotedShutdown, ShutdownKind, shutdown_of
from controlplane.domain.placement import StandingVm
from controlplane.domain.restarts import why_not_restarted
from controlplane.domain.vm import PowerState, Vm
from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Choose,
    NodeSeen,
    Observed,
    OpenFence,
    PowerResult,
    Seen,
    Shutdown,
    VmSeen,
    Wanted,
)
from controlplane.power.interface import PowerControllers
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.ha_choices import Scene, chooser, read_scene
from controlplane.services.hearing import Heard, Hearing
from controlplane.services.seen import NodesAtOnce, NodesKept, SeenNodes
from controlplane.state.interface import Store, Transaction

FAILOVER_KIND = "vm.failover"
"""Of the operation that starts a VM elsewhere."""

_OUT_OF_USE = frozenset({Phase.MAINTENANCE, Phase.DRAINING, Phase.OFFLINE})
_SHUTDOWNS = {ShutdownKind.REBOOT: Shutdown.REBOOT, ShutdownKind.POWER_OFF: Shutdown.POWER_OFF}


@dataclass(frozen=True, slots=True)
class PowerAttempt:
    """How cutting the power of a fenced node went."""

    result: PowerResult = PowerResult.NOT_TRIED
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """The database at one moment.

    Attributes:
        fences: the current ones, by node.
        guards: by node; read only while there are fences, since nothing else is judged by them.
        vms: those of fenced nodes that are to run elsewhere.
        awaited: others that must run before some of them, by id.
        failing_over: ids of all VMs of which a failover is under way or waits; read only while some wait for one.
    """

    leadership: Leadership
    settings: HaSettings
    nodes: SeenNodes
    fences: Mapping[str, Fence] = field(default_factory=dict)
    guards: Mapping[str, NodeGuard] = field(default_factory=dict)
    vms: Sequence[Vm] = ()
    awaited: Mapping[str, Vm] = field(default_factory=dict)
    failing_over: Collection[str] = ()
    scene: Scene | None = None


@dataclass(slots=True)
class Observer:
    """Reads pictures; keeps of them what makes the next one cheap."""

    store: Store
    scheduler: SchedulerConfig
    kept: NodesKept = field(default_factory=NodesKept)
    _standing: Mapping[str, StandingVm] = field(default_factory=dict)

    async def look(self) -> Picture:
        """Read everything in one transaction: versions and claims of nodes, and of VMs only those to be restarted.

        Raises:
            ApiError: the database does not answer.
        """
        picture, self.kept.at_once = await self.store.read(self._read)
        self._standing = {vm.id: vm for vm in picture.scene.standing} if picture.scene is not None else {}
        return picture

    async def given_up(self) -> Sequence[Alerting]:
        """Find VMs on nodes that live of which all restarts failed; the Keeper started and moved them.

        Raises:
            ApiError: the database does not answer.
        """
        vms = await self.store.read(lambda tx: tx.stopped_against_will())
        return [Alerting(AlertOf.VM_NOT_RESTARTED, vm.id, why) for vm in vms if (why := why_not_restarted(vm))]

    async def _read(self, tx: Transaction) -> tuple[Picture, NodesAtOnce]:
        fences = {fence.node_id: fence for fence in await tx.current_fences()}
        at_once = await self.kept.at_once.look(tx)
        nodes = at_once.nodes
        vms = list(await tx.vms_to_restart(fences)) if fences else []
        awaited_ids = {other for vm in vms for other in vm.spec.ha_policy.starts_after} - {vm.id for vm in vms}
        awaited = {vm.id: vm for each in sorted(awaited_ids) if (vm := await tx.get_vm(each)) is not None}
        is_restarting = any(fences[vm.node_id].state == FenceState.PROVEN for vm in vms)
        picture = Picture(
            leadership=await tx.leadership(),
            settings=await tx.ha_settings(),
            nodes=nodes,
            fences=fences,
            guards={guard.node_id: guard for guard in await tx.node_guards()} if fences else {},
            vms=vms,
            awaited=awaited,
            # Other operations on a VM do not count, since a failover goes before them.
            failing_over=await tx.resources_under(FAILOVER_KIND) if vms else (),
            scene=await read_scene(tx, nodes, vms, self._standing) if is_restarting else None,
        )
        return picture, at_once


@dataclass(frozen=True, slots=True)
class Senses:
    """What this process knows beside the database.

    Attributes:
        power_of: how cutting the power went, by the fence's id.
    """

    hearing: Hearing
    controllers: PowerControllers
    power_of: Callable[[str], PowerAttempt]


def observed(picture: Picture, senses: Senses, scheduler: SchedulerConfig, obstacle: str) -> Observed:
    """Put together what the core decides from. Fences in the picture must be published already."""
    nodes = [_node_seen(picture, each.node, senses) for _, each in sorted(picture.nodes.items())]
    vms = [_to_restart(vm, picture) for vm in picture.vms]
    vms += [_awaited(vm, picture) for vm in picture.awaited.values()]
    choose: Choose = chooser(picture.scene, scheduler, frozenset(picture.fences))
    elsewhere = set(picture.failing_over) - {vm.id for vm in picture.vms}
    return Observed(
        nodes,
        vms,
        choose,
        is_armed=picture.settings.is_armed,
        obstacle=obstacle,
        restarting_count=len(elsewhere),
    )


def _node_seen(picture: Picture, node: Node, senses: Senses) -> NodeSeen:
    heard, fence = senses.hearing.of(node.id), picture.fences.get(node.id)
    noted = shutdown_of(node.annotations)
    if noted is not None and _is_over(noted, picture.guards.get(node.id), heard):
        noted = None
    runs_none = heard is None or heard.usage.running_vm_count == 0
    seen = NodeSeen(
        id=node.id,
        heard_s=heard.at_s if heard is not None else None,
        takes_part=node.phase not in _OUT_OF_USE,
        has_ended_vms=noted is not None and noted.all_vms_ended and runs_none,
        shutdown=_SHUTDOWNS.get(noted.kind) if noted is not None else None,
    )
    return seen if fence is None else _fenced(seen, node, fence, picture, senses)


def _fenced(seen: NodeSeen, node: Node, fence: Fence, picture: Picture, senses: Senses) -> NodeSeen:
    """Add what matters of a node with a fence only: few have one, and all are looked at in each round."""
    heard = senses.hearing.of(node.id)
    attempt = senses.power_of(fence.id)
    return replace(
        seen,
        fence=OpenFence(fence.id, fence.state == FenceState.PROVEN, fence.heard_by, fence.is_by_operator),
        lease_proves=(
            picture.settings.is_armed and lease_proves(picture.guards.get(node.id), picture.settings.version)
        ),
        is_rebooted=(
            heard is not None
            and heard.usage.running_vm_count == 0
            and bool(heard.boot_id and fence.boot_id)
            and heard.boot_id != fence.boot_id
        ),
        has_power_agent=senses.controllers.of(node.hostname) is not None,
        power=attempt.result,
        power_evidence=attempt.evidence,
        knows_fence=_knows(heard, fence),
    )


def _knows(heard: Heard | None, fence: Fence) -> bool:
    """Whether a host said that it knows a fence's token; one that takes no leases knows of no tokens and says so."""
    return heard is not None and (not heard.boot_id or heard.known_fence_token >= fence.token)


def _is_over(noted: NotedShutdown, guard: NodeGuard | None, heard: Heard | None) -> bool:
    """Whether the host was heard in another boot since it said that it goes."""
    boots = {each.boot_id for each in (guard, heard) if each is not None and each.boot_id}
    return bool(boots - {noted.boot_id})


def _to_restart(vm: Vm, picture: Picture) -> VmSeen:
    policy = vm.spec.ha_policy
    return VmSeen(
        id=vm.id,
        node_id=vm.node_id,
        is_busy=vm.id in picture.failing_over,
        proves_dead=proves_dead(picture.fences[vm.node_id], is_protected=vm.is_protected),
        priority=policy.priority,
        restart_delay_s=float(policy.restart_delay_sec),
        max_restarts=policy.max_restarts,
        max_relocations=policy.max_relocations or 1,
        starts_after=tuple(policy.starts_after),
    )


def _awaited(vm: Vm, picture: Picture) -> VmSeen:
    """A VM that others wait for; nothing is done about it here."""
    is_away = vm.node_id in picture.fences
    states = {PowerState.RUNNING: Seen.RUNNING, PowerState.STOPPED: Seen.STOPPED, PowerState.CRASHED: Seen.FAILED}
    return VmSeen(
        id=vm.id,
        node_id=vm.node_id,
        wanted=Wanted.STARTED if vm.wanted_state == PowerState.RUNNING and not is_away else Wanted.IGNORED,
        seen=Seen.UNKNOWN if is_away else states.get(vm.power_state, Seen.UNKNOWN),
        is_busy=True,
        is_policy_restart=False,
    )
