"""What people are told of the manager's thoughts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Effect,
    HaConfig,
    HaState,
    NodeHealth,
    NodeState,
    Observed,
    VmSeen,
    VmState,
)
from controlplane.services.ha import NodeView, Waiting
from controlplane.services.ha_view import ManagerView
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane

LOST = NodeState(NodeHealth.FENCING, reason="silent for 7 s")


@pytest.mark.parametrize(
    ("vm", "known", "alerts", "told"),
    [
        (VmSeen("v", "n"), None, (), Waiting("v", "its node is not proven dead yet")),
        (VmSeen("v", "n", proves_dead=True), None, (), Waiting("v", "it is its turn soon")),
        (VmSeen("v", "n", is_busy=True), VmState(2), (), Waiting("v", "it is being started elsewhere", 2)),
        (
            VmSeen("v", "n", proves_dead=True),
            VmState(0, 0.0, "VM db"),
            (),
            Waiting("v", "it waits for VM db"),
        ),
        (
            VmSeen("v", "n", proves_dead=True),
            VmState(1),
            (Alerting(AlertOf.VM_FITS_NOWHERE, "v", "no node fits: 2 lack memory"),),
            Waiting("v", "no node fits: 2 lack memory", 1),
        ),
    ],
)
async def test_reason_of_a_waiting_vm(
    world: World, vm: VmSeen, known: VmState | None, alerts: tuple[Effect, ...], told: Waiting
) -> None:
    plane, view = plane_that_thinks(world, vm, known, alerts)
    assert (view.is_leader, dict(view.nodes()), list(view.waiting())) == (False, {}, [])

    await plane.manager.round()

    assert view.is_leader
    assert view.nodes() == {"n": NodeView(NodeHealth.FENCING, "silent for 7 s")}
    assert view.waiting() == [told]


async def test_time_of_the_next_attempt_is_told_by_the_wall_clock(world: World) -> None:
    plane, view = plane_that_thinks(world, VmSeen("v", "n", proves_dead=True), VmState(1, 1_004.0), ())
    await plane.manager.round()

    assert [each.next_attempt_at for each in view.waiting()] == [plane.now() + timedelta(seconds=4)]


def plane_that_thinks(
    world: World, vm: VmSeen, known: VmState | None, alerts: tuple[Effect, ...]
) -> tuple[HaPlane, ManagerView]:
    """Make a process that thinks this of the only VM, whatever it sees."""

    def step(config: HaConfig, state: HaState, observed: Observed, now_s: float) -> tuple[HaState, tuple[Effect, ...]]:
        observed.vms.append(vm)  # type: ignore[attr-defined]
        return HaState(state.began_s, {"n": LOST}, {vm.id: known} if known is not None else {}), alerts

    plane = HaPlane(world, step=step)
    return plane, ManagerView(plane.manager, plane.now, plane.clock)
