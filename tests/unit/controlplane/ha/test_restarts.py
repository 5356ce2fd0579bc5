"""VMs of nodes that are proven dead: who is started elsewhere, when, and when the node is given back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Choice,
    Effect,
    EndFence,
    HaState,
    NodeSeen,
    OpenFence,
    Restart,
    Seen,
    VmSeen,
    Wanted,
)
from tests.support.ha_core import CONFIG, OPEN, PROVEN, Core, alerts, fenced_vm, of_kind, silent

DEAD = silent(fence=PROVEN)


def restarted(effects: Sequence[Effect]) -> list[str]:
    return [effect.vm_id for effect in of_kind(effects, Restart)]


def nowhere(vm_id: str, excluded: frozenset[str]) -> Choice:
    return Choice(reason="2 nodes lack memory")


def test_vm_of_a_node_proven_dead_is_started_elsewhere_until_it_is_seen_under_way() -> None:
    core = Core()
    for now_s in (10.0, 10.5):
        effects = core.at(now_s, DEAD, vms=[fenced_vm()])
        assert of_kind(effects, Restart) == [Restart("v1", "f1", "n1", "n2", attempt=1)]
    assert restarted(core.at(11.0, DEAD, vms=[fenced_vm(is_busy=True)])) == []


@pytest.mark.parametrize(
    "vm",
    [
        fenced_vm(proves_dead=False),
        fenced_vm(wanted=Wanted.STOPPED),
        fenced_vm(wanted=Wanted.IGNORED),
        fenced_vm(is_policy_restart=False),
        fenced_vm(is_busy=True),
        fenced_vm(node_id="n2"),
    ],
)
def test_vm_is_not_started_elsewhere_without_proof_wish_and_policy(vm: VmSeen) -> None:
    assert restarted(Core().at(10.0, DEAD, vms=[vm])) == []


def test_vm_is_not_started_elsewhere_upon_a_fence_that_is_only_open() -> None:
    assert restarted(Core().at(10.0, silent(fence=OPEN), vms=[fenced_vm()])) == []


@pytest.mark.parametrize("facts", [{"is_armed": False}, {"obstacle": "etcd does not answer"}])
def test_nothing_is_started_elsewhere_while_disarmed_or_with_an_obstacle(facts: dict[str, object]) -> None:
    core = Core()
    assert restarted(core.at(10.0, DEAD, vms=[fenced_vm()], **facts)) == []
    assert core.state.vms["v1"].attempt_count == 0
    assert restarted(core.at(10.5, DEAD, vms=[fenced_vm()])) == ["v1"]


def test_vm_that_its_host_may_not_have_ended_is_told_of() -> None:
    effects = Core().at(10.0, DEAD, vms=[fenced_vm(proves_dead=False)])
    assert AlertOf.VM_NOT_RESTARTED in alerts(effects)


def test_higher_priority_goes_first_and_no_more_at_once_than_configured() -> None:
    core = Core(config=replace(CONFIG, max_restarting_count=2))
    vms = [fenced_vm("v1"), fenced_vm("v2", priority=5), fenced_vm("v3", priority=9), fenced_vm("v4", priority=5)]
    assert restarted(core.at(10.0, DEAD, vms=vms)) == ["v3", "v2"]
    vms[2] = replace(vms[2], is_busy=True)
    assert restarted(core.at(10.5, DEAD, vms=vms)) == ["v2"]


def test_restarts_of_vms_that_are_placed_elsewhere_already_use_up_the_limit() -> None:
    core = Core(config=replace(CONFIG, max_restarting_count=2))
    vms = [fenced_vm("v1"), fenced_vm("v2")]
    assert restarted(core.at(10.0, DEAD, vms=vms, restarting_count=2)) == []
    assert restarted(core.at(10.5, DEAD, vms=vms, restarting_count=1)) == ["v1"]
    assert restarted(core.at(11.0, DEAD, vms=vms)) == ["v1", "v2"]


def test_vm_waits_for_those_it_starts_after_and_then_for_its_delay() -> None:
    core = Core()
    database, app = fenced_vm("v1"), fenced_vm("v2", priority=9, starts_after=("v1",), restart_delay_s=5.0)
    assert restarted(core.at(10.0, DEAD, vms=[database, app])) == ["v1"]
    assert core.state.vms["v2"].waits_for == "v1"
    runs = replace(database, node_id="n2", seen=Seen.RUNNING)
    assert restarted(core.at(20.0, DEAD, vms=[runs, app])) == []
    assert restarted(core.at(24.9, DEAD, vms=[runs, app])) == []
    assert restarted(core.at(25.0, DEAD, vms=[runs, app])) == ["v2"]


def test_vm_does_not_wait_for_what_shall_not_run_or_is_not_known() -> None:
    stopped = VmSeen("v1", "n2", wanted=Wanted.STOPPED, seen=Seen.STOPPED)
    app = fenced_vm("v2", starts_after=("v1", "never heard of"))
    assert restarted(Core().at(10.0, DEAD, vms=[stopped, app])) == ["v2"]


def test_vms_that_wait_for_each_other_in_a_circle_do_not_wait() -> None:
    vms = [fenced_vm("v1", starts_after=("v3",)), fenced_vm("v2", starts_after=("v1",))]
    vms += [fenced_vm("v3", starts_after=("v2",)), fenced_vm("v4", starts_after=("v4",))]
    assert restarted(Core().at(10.0, DEAD, vms=vms)) == ["v1", "v2", "v3", "v4"]


def test_vm_outside_a_circle_waits_for_one_in_it() -> None:
    vms = [fenced_vm("v1", starts_after=("v2",)), fenced_vm("v2", starts_after=("v1",))]
    vms.append(fenced_vm("v3", starts_after=("v1",)))
    assert restarted(Core().at(10.0, DEAD, vms=vms)) == ["v1", "v2"]


def test_vm_waits_no_longer_than_configured_for_one_that_never_runs() -> None:
    core = Core()
    vms = [fenced_vm("v1", is_busy=True), fenced_vm("v2", starts_after=("v1",))]
    core.at(10.0, DEAD, vms=vms)
    assert restarted(core.at(10 + CONFIG.max_wait_s - 1, DEAD, vms=vms)) == []
    assert restarted(core.at(10 + CONFIG.max_wait_s, DEAD, vms=vms)) == ["v2"]
    assert restarted(core.at(10.5 + CONFIG.max_wait_s, DEAD, vms=vms)) == ["v2"]


def test_attempts_that_failed_are_repeated_ever_more_slowly() -> None:
    core, asked_s = Core(), list[float]()
    busy = False
    for half_seconds in range(400):
        now_s = 10 + half_seconds / 2
        effects = core.at(now_s, DEAD, vms=[fenced_vm(is_busy=busy)])
        busy = bool(restarted(effects))
        if busy:
            asked_s.append(now_s)
            assert of_kind(effects, Restart)[0].attempt == len(asked_s)
    gaps = [after - before for before, after in itertools.pairwise(asked_s)]
    assert gaps[:6] == [3.0, 5.0, 9.0, 17.0, 33.0, 61.0]


def test_attempt_that_ended_unseen_is_followed_by_another() -> None:
    core = Core()
    attempts = [
        [effect.attempt for effect in of_kind(core.at(10 + half / 2, DEAD, vms=[fenced_vm()]), Restart)]
        for half in range(6)
    ]
    assert attempts == [[1], [1], [1], [1], [2], [2]]


def test_attempts_on_another_fence_count_anew() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm()])
    core.at(20.0, DEAD, vms=[fenced_vm(is_busy=True)])
    again = silent("n2", fence=OpenFence("f2", is_proven=True))
    [restart] = of_kind(core.at(30.0, again, vms=[fenced_vm(node_id="n2")]), Restart)
    assert (restart.attempt, restart.fence_id) == (1, "f2")


def test_vm_that_fits_nowhere_is_told_of_until_it_fits() -> None:
    core = Core()
    effects = core.at(10.0, DEAD, vms=[fenced_vm()], choose=nowhere)
    [alert] = [alert for alert in of_kind(effects, Alerting) if alert.kind is AlertOf.VM_FITS_NOWHERE]
    assert (alert.resource_id, alert.message) == ("v1", "no node takes it: 2 nodes lack memory")
    assert AlertOf.VM_FITS_NOWHERE in alerts(core.at(11.0, DEAD, vms=[fenced_vm()], choose=nowhere))
    effects = core.at(12.0, DEAD, vms=[fenced_vm()])
    assert restarted(effects) == ["v1"]
    assert AlertOf.VM_FITS_NOWHERE not in alerts(effects)


def test_only_healthy_nodes_are_offered_and_nobody_is_blamed_before_all_are_known() -> None:
    core, asked = Core(state=HaState(began_s=9.0)), list[frozenset[str]]()

    def choose(vm_id: str, excluded: frozenset[str]) -> Choice:
        asked.append(excluded)
        return Choice(reason="no room")

    effects = core.at(10.0, DEAD, NodeSeen("n2"), silent("n4", takes_part=False), vms=[fenced_vm()], choose=choose)
    assert asked == [frozenset({"n1", "n2", "n4"})]
    assert AlertOf.VM_FITS_NOWHERE not in alerts(effects)


# -- giving the node back

BACK = replace(DEAD, heard_s=12.0)


def test_node_that_is_back_waits_until_its_vms_are_on_their_way() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm()])
    assert not of_kind(core.at(12.0, BACK, vms=[fenced_vm(is_busy=True)]), EndFence)
    assert of_kind(core.at(12.5, BACK, vms=[fenced_vm(node_id="n2", is_busy=True)]), EndFence)


def test_node_that_is_back_gets_vms_that_fit_nowhere_else() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm()], choose=nowhere)
    assert of_kind(core.at(12.0, BACK, vms=[fenced_vm()], choose=nowhere), EndFence)


def test_node_that_is_back_gets_vms_that_were_not_proven_dead() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm(proves_dead=False)])
    assert of_kind(core.at(12.0, BACK, vms=[fenced_vm(proves_dead=False)]), EndFence)


def test_node_that_is_back_is_not_kept_for_vms_whose_attempts_fail() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm()])
    core.at(10.5, DEAD, vms=[fenced_vm(is_busy=True)])
    core.at(11.0, DEAD, vms=[fenced_vm()])
    assert of_kind(core.at(12.0, BACK, vms=[fenced_vm()]), EndFence)


def test_node_that_is_back_waits_for_vms_that_wait_for_their_turn() -> None:
    core = Core(config=replace(CONFIG, max_restarting_count=1))
    vms = [fenced_vm("v1", node_id="n3", is_busy=True), fenced_vm("v2")]
    dead_too = silent("n3", fence=OpenFence("f2", is_proven=True))
    core.at(10.0, DEAD, dead_too, vms=vms)
    assert not of_kind(core.at(12.0, BACK, dead_too, vms=vms), EndFence)


def test_node_that_is_back_is_given_back_while_disarmed() -> None:
    core = Core()
    core.at(10.0, DEAD, vms=[fenced_vm()], is_armed=False)
    assert of_kind(core.at(12.0, BACK, vms=[fenced_vm()], is_armed=False), EndFence)
