"""How often a VM is started where it is and elsewhere, and when a person is told that nothing of that helped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.restarts import is_relocated_next, is_relocation, why_not_restarted
from controlplane.domain.vm import PowerState, Vm
from controlplane.ha.model import AlertOf
from limiquantix.compute.v1.vm_pb2 import HaPolicy, VmSpec, VmStatus
from tests.support.builders import make_vm
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane


def stopped(count: int, *, is_moved: bool, state: int = PowerState.STOPPED, error: str = "", **policy: object) -> Vm:
    return make_vm(
        spec=VmSpec(ha_policy=HaPolicy(**{"auto_restart": True, **policy})),  # type: ignore[arg-type]
        power_state=state,
        wanted_state=PowerState.RUNNING,
        restart_count=count,
        error_message=error,
        details=VmStatus(failover_unfinished=is_moved),
    )


@pytest.mark.parametrize(
    ("policy", "moves"),
    [
        (HaPolicy(), [4]),
        (HaPolicy(max_restarts=1), [2]),
        (HaPolicy(max_restarts=2, max_relocations=3), [3, 6, 9]),
    ],
)
def test_vm_moves_on_after_the_starts_of_each_node_and_no_more_often_than_its_policy_says(
    policy: HaPolicy, moves: list[int]
) -> None:
    assert [number for number in range(1, 30) if is_relocation(policy, number)] == moves


@pytest.mark.parametrize(
    ("vm", "is_moved_on"),
    [
        (stopped(2, is_moved=False, max_restarts=2, error="no memory"), True),
        (stopped(1, is_moved=False, max_restarts=2, error="no memory"), False),
        (stopped(3, is_moved=False, max_restarts=2, error="no memory"), False),
        (stopped(3, is_moved=False, error="no memory"), True),
        (stopped(2, is_moved=False, max_restarts=2, state=PowerState.CRASHED), False),
        (stopped(2, is_moved=False, max_restarts=2, error="no memory", auto_restart=False), False),
        (stopped(2, is_moved=False, max_restarts=2, error="no memory", condition=HaPolicy.NEVER), False),
        (stopped(2, is_moved=True, max_restarts=2), True),
    ],
)
def test_vm_is_moved_on_after_starts_that_failed_and_not_after_such_as_it_ended_after(
    vm: Vm, is_moved_on: bool
) -> None:
    assert is_relocated_next(vm) == is_moved_on


def test_person_is_told_once_the_starts_on_the_last_node_are_used_up() -> None:
    assert [bool(why_not_restarted(stopped(count, is_moved=True, max_restarts=1))) for count in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert "in 4 attempts" in why_not_restarted(stopped(3, is_moved=True, max_restarts=1))


@pytest.mark.parametrize(
    ("vm", "is_told"),
    [
        (stopped(2, is_moved=False, max_restarts=2), True),
        (stopped(1, is_moved=False, max_restarts=2), False),
        (stopped(1000, is_moved=False), False),
        (stopped(2, is_moved=False, max_restarts=2, condition=HaPolicy.ON_FAILURE), False),
        (stopped(2, is_moved=False, max_restarts=2, condition=HaPolicy.ON_FAILURE, state=PowerState.CRASHED), True),
        (stopped(9, is_moved=True, auto_restart=False), False),
        (stopped(2, is_moved=False, max_restarts=2, error="no memory"), False),
        (stopped(3, is_moved=False, max_restarts=2, error="no memory"), True),
    ],
)
def test_vm_that_ends_again_and_again_is_told_of_when_it_is_left_off(vm: Vm, is_told: bool) -> None:
    assert bool(why_not_restarted(vm)) == is_told


async def test_alert_stays_until_the_vm_runs(world: World) -> None:
    plane = HaPlane(world)
    vm = stopped(3, is_moved=True, max_restarts=1)
    await world.store.run(lambda tx: tx.insert_vm(vm))
    await plane.round()
    (message,) = await plane.open_alerts(AlertOf.VM_NOT_RESTARTED)
    assert "in 4 attempts" in message

    stored = await world.stored(vm.id)
    assert stored is not None
    await world.store.run(lambda tx: tx.update_vm(replace(stored, power_state=PowerState.RUNNING)))
    plane.now_s += 5
    await plane.round()
    assert await plane.open_alerts(AlertOf.VM_NOT_RESTARTED) == []
