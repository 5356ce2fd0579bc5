"""How many nodes may be fenced at once, and when so many are silent that the fault may be ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.ha.model import (
    AlertOf,
    CutPower,
    HaConfig,
    NodeSeen,
    OpenAFence,
    OpenFence,
    PowerResult,
    ProofMethod,
    ProveFence,
    Shutdown,
)
from tests.support.ha_core import CONFIG, PROVEN, Core, alerts, of_kind, silent

SUSPECT_S = CONFIG.suspect_after_s


def opened(core: Core, silent_count: int, node_count: int, now_s: float = SUSPECT_S) -> tuple[int, bool]:
    """Have some of the nodes silent; returns how many fences are opened, and whether the brake is told."""
    core.others = [f"n{number}" for number in range(1, node_count + 1)]
    effects = core.at(now_s, *[silent(f"n{number}") for number in range(1, silent_count + 1)])
    return len(of_kind(effects, OpenAFence)), AlertOf.BRAKE in alerts(effects)


@pytest.mark.parametrize(
    ("silent_count", "node_count", "opened_count", "is_braking"),
    [
        (1, 1, 1, False),
        (1, 2, 1, False),
        (2, 2, 0, True),
        (1, 3, 1, False),
        (2, 3, 0, True),
        (1, 4, 1, False),
        (2, 4, 0, True),
        (2, 5, 1, False),
        (3, 5, 0, True),
        (2, 6, 2, False),
        (4, 9, 3, False),
        (5, 9, 0, True),
        (49, 100, 34, False),
        (50, 100, 0, True),
    ],
)
def test_few_silent_nodes_are_fenced_up_to_the_share_and_many_not_at_all(
    silent_count: int, node_count: int, opened_count: int, is_braking: bool
) -> None:
    assert opened(Core(), silent_count, node_count) == (opened_count, is_braking)


def test_fault_on_our_side_opens_no_fence_although_nodes_turn_suspect_one_after_another() -> None:
    core, last_s = Core(others=()), 100.0
    core.state = replace(core.state, began_s=0.0)
    # Heartbeats came every 2 s, each node at its own moment; then none came any more.
    nodes = [NodeSeen(f"n{number}", heard_s=last_s - 2 * number / 5) for number in range(5)]
    for tenths in range(200):
        effects = core.at(last_s + tenths / 10, *nodes)
        assert not of_kind(effects, OpenAFence), f"after {tenths / 10} s"
    assert AlertOf.BRAKE in alerts(effects)


def test_nodes_that_do_not_take_part_or_said_that_they_go_count_for_nothing() -> None:
    core = Core(others=("n5",))
    gone = [silent(f"n{number}", takes_part=False) for number in (2, 3)]
    effects = core.at(SUSPECT_S, silent("n1"), *gone, silent("n4", shutdown=Shutdown.REBOOT))
    assert [effect.node_id for effect in of_kind(effects, OpenAFence)] == ["n1"]
    assert AlertOf.BRAKE not in alerts(effects)


def test_fences_that_are_current_use_up_the_share_and_the_longest_silent_goes_first() -> None:
    core = Core(others=("n4", "n5", "n6", "n7", "n8"))
    first = silent("n1", fence=OpenFence("f1"))
    effects = core.at(20.0, first, silent("n2", heard_s=5.0), silent("n3", heard_s=1.0))
    assert [effect.node_id for effect in of_kind(effects, OpenAFence)] == ["n3"]
    assert "no more than 2" in core.reason("n2")


def test_node_fenced_long_ago_neither_uses_up_the_share_nor_counts_as_silent_with_others() -> None:
    core = Core()
    dead = silent("n1", fence=PROVEN)
    core.at(20.0, dead)
    second = silent("n2", heard_s=100.0)
    effects = core.at(100 + SUSPECT_S, dead, second)
    assert not of_kind(effects, OpenAFence)
    assert AlertOf.BRAKE in alerts(effects)
    effects = core.at(20 + CONFIG.at_once_s, dead, second)
    assert [effect.node_id for effect in of_kind(effects, OpenAFence)] == ["n2"]


def braking_with_open_fence(config: HaConfig = CONFIG, **facts: Any) -> tuple[Core, NodeSeen]:
    core = Core(config=config)
    node = silent("n1", fence=OpenFence("f1"), lease_proves=True, has_power_agent=True)
    core.at(10.0, node)
    return core, replace(node, **facts)


def test_brake_holds_open_fences_and_lets_them_go_on_when_it_is_released() -> None:
    core, node = braking_with_open_fence()
    effects = core.at(10 + CONFIG.proof_wait_s, node, silent("n2"), silent("n3"))
    assert core.state.is_braking
    assert not of_kind(effects, CutPower)
    assert not of_kind(effects, ProveFence)
    [proof] = of_kind(core.at(11 + CONFIG.proof_wait_s, node), ProveFence)
    assert proof.method is ProofMethod.LEASE_EXPIRED, "leases were denied all the time, so the wait goes on"


def test_brake_does_not_keep_back_what_was_seen() -> None:
    core, node = braking_with_open_fence(power=PowerResult.OFF)
    [proof] = of_kind(core.at(12.0, node, silent("n2"), silent("n3")), ProveFence)
    assert proof.method is ProofMethod.POWER_OFF


def test_brake_does_not_keep_back_a_fence_that_a_person_asked_for() -> None:
    core, node = braking_with_open_fence(fence=OpenFence("f1", is_by_operator=True))
    effects = core.at(10 + CONFIG.proof_wait_s, node, silent("n2"), silent("n3"))
    assert of_kind(effects, ProveFence)


def test_without_brake_and_share_all_silent_nodes_are_fenced() -> None:
    reckless = replace(CONFIG, brake_share=2.0, max_fencing_share=1.0)
    assert opened(Core(config=reckless), 5, 5) == (5, False)
