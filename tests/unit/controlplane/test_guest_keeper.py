"""Guests that fall silent: what counts as silence, what is done about it, and that no reset follows another unheard."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from controlplane.domain.alert import AlertKind
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Phase
from controlplane.domain.vm import PowerState, Vm
from controlplane.services.alerts import AlertService
from controlplane.services.guest_keeper import GuestKeeper
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.fake_daemons import FakeDaemon, unreachable
from tests.support.fake_guests import absent
from tests.support.fences import opened

RESET, ALERT = HaPolicy.GUEST_ACTION_RESET, HaPolicy.GUEST_ACTION_ALERT


def silent() -> FailedPrecondition:
    return FailedPrecondition(Reason.GUEST_AGENT_SILENT, "the guest agent does not answer")


@dataclass
class Ward:
    """A VM that runs, its host, and who watches over its guest."""

    world: World
    vm: Vm
    now_s: float = 1000.0
    is_active: bool = True
    keeper: GuestKeeper = field(init=False)

    def __post_init__(self) -> None:
        alerts = AlertService(self.world.store, self.world.clock)
        self.keeper = GuestKeeper(
            self.world.store, self.world.daemons, self.world.desk, alerts, lambda: self.is_active, lambda: self.now_s
        )

    @property
    def host(self) -> FakeDaemon:
        return self.world.daemons.of(self.vm.node_id)

    async def look(self, after_s: float = 10.0) -> None:
        """Let time pass, and look."""
        self.now_s += after_s
        self.world.clock.advance(after_s)
        await self.keeper.look()
        await self.world.settle()

    async def alerts(self) -> list[str]:
        found = await self.world.store.read(lambda tx: tx.open_alerts(AlertKind.HA_GUEST_SILENT))
        return [alert.message for alert in found]

    @property
    def reset_count(self) -> int:
        return self.host.methods(self.vm.id).count("force_stop_vm")

    async def stored(self) -> Vm:
        vm = await self.world.stored(self.vm.id)
        assert vm is not None
        return vm


async def ward(world: World, **policy: Any) -> Ward:
    ha_policy = HaPolicy(**{"guest_action": RESET, "guest_timeout_sec": 60, **policy})
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=ha_policy)
    await world.add_node()
    return Ward(world, await world.create(start=True, spec=spec))


async def test_guest_that_was_heard_and_fell_silent_is_reset_and_told_of(world: World) -> None:
    ward_ = await ward(world)
    await ward_.look()
    ward_.host.fail("ping_guest", silent())
    await ward_.look(59.0)
    assert (ward_.reset_count, await ward_.alerts()) == (0, [])

    await ward_.look(1.0)

    assert ward_.reset_count == 1
    (message,) = await ward_.alerts()
    assert "silent for 60 s: it is reset" in message
    vm = await ward_.stored()
    assert (vm.power_state, vm.restart_count) == (PowerState.RUNNING, 1)


async def test_guest_is_not_reset_again_before_it_was_heard(world: World) -> None:
    ward_ = await ward(world)
    await ward_.look()
    ward_.host.fail("ping_guest", silent())
    await ward_.look(60.0)
    for _ in range(5):
        await ward_.look(100.0)
    assert ward_.reset_count == 1
    assert await ward_.alerts() == []

    ward_.host.heal()
    await ward_.look()
    ward_.host.fail("ping_guest", absent())
    await ward_.look(60.0)

    assert ward_.reset_count == 2
    assert (await ward_.stored()).restart_count == 2


async def test_guest_that_was_never_heard_is_left_alone(world: World) -> None:
    ward_ = await ward(world)
    ward_.host.fail("ping_guest", absent())
    for _ in range(5):
        await ward_.look(100.0)
    assert (ward_.reset_count, await ward_.alerts()) == (0, [])


async def test_guest_that_speaks_again_in_time_is_left_alone_and_the_alert_ends(world: World) -> None:
    ward_ = await ward(world, guest_action=ALERT)
    await ward_.look()
    ward_.host.fail("ping_guest", silent())
    await ward_.look(60.0)
    assert len(await ward_.alerts()) == 1

    ward_.host.heal()
    await ward_.look()

    assert (ward_.reset_count, await ward_.alerts()) == (0, [])


async def test_policy_without_an_action_has_no_agent_asked(world: World) -> None:
    ward_ = await ward(world, guest_action=HaPolicy.GUEST_ACTION_UNSPECIFIED)
    await ward_.look()
    assert "ping_guest" not in ward_.host.methods(ward_.vm.id)


async def test_no_more_resets_than_the_policy_allows(world: World) -> None:
    ward_ = await ward(world, max_restarts=1)
    for _ in range(3):
        ward_.host.heal()
        await ward_.look()
        ward_.host.fail("ping_guest", silent())
        await ward_.look(60.0)
    assert ward_.reset_count == 1
    (message,) = await ward_.alerts()
    assert "not reset again" in message


async def test_host_that_does_not_answer_says_nothing_of_its_guests(world: World) -> None:
    ward_ = await ward(world)
    await ward_.look()
    ward_.host.fail("ping_guest", unreachable())
    await ward_.look(500.0)
    ward_.host.fail("ping_guest", silent())
    await ward_.look(59.0)
    assert (ward_.reset_count, await ward_.alerts()) == (0, [])


@pytest.mark.parametrize("what", ["fenced", "silent node", "paused", "runs elsewhere"])
async def test_vm_that_does_not_run_undisturbed_is_not_asked(world: World, what: str) -> None:
    ward_ = await ward(world)
    await ward_.look()

    async def disturb(tx: Transaction) -> None:
        vm, node = await tx.get_vm(ward_.vm.id), await tx.get_node(ward_.vm.node_id)
        assert vm is not None
        assert node is not None
        if what == "silent node":
            await tx.update_node(replace(node, phase=Phase.NOT_READY), Event(EventType.NODE_UPDATED))
        elif what == "paused":
            await tx.update_vm(replace(vm, power_state=PowerState.PAUSED), Event(EventType.VM_UPDATED))
        elif what == "runs elsewhere":
            await tx.update_vm(replace(vm, sightings={"x": PowerState.RUNNING}), Event(EventType.VM_UPDATED))

    if what == "fenced":
        await opened(world.store, ward_.vm.node_id)
    await world.store.run(disturb)
    asked = len(ward_.host.methods(ward_.vm.id))
    await ward_.look(500.0)
    assert len(ward_.host.methods(ward_.vm.id)) == asked


async def test_time_in_which_an_operation_is_under_way_does_not_count(world: World) -> None:
    ward_ = await ward(world)
    await ward_.look()
    ward_.host.fail("ping_guest", silent())
    await ward_.look(30.0)
    await world.vms.pause(ward_.vm.id)
    await world.vms.resume(ward_.vm.id)
    await ward_.look(59.0)
    assert (ward_.reset_count, await ward_.alerts()) == (0, [])


async def test_disarmed_resets_nothing_and_tells(world: World) -> None:
    ward_ = await ward(world)
    await world.store.run(_disarm)
    await ward_.look()
    ward_.host.fail("ping_guest", silent())
    await ward_.look(60.0)
    assert ward_.reset_count == 0
    assert len(await ward_.alerts()) == 1


async def _disarm(tx: Transaction) -> None:
    await tx.update_ha_settings(replace(await tx.ha_settings(), is_armed=False, reason="work", changed_by="ann"))


async def test_process_that_is_not_the_active_one_asks_nobody_and_forgets(world: World) -> None:
    ward_ = await ward(world)
    await ward_.look()
    ward_.is_active = False
    ward_.host.fail("ping_guest", silent())
    await ward_.look(500.0)
    ward_.is_active = True
    await ward_.look(500.0)
    assert (ward_.reset_count, await ward_.alerts()) == (0, [])
