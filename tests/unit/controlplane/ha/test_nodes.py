"""Nodes: who is suspected when, what opens a fence, what withdraws, proves and ends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    CutPower,
    EndFence,
    HaState,
    NodeHealth,
    NodeSeen,
    Observed,
    OpenAFence,
    OpenFence,
    PowerResult,
    ProofMethod,
    ProveFence,
    Shutdown,
    ShutdownPolicy,
    WithdrawFence,
)
from controlplane.ha.step import step
from tests.support.ha_core import CONFIG, OPEN, PROVEN, Core, alerts, of_kind, silent

SUSPECT_S, OBJECTION_S, PROOF_S = CONFIG.suspect_after_s, CONFIG.objection_s, CONFIG.proof_wait_s


def test_node_never_heard_is_unknown_until_it_was_listened_to_for_long_enough() -> None:
    core = Core(state=HaState(began_s=100.0))
    assert core.at(100 + SUSPECT_S - 0.1, NodeSeen("n1")) == []
    assert core.health() is NodeHealth.UNKNOWN
    assert of_kind(core.at(100 + SUSPECT_S, NodeSeen("n1")), OpenAFence)
    assert core.health() is NodeHealth.SUSPECT


def test_silence_counts_from_when_this_process_began_to_decide() -> None:
    core = Core(state=HaState(began_s=100.0))
    assert core.at(100.0, silent(heard_s=10.0)) == []
    assert core.health() is NodeHealth.UNKNOWN
    assert of_kind(core.at(100 + SUSPECT_S, silent(heard_s=10.0)), OpenAFence)


def test_silence_counts_from_before_the_process_decided_if_it_listened_already() -> None:
    core = Core(state=HaState(began_s=100.0, listening_s=50.0))
    assert core.at(100.0, silent(heard_s=100.1 - SUSPECT_S)) == []
    assert of_kind(core.at(100.1, silent(heard_s=100.1 - SUSPECT_S)), OpenAFence)


def test_silence_from_before_a_gap_in_listening_counts_from_its_end() -> None:
    core = Core(state=HaState(began_s=100.0, listening_s=98.0))
    assert core.at(98 + SUSPECT_S - 0.1, silent(heard_s=10.0)) == []
    assert of_kind(core.at(98 + SUSPECT_S, silent(heard_s=10.0)), OpenAFence)


def test_node_never_heard_has_time_to_be_heard_however_long_the_process_listened() -> None:
    core = Core(state=HaState(began_s=100.0, listening_s=50.0))
    assert core.at(100 + SUSPECT_S - 0.1, NodeSeen("n1")) == []
    assert of_kind(core.at(100 + SUSPECT_S, NodeSeen("n1")), OpenAFence)


@pytest.mark.parametrize(("second_heard_s", "is_fenced"), [(99.9, True), (None, False)])
def test_node_never_heard_counts_for_the_brake_of_who_listened_long(
    second_heard_s: float | None, is_fenced: bool
) -> None:
    others = [NodeSeen(f"n{number}", heard_s=99.9) for number in (3, 4)]
    nodes = [silent(heard_s=80.0), NodeSeen("n2", heard_s=second_heard_s), *others]
    _, effects = step(CONFIG, HaState(began_s=100.0, listening_s=50.0), Observed(nodes), 100.0)
    assert bool(of_kind(effects, OpenAFence)) is is_fenced


def test_wait_for_the_lease_begins_anew_with_who_decides_however_long_it_listened() -> None:
    core = Core(state=HaState(began_s=10.0, listening_s=0.0))
    node = silent(fence=OPEN, lease_proves=True)
    core.at(10.0, node)
    assert not of_kind(core.at(10 + PROOF_S - 0.1, node), ProveFence)
    assert of_kind(core.at(10 + PROOF_S, node), ProveFence)


def test_node_that_takes_part_again_has_time_to_be_heard_however_long_it_was_silent() -> None:
    core = Core()
    away, back = silent(heard_s=0.5, takes_part=False), silent(heard_s=0.5)
    assert core.at(1.0, silent(heard_s=0.5)) == []
    for now_s in (5.0, 50.0, 100.0):
        assert core.at(now_s, away) == []
        assert core.health() is NodeHealth.MAINTENANCE
    assert core.at(101.0, back) == []
    assert core.health() is NodeHealth.UNKNOWN
    assert core.at(100 + SUSPECT_S - 0.1, back) == []
    assert of_kind(core.at(100 + SUSPECT_S, back), OpenAFence)


def test_node_that_registers_later_has_time_to_be_heard() -> None:
    core = Core()
    assert core.at(0.0) == []
    assert core.at(100.0, NodeSeen("n1")) == []
    assert core.health() is NodeHealth.UNKNOWN
    assert core.at(100 + SUSPECT_S - 0.1, NodeSeen("n1")) == []
    assert of_kind(core.at(100 + SUSPECT_S, NodeSeen("n1")), OpenAFence)


def test_node_heard_before_the_process_began_to_decide_is_healthy_while_that_is_fresh() -> None:
    core = Core(state=HaState(began_s=100.0))
    core.at(100.0, silent(heard_s=99.0))
    assert core.health() is NodeHealth.HEALTHY


def test_silent_node_gets_a_fence_and_an_alert_each_step_until_the_fence_is_seen() -> None:
    core = Core()
    for now_s in (SUSPECT_S, SUSPECT_S + 0.5):
        effects = core.at(now_s, silent())
        assert [effect.node_id for effect in of_kind(effects, OpenAFence)] == ["n1"]
        assert AlertOf.NODE_LOST in alerts(effects)
    assert not of_kind(core.at(SUSPECT_S + 1, silent(fence=OPEN)), OpenAFence)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [({"is_armed": False}, AlertOf.DISARMED), ({"obstacle": "etcd does not answer"}, AlertOf.NOTHING_DECIDED)],
)
def test_nothing_is_fenced_while_disarmed_or_with_an_obstacle_and_that_is_told(
    facts: dict[str, object], kind: AlertOf
) -> None:
    core = Core()
    effects = core.at(SUSPECT_S, silent(), **facts)
    assert not of_kind(effects, OpenAFence)
    assert {kind, AlertOf.NODE_LOST} <= alerts(effects)
    assert core.health() is NodeHealth.SUSPECT
    assert "it is not fenced" in core.reason()


@pytest.mark.parametrize("shutdown", [None, Shutdown.REBOOT])
def test_silence_in_maintenance_is_nothing(shutdown: Shutdown | None) -> None:
    core = Core()
    assert core.at(1000.0, silent(takes_part=False, shutdown=shutdown)) == []
    assert core.health() is NodeHealth.MAINTENANCE


# -- open fences


def fencing(core: Core, now_s: float = 10.0, **facts: Any) -> NodeSeen:
    """Have the core see a fence for the first time."""
    node = silent(fence=OPEN, **facts)
    core.at(now_s, node)
    assert core.health() is NodeHealth.FENCING
    return node


def test_fence_is_withdrawn_when_another_process_heard_the_node() -> None:
    core = Core()
    node = fencing(core, lease_proves=True)
    effects = core.at(100.0, replace(node, fence=replace(OPEN, heard_by="replica-2")))
    assert [effect.reason for effect in of_kind(effects, WithdrawFence)] == ["it was heard by replica-2"]
    assert not of_kind(effects, ProveFence)


def test_fence_is_withdrawn_when_the_node_was_heard_since_even_if_it_is_silent_again() -> None:
    core = Core()
    node = fencing(core, lease_proves=True)
    effects = core.at(100.0, replace(node, heard_s=11.0))
    assert of_kind(effects, WithdrawFence)
    assert not of_kind(effects, ProveFence)


def test_fence_that_a_person_asked_for_is_not_withdrawn_by_a_heartbeat() -> None:
    core = Core()
    by_operator = replace(OPEN, is_by_operator=True)
    core.at(10.0, NodeSeen("n1", heard_s=10.0, fence=by_operator, has_power_agent=True))
    node = NodeSeen("n1", heard_s=12.0, fence=replace(by_operator, heard_by="replica-1"), has_power_agent=True)
    effects = core.at(12.0, node, is_armed=False)
    assert not of_kind(effects, WithdrawFence)
    assert of_kind(effects, CutPower)


def test_power_is_cut_only_after_others_could_object() -> None:
    core = Core()
    node = fencing(core, has_power_agent=True)
    assert not of_kind(core.at(10 + OBJECTION_S - 0.1, node), CutPower)
    assert of_kind(core.at(10 + OBJECTION_S, node), CutPower)
    assert of_kind(core.at(11 + OBJECTION_S, node), CutPower), "again, until it is seen to be under way"
    assert not of_kind(core.at(12 + OBJECTION_S, replace(node, power=PowerResult.UNDER_WAY)), CutPower)


def test_power_is_tried_again_at_intervals_after_its_controller_failed_and_a_person_is_told() -> None:
    core = Core()
    node = fencing(core, has_power_agent=True)
    core.at(20.0, replace(node, power=PowerResult.UNDER_WAY))
    failed = replace(node, power=PowerResult.FAILED, power_evidence="bmc-1 does not answer")
    effects = core.at(21.0, failed)
    assert not of_kind(effects, CutPower)
    assert AlertOf.FENCE_UNPROVEN in alerts(effects)
    assert of_kind(core.at(25.0, failed), CutPower)
    assert not of_kind(core.at(25.5, failed), CutPower)
    assert of_kind(core.at(30.0, failed), CutPower)


def test_confirmed_power_off_proves_at_once() -> None:
    core = Core()
    node = fencing(core, has_power_agent=True, power=PowerResult.OFF, power_evidence="bmc-1 says Off")
    [proof] = of_kind(core.at(10.5, node), ProveFence)
    assert (proof.method, proof.evidence, proof.fence_id) == (ProofMethod.POWER_OFF, "bmc-1 says Off", "f1")


@pytest.mark.parametrize("power", [PowerResult.NOT_TRIED, PowerResult.UNDER_WAY, PowerResult.FAILED])
def test_end_of_the_lease_proves_at_its_time_whatever_the_power_controller_does(power: PowerResult) -> None:
    core = Core()
    node = fencing(core, lease_proves=True, has_power_agent=True, power=power)
    assert not of_kind(core.at(10 + PROOF_S - 0.1, node), ProveFence)
    [proof] = of_kind(core.at(10 + PROOF_S, node), ProveFence)
    assert proof.method is ProofMethod.LEASE_EXPIRED


def test_new_leader_waits_for_the_lease_anew() -> None:
    core = Core()
    node = fencing(core, lease_proves=True)
    successor = Core(state=HaState(began_s=10 + PROOF_S))
    assert not of_kind(successor.at(10 + PROOF_S, node), ProveFence)
    assert not of_kind(successor.at(10 + 2 * PROOF_S - 0.1, node), ProveFence)
    assert of_kind(successor.at(10 + 2 * PROOF_S, node), ProveFence)


def test_another_fence_of_the_same_node_is_waited_for_anew() -> None:
    core = Core()
    fencing(core, lease_proves=True)
    second = silent(fence=OpenFence("f2"), lease_proves=True)
    assert not of_kind(core.at(10 + PROOF_S, second), ProveFence)
    assert of_kind(core.at(10 + 2 * PROOF_S, second), ProveFence)


def test_wait_does_not_begin_while_it_is_not_known_that_the_fence_is_published() -> None:
    core = Core()
    node = silent(fence=OPEN, lease_proves=True)
    core.at(10.0, node, obstacle="etcd does not answer")
    core.at(50.0, node)
    assert not of_kind(core.at(50 + PROOF_S - 0.1, node), ProveFence)
    assert of_kind(core.at(50 + PROOF_S, node), ProveFence)


def test_end_of_the_lease_proves_nothing_of_a_host_that_may_not_fence_itself_and_a_person_is_told_what_to_do() -> None:
    core = Core()
    node = fencing(core)
    effects = core.at(1000.0, node)
    assert not of_kind(effects, ProveFence)
    messages = [alert.message for alert in of_kind(effects, Alerting) if alert.kind is AlertOf.FENCE_UNPROVEN]
    assert "limiquantix ha confirm-dead n1" in messages[0]


def test_host_that_said_it_ended_all_vms_is_proven_after_others_could_object() -> None:
    core = Core(config=replace(CONFIG, shutdown_policy=ShutdownPolicy.FAILOVER))
    node = fencing(core, has_ended_vms=True, shutdown=Shutdown.POWER_OFF)
    assert not of_kind(core.at(11.0, node), ProveFence)
    assert [proof.method for proof in of_kind(core.at(10 + OBJECTION_S, node), ProveFence)] == [
        ProofMethod.HOST_REPORTED
    ]


def test_host_heard_in_another_boot_without_vms_is_proven_by_that() -> None:
    core = Core()
    node = fencing(core)
    [proof] = of_kind(core.at(11.0, replace(node, heard_s=11.0, is_rebooted=True)), ProveFence)
    assert proof.method is ProofMethod.HOST_REBOOTED
    objected = replace(node, heard_s=12.0, is_rebooted=True, fence=replace(OPEN, heard_by="replica-2"))
    effects = core.at(12.0, objected)
    assert of_kind(effects, WithdrawFence), "an objection came first, and the proof would be refused"
    assert not of_kind(effects, ProveFence)


def test_host_in_another_boot_proves_nothing_until_it_knows_of_its_fence() -> None:
    core = Core()
    heard = replace(fencing(core), heard_s=11.0, is_rebooted=True)
    unaware = core.at(11.0, replace(heard, knows_fence=False))
    assert not of_kind(unaware, ProveFence), "a command of before the fence may still start a VM there"
    assert not of_kind(unaware, WithdrawFence)
    assert of_kind(core.at(11.5, heard), ProveFence)


def test_disarming_withdraws_open_fences_and_cuts_no_power() -> None:
    core = Core()
    node = fencing(core, lease_proves=True, has_power_agent=True)
    effects = core.at(10 + PROOF_S, node, is_armed=False)
    assert of_kind(effects, WithdrawFence)
    assert not of_kind(effects, CutPower)
    assert not of_kind(effects, ProveFence)


def test_power_of_a_host_in_maintenance_is_not_cut_unless_a_person_asked() -> None:
    core = Core()
    node = fencing(core, has_power_agent=True, takes_part=False)
    assert not of_kind(core.at(50.0, node), CutPower)
    asked = replace(node, fence=replace(OPEN, is_by_operator=True))
    assert of_kind(core.at(51.0, asked), CutPower)


# -- proven fences


def test_proven_fence_ends_when_the_node_is_heard_after_the_proof() -> None:
    core = Core()
    core.at(10.0, silent(heard_s=9.0, fence=PROVEN))
    assert core.health() is NodeHealth.FENCED
    assert not of_kind(core.at(11.0, silent(heard_s=9.0, fence=PROVEN)), EndFence)
    effects = core.at(12.0, silent(heard_s=11.5, fence=PROVEN))
    assert of_kind(effects, EndFence)
    assert AlertOf.NODE_LOST not in alerts(effects)


# -- shutdowns on purpose


@pytest.mark.parametrize(
    ("policy", "shutdown", "is_left_alone"),
    [
        (ShutdownPolicy.CONDITIONAL, Shutdown.REBOOT, True),
        (ShutdownPolicy.CONDITIONAL, Shutdown.POWER_OFF, False),
        (ShutdownPolicy.FREEZE, Shutdown.REBOOT, True),
        (ShutdownPolicy.FREEZE, Shutdown.POWER_OFF, True),
        (ShutdownPolicy.FAILOVER, Shutdown.REBOOT, False),
        (ShutdownPolicy.FAILOVER, Shutdown.POWER_OFF, False),
        (ShutdownPolicy.MIGRATE, Shutdown.REBOOT, False),
        (ShutdownPolicy.MIGRATE, Shutdown.POWER_OFF, False),
    ],
)
def test_host_that_goes_on_purpose_is_fenced_as_the_policy_says(
    policy: ShutdownPolicy, shutdown: Shutdown, is_left_alone: bool
) -> None:
    core = Core(config=replace(CONFIG, shutdown_policy=policy))
    core.at(1.0, silent(shutdown=shutdown))
    assert core.health() is NodeHealth.SHUTTING_DOWN
    effects = core.at(SUSPECT_S, silent(shutdown=shutdown))
    assert bool(of_kind(effects, OpenAFence)) is not is_left_alone
    assert (core.health() is NodeHealth.SHUTTING_DOWN) is is_left_alone


def test_reboot_that_takes_too_long_is_a_failure_but_a_frozen_shutdown_waits() -> None:
    core = Core(config=replace(CONFIG, shutdown_policy=ShutdownPolicy.FREEZE))
    assert of_kind(core.at(CONFIG.frozen_s, silent(shutdown=Shutdown.REBOOT)), OpenAFence)
    assert core.at(10 * CONFIG.frozen_s, silent(shutdown=Shutdown.POWER_OFF)) == []
