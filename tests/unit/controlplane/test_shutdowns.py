"""Hosts that are shut down on purpose: noted for every process, answered by the policy, over once they are back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from controlplane.domain.migration import MigrationWish
from controlplane.domain.node_shutdown import NotedShutdown, ShutdownKind, shutdown_of
from controlplane.domain.operation import Operation, OperationState, StepRecord
from controlplane.domain.vm import PowerState
from controlplane.ha.model import ShutdownPolicy
from controlplane.operations.desk import Caller
from controlplane.services.hearing import Hearing
from controlplane.services.shutdowns import ShutdownService, resolved
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest, AnnounceShutdownResponse
from limiquantix.errors import FailedPrecondition, NotFound, Reason
from tests.support.builders import make_id, make_vm
from tests.support.control_plane_world import World
from tests.support.lease_site import LeaseSite

BOOT = "boot-1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Movers:
    """Takes orders to move; each goes on until it is told otherwise."""

    refused: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    request_ids: dict[str, set[str]] = field(default_factory=dict)

    async def move(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        if vm_id in self.refused:
            raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it cannot be moved")
        self.request_ids.setdefault(vm_id, set()).add(caller.request_id)
        state = OperationState.SUCCEEDED if vm_id in self.ended else OperationState.RUNNING
        steps = (StepRecord("choose"),)
        return Operation(make_id(), "vm.migrate", "vm", vm_id, "", caller.principal, NOW, steps, state=state)

    async def stop(self, vm_id: str, timeout_s: int, caller: Caller) -> Operation:
        raise AssertionError("nothing is stopped from here")

    async def cancel(self, operation_id: str, principal: str) -> None:
        raise AssertionError("nothing is called off")


@pytest.fixture
async def node_id(world: World) -> str:
    return (await world.add_node()).id


def service_of(world: World, policy: ShutdownPolicy, hearing: Hearing | None = None) -> ShutdownService:
    return ShutdownService(world.store, hearing or Hearing(0.0), Movers(), policy, world.clock, lambda: 5.0)


def says(
    node_id: str, kind: AnnounceShutdownRequest.Kind.ValueType, *, ended: bool = False, at_ms: int = 0
) -> AnnounceShutdownRequest:
    return AnnounceShutdownRequest(node_id=node_id, kind=kind, boot_id=BOOT, all_vms_ended=ended, said_at_ms=at_ms)


async def noted(world: World, node_id: str) -> NotedShutdown | None:
    return shutdown_of((await world.node(node_id)).annotations)


async def add_vm(world: World, node_id: str, name: str, state: PowerState.ValueType = PowerState.RUNNING) -> str:
    vm = make_vm(node_id=node_id, name=name, power_state=state)

    async def insert(tx: Transaction) -> None:
        await tx.insert_vm(vm)

    await world.store.run(insert)
    return vm.id


@pytest.mark.parametrize(
    ("policy", "kind", "expected"),
    [
        (ShutdownPolicy.CONDITIONAL, ShutdownKind.POWER_OFF, ShutdownPolicy.FAILOVER),
        (ShutdownPolicy.CONDITIONAL, ShutdownKind.REBOOT, ShutdownPolicy.FREEZE),
        (ShutdownPolicy.FREEZE, ShutdownKind.POWER_OFF, ShutdownPolicy.FREEZE),
        (ShutdownPolicy.FAILOVER, ShutdownKind.REBOOT, ShutdownPolicy.FAILOVER),
        (ShutdownPolicy.MIGRATE, ShutdownKind.REBOOT, ShutdownPolicy.MIGRATE),
    ],
)
def test_policy_says_what_becomes_of_vms(
    policy: ShutdownPolicy, kind: AnnounceShutdownRequest.Kind.ValueType, expected: ShutdownPolicy
) -> None:
    assert resolved(policy, kind) is expected


async def test_announcement_is_noted_once_and_known_to_every_process(world: World, node_id: str) -> None:
    hearing, other = Hearing(0.0), LeaseSite(world.store)
    service = service_of(world, ShutdownPolicy.CONDITIONAL, hearing)

    answer = await service.announce(says(node_id, ShutdownKind.POWER_OFF))
    version = (await world.node(node_id)).version
    assert (answer.policy, answer.ask_again_ms) == (AnnounceShutdownResponse.FAILOVER, 0)
    await service.announce(says(node_id, ShutdownKind.POWER_OFF))
    assert (await world.node(node_id)).version == version

    await other.heartbeats.refresh()
    for each in (hearing, other.hearing):
        said = each.announced(node_id)
        assert said is not None
        assert (said.kind, said.boot_id, said.all_vms_ended) == (ShutdownKind.POWER_OFF, BOOT, False)

    await service.announce(says(node_id, ShutdownKind.POWER_OFF, ended=True))
    await other.heartbeats.refresh()
    ended = other.hearing.announced(node_id)
    assert ended is not None
    assert ended.all_vms_ended


async def test_shutdown_that_is_called_off_is_forgotten(world: World, node_id: str) -> None:
    hearing, other = Hearing(0.0), LeaseSite(world.store)
    service = service_of(world, ShutdownPolicy.FREEZE, hearing)
    await service.announce(says(node_id, ShutdownKind.REBOOT))
    await other.heartbeats.refresh()

    await service.announce(says(node_id, ShutdownKind.CANCELLED))
    await other.heartbeats.refresh()

    assert hearing.announced(node_id) is None
    assert other.hearing.announced(node_id) is None
    assert await noted(world, node_id) is None


@pytest.mark.parametrize("is_noted", [True, False], ids=["said to another one too", "said to this one only"])
async def test_word_that_comes_after_it_was_called_off_counts_for_nothing(
    world: World, node_id: str, is_noted: bool
) -> None:
    """As one does that a control plane had before it was stopped, and looks at when it goes on."""
    site = LeaseSite(world.store)
    service = service_of(world, ShutdownPolicy.FAILOVER, site.hearing)
    if is_noted:
        await service.announce(says(node_id, ShutdownKind.POWER_OFF, ended=True, at_ms=1000))
    await service.announce(says(node_id, ShutdownKind.CANCELLED, at_ms=2000))

    late = says(node_id, ShutdownKind.POWER_OFF, ended=True, at_ms=1000)
    assert (await service.announce(late)).policy == AnnounceShutdownResponse.FAILOVER
    await site.heartbeats.refresh()

    assert await noted(world, node_id) is None
    assert site.hearing.announced(node_id) is None
    await service.announce(says(node_id, ShutdownKind.POWER_OFF, at_ms=3000))
    assert await noted(world, node_id) == NotedShutdown(ShutdownKind.POWER_OFF, BOOT, said_at_ms=3000)


async def test_late_word_has_no_vm_moved_away(world: World, node_id: str) -> None:
    service = service_of(world, ShutdownPolicy.MIGRATE)
    await add_vm(world, node_id, "web")
    await service.announce(says(node_id, ShutdownKind.CANCELLED, at_ms=2000))

    answer = await service.announce(says(node_id, ShutdownKind.POWER_OFF, at_ms=1000))

    assert isinstance(service.moves, Movers)
    assert service.moves.request_ids == {}
    assert (list(answer.vm_ids_left), answer.ask_again_ms) == ([], 0)


async def test_late_word_takes_nothing_back(world: World, node_id: str) -> None:
    service = service_of(world, ShutdownPolicy.FAILOVER)
    ended = says(node_id, ShutdownKind.POWER_OFF, ended=True, at_ms=2000)
    await service.announce(ended)
    version = (await world.node(node_id)).version

    await service.announce(says(node_id, ShutdownKind.POWER_OFF, at_ms=1000))
    await service.announce(says(node_id, ShutdownKind.CANCELLED, at_ms=1500))
    ended.said_at_ms = 2500
    await service.announce(ended)

    assert await noted(world, node_id) == NotedShutdown(ShutdownKind.POWER_OFF, BOOT, True, 2000)
    assert (await world.node(node_id)).version == version


async def test_each_daemon_that_begins_is_remembered(world: World, node_id: str) -> None:
    service = service_of(world, ShutdownPolicy.FAILOVER)
    for at_ms in (1000, 3000):
        await service.announce(says(node_id, ShutdownKind.CANCELLED, at_ms=at_ms))
    await service.announce(says(node_id, ShutdownKind.POWER_OFF, at_ms=2000))
    assert await noted(world, node_id) is None


async def test_shutdown_of_another_boot_is_not_called_off(world: World, node_id: str) -> None:
    hearing = Hearing(0.0)
    service = service_of(world, ShutdownPolicy.FAILOVER, hearing)
    await service.announce(says(node_id, ShutdownKind.REBOOT, ended=True))
    late = says(node_id, ShutdownKind.CANCELLED)
    late.boot_id = "boot-2"

    await service.announce(late)

    assert hearing.announced(node_id) is not None
    assert await noted(world, node_id) == NotedShutdown(ShutdownKind.REBOOT, BOOT, all_vms_ended=True)


async def test_node_that_is_heard_in_another_boot_is_back(world: World, node_id: str) -> None:
    site = LeaseSite(world.store)
    service = service_of(world, ShutdownPolicy.FREEZE, site.hearing)
    await service.announce(says(node_id, ShutdownKind.REBOOT))
    await site.heartbeats.refresh()
    await site.beat(node_id, boot_id=BOOT)
    assert await noted(world, node_id) is not None
    assert site.hearing.announced(node_id) is not None

    await site.beat(node_id, boot_id="boot-2")

    assert await noted(world, node_id) is None
    assert site.hearing.announced(node_id) is None


async def test_vms_are_moved_away_and_what_cannot_be_is_not_waited_for(world: World, node_id: str) -> None:
    service = service_of(world, ShutdownPolicy.MIGRATE)
    movers = service.moves
    assert isinstance(movers, Movers)
    first, second, stuck = [await add_vm(world, node_id, name) for name in ("first", "second", "stuck")]
    await add_vm(world, node_id, "off", PowerState.STOPPED)
    movers.refused.add(stuck)

    answer = await service.announce(says(node_id, ShutdownKind.POWER_OFF))
    assert answer.policy == AnnounceShutdownResponse.MIGRATE
    assert sorted(answer.vm_ids_left) == sorted([first, second])
    assert answer.ask_again_ms > 0

    movers.ended.update({first, second})
    answer = await service.announce(says(node_id, ShutdownKind.POWER_OFF))
    assert (list(answer.vm_ids_left), answer.ask_again_ms) == ([], 0)
    assert {len(ids) for ids in movers.request_ids.values()} == {1}  # asked for once, however often it asks


async def test_vm_that_is_on_its_way_is_waited_for_whoever_moves_it(world: World, node_id: str) -> None:
    service = service_of(world, ShutdownPolicy.MIGRATE)
    movers = service.moves
    assert isinstance(movers, Movers)
    moving = await add_vm(world, node_id, "moving", PowerState.MIGRATING)

    answer = await service.announce(says(node_id, ShutdownKind.POWER_OFF))

    assert (list(answer.vm_ids_left), answer.ask_again_ms > 0) == ([moving], True)
    assert movers.request_ids == {}


async def test_unknown_node_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await service_of(world, ShutdownPolicy.FREEZE).announce(says(make_id(), ShutdownKind.REBOOT))
