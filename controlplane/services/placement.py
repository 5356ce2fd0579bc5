"""Carry out a placement decision: claim the room and insert the VM in the transaction that made the decision.

Of other VMs a decision reads only those that the VM's own rules mean, and, once a node is chosen and its room claimed,
the rules of those on that node. The claim holds the node, so of two VMs that must be apart and come at the same moment
by way of two control planes, the later one sees the earlier one.

Rules about more than a host need a turn, which is taken before anything is read. Whoever has rules of its own that must
hold has it alone, since what it must keep away from may be about to come to some other node of the same rack. Whoever
others' rules may mean shares it: many at once, but none beside one that has it alone. Room that is kept for VMs of
nodes that fail is about all nodes, too, see `kept_room`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from controlplane.domain import documents, errors
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Node
from controlplane.domain.placement import LOST_EVERY_RACE, StandingVm
from controlplane.domain.placement_rules import (
    RuledVm,
    is_bound_to_others,
    is_reached_by,
    must_be_apart,
    must_be_near,
)
from controlplane.domain.vm import Vm
from controlplane.operations import vm_rules
from controlplane.operations.quotas import require_room_for_new
from controlplane.operations.steps import Located
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.snapshot import PlacementRequest, request_for
from controlplane.services.kept_room import RoomKeeper, Turn
from controlplane.services.live_view import LiveView
from controlplane.services.seen import NodesKept, SeenNodes, SeenVms, look
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import VirtualMachine

MAX_DECISIONS = 3
"""Fresh snapshots taken when every ranked node lost its room to another control plane meanwhile."""
MAX_REMEMBERED_VMS = 100_000
"""About 200 MB; without them, VMs are read again."""


@dataclass(slots=True)
class NodeMemory:
    """What this process has seen of nodes, and of VMs that decisions were about, by id.

    Only what a transaction read that was then committed is kept.
    """

    seen: SeenNodes = field(default_factory=dict)
    kept: NodesKept = field(default_factory=NodesKept)
    vms: dict[str, StandingVm] = field(default_factory=dict)
    live: LiveView = field(default_factory=LiveView)

    def keep(self, placed: Placed) -> None:
        """Remember what a committed transaction read."""
        self.seen = placed.seen
        self.remember(placed.seen_vms)

    def remember(self, vms: Mapping[str, StandingVm]) -> None:
        """Remember VMs as a committed transaction read them."""
        if len(self.vms) + len(vms) > MAX_REMEMBERED_VMS:  # most are gone, or there are more than can be remembered
            self.vms = {}
        if len(vms) <= MAX_REMEMBERED_VMS:
            self.vms.update(vms)


@dataclass(frozen=True, slots=True)
class Placed:
    """A VM as inserted, its node, and what was read of the nodes: to be kept once the transaction is committed."""

    vm: Vm
    node: Node
    seen: SeenNodes
    seen_vms: Mapping[str, StandingVm] = field(default_factory=dict)


async def place_vm(
    tx: Transaction, draft: Vm, config: SchedulerConfig, memory: NodeMemory, pinned_node_id: str = ""
) -> Placed:
    """Choose a node, claim the VM's size on it and insert the VM there.

    Args:
        draft: the VM without a node.
        memory: is read only.
        pinned_node_id: the only node allowed; "" leaves the choice to the scheduler.

    Raises:
        AlreadyExists: the project has a VM of that name.
        NotFound: the pinned node does not exist.
        InvalidArgument: its rules contradict those of VMs that it must run beside.
        ResourceExhausted: no node fits, or it would take room that is kept for VMs of nodes that fail; the error has
            one reason per node. Or it would be more than its project's quota.
        Aborted: room became scarce at this moment.
    """
    if pinned_node_id and await tx.get_node(pinned_node_id) is None:
        raise errors.node_not_found(pinned_node_id)
    await vm_rules.require_sound(tx, draft)
    seen, vms = memory.seen, SeenVms(tx, memory.vms)
    keeper = RoomKeeper(tx, draft, config, vms)
    request = await prepared(tx, draft, pinned_node_id, await keeper.turn(seen))
    matter = await vms_that_matter(vms, draft, request)
    claims = Claims(tx, draft, vms, is_new=True)
    for _ in range(MAX_DECISIONS):
        seen = await look(tx, seen)
        deciding = partial(decide, memory, seen, matter, request, kept_off=claims.kept_off)
        placement = await keeper.admitted(deciding(config), seen, deciding)
        node_id = await claims.claim_first(placement)
        if node_id is not None:
            placed = replace(draft, node_id=node_id)
            await require_room_for_new(tx, placed)
            said = f"VM {draft.name} was asked for"
            await tx.insert_vm(placed, Event(EventType.VM_CREATED, said, actor=draft.created_by))
            await vm_rules.tell_findings(tx, placed, draft.created_by)
            return Placed(placed, seen[node_id].node, seen, vms.new | {placed.id: _standing(placed)})
    raise errors.no_node_fits(LOST_EVERY_RACE, ())


async def request_of(tx: Transaction, vm: Vm, pinned_node_id: str = "") -> PlacementRequest:
    """Build the request that places a VM, reading where the VMs are that its rules mean."""
    policy = vm.spec.placement
    node_of_vm = await tx.nodes_of_vms({*policy.affinity_vms, *policy.anti_affinity_vms})
    request = request_for(
        vm.spec,
        vm_id=vm.id,
        node_of_vm=node_of_vm,
        pinned_node_id=pinned_node_id,
        labels=vm.labels,
        project_id=vm.project_id,
    )
    # One that runs may be larger than its spec, while a change waits for its next start.
    return replace(request, vcpus=vm.vcpu_count, memory_bytes=vm.memory_bytes)


def decide(
    memory: NodeMemory,
    seen: SeenNodes,
    vms: Sequence[StandingVm],
    request: PlacementRequest,
    config: SchedulerConfig,
    kept_off: frozenset[str] = frozenset(),
) -> Placement:
    """Rank the nodes for a request.

    Args:
        vms: those that matter to it.
        kept_off: nodes with VMs that the one to be placed must not be beside.

    Raises:
        ResourceExhausted: no node fits; the error has one reason per node.
    """
    allowed = replace(request, anti_affinity_nodes=request.anti_affinity_nodes | kept_off)
    outcome = memory.live.decide(seen, vms, allowed, config)
    if isinstance(outcome, Unplaced):
        raise errors.no_node_fits(outcome.summary, outcome.per_node)
    return outcome


async def vms_that_matter(vms: SeenVms, vm: Vm, request: PlacementRequest) -> list[StandingVm]:
    """Read the VMs that a decision depends on, but for the one it is about.

    Those that its rules mean, and those whose rules mean it from afar; for one that needs huge pages, memory of a NUMA
    node or devices, all there are, since any may hold what it needs.
    """
    found = await vms.of_project() if request.needs.is_countable else await vms.meant_by(vm)
    if _may_be_meant(vm):
        known, subject = {each.id for each in found}, _ruled(vm)
        # Only a VM that exists can be named, which those of other projects may do too.
        far = await vms.reaching_far("" if vm.node_id else vm.project_id)
        found = [*found, *(each for each in far if each.id not in known and is_reached_by(subject, _ruled(each)))]
    return [each for each in found if each.id != vm.id]


async def prepared(tx: Transaction, vm: Vm, pinned_node_id: str, at_least: Turn = Turn.NONE) -> PlacementRequest:
    """Build the request that places a VM, and take a turn if it matters, beyond room, what others place meanwhile.

    `at_least` is what is needed of the turn whatever the rules are.

    VMs that it must be near to stay where they are until the transaction ends. They are held before the turn is taken,
    as by whoever moves them.
    """
    request = await request_of(tx, vm, pinned_node_id)
    if at_least < Turn.ALONE and not request.needs.is_countable and not is_bound_to_others(vm.spec.placement):
        if at_least == Turn.SHARED or _may_be_meant(vm):
            await tx.share_placement_turn(vm.id)
        return request
    selectors, ids = must_be_near(vm.spec.placement)
    if selectors or ids:
        near = await tx.vm_versions_selected(vm.project_id, [dict(each) for each in selectors], ids)
        await tx.hold_vms([each.vm_id for each in near])
    await tx.take_placement_turn()
    return await request_of(tx, vm, pinned_node_id)  # what it has read before it had the turn may not be so any more


def _may_be_meant(vm: Vm) -> bool:
    """Tell whether a rule of others may mean it. Of a new VM nobody knows the id, so without labels none does."""
    return bool(vm.labels or vm.node_id)


def _ruled(vm: Vm | StandingVm) -> RuledVm:
    return RuledVm(vm.id, vm.name, vm.project_id, vm.labels, vm.spec.placement)


def _standing(vm: Vm) -> StandingVm:
    return StandingVm(
        vm.id, vm.name, vm.project_id, vm.node_id, vm.version, vm.vcpu_count, vm.memory_bytes, vm.labels, vm.spec
    )


class _OnlyAsked(Exception):
    """Takes back a transaction that was only to show what would happen."""


async def would_be(store: Store, place: Callable[[Transaction], Awaitable[Located]]) -> VirtualMachine:
    """Place a VM, and take everything back: the answer is the VM as it would be, without an id.

    Raises:
        ApiError: whatever `place` refuses, since it is asked in earnest.
    """
    located: Located | None = None

    async def try_out(tx: Transaction) -> None:
        nonlocal located
        located = await place(tx)
        raise _OnlyAsked

    with suppress(_OnlyAsked):
        await store.run(try_out)
    assert located is not None  # noqa: S101 - else another error was raised
    return documents.virtual_machine(replace(located.vm, id=""))


class Claims:
    """Claims nodes for one VM, and lets go of those with VMs that it must not be beside, by its rules or by theirs.

    That is asked only of a node that is claimed: nobody else can come there until the transaction ends.
    """

    def __init__(self, tx: Transaction, vm: Vm, vms: SeenVms, *, is_new: bool) -> None:
        self._tx = tx
        self._is_meant = not is_new or _may_be_meant(vm) or is_bound_to_others(vm.spec.placement)
        self._ruled = _ruled(vm)
        self._vms = vms
        self.kept_off: frozenset[str] = frozenset()
        """Nodes with VMs that it must not be beside, so far as is known."""

    async def claim_first(self, placement: Placement) -> str | None:
        """Claim the best of the ranked nodes that has room and lets the VM in; None if there is none."""
        size = placement.request.size
        for ranked in placement.ranked:
            if ranked.node_id in self.kept_off or not await self._tx.claim(ranked.node_id, size):
                continue
            if await self._is_let_in(ranked.node_id):
                return ranked.node_id
            await self._tx.release(ranked.node_id, size)
            if ranked.node_id not in self.kept_off:
                await self._ask_project()
            self.kept_off |= {ranked.node_id}
        return None

    async def _is_let_in(self, node_id: str) -> bool:
        if not self._is_meant:
            return True
        return not any(self._is_kept_off_by(vm) for vm in await self._vms.on_node(node_id))

    async def _ask_project(self) -> None:
        """Find all nodes with such VMs of the project: where there is one there may be many."""
        vms = await self._vms.of_project(self._ruled.project_id)
        self.kept_off |= {vm.node_id for vm in vms if self._is_kept_off_by(vm)}

    def _is_kept_off_by(self, other: StandingVm) -> bool:
        if other.id == self._ruled.id:
            return False
        return must_be_apart(_ruled(other), self._ruled)
