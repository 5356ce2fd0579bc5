"""Which moves of a plan belong together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from controlplane.drs.exchanges import PlannedMove, partners
from controlplane.drs.planner import plan
from controlplane.drs.snapshot import ClusterLoad
from tests.unit.controlplane.drs.test_planner import CONFIG, FREE, NOW_S, cluster, clusters, vm


def full_cluster() -> ClusterLoad:
    """Two nodes of which the idle one has no vCPU left: only an exchange with one of its VMs helps."""
    busy = [vm(f"b{number}", "n0", 8, 4, 0.45) for number in range(3)]
    idle = [vm(f"i{number}", "n1", 8, 4, 0.02) for number in range(4)]
    return cluster([*busy, *idle], 2)


NO_HEADROOM = replace(FREE, headroom_failures=0, cpu_threshold_percent=100.0)


def test_exchange_is_marked_on_both_sides_and_counts_as_two_moves() -> None:
    made = plan(full_cluster(), NO_HEADROOM, NOW_S)

    first, second = made.moves[:2]
    assert (first.exchanged_with, second.exchanged_with) == (second.vm.id, first.vm.id)
    assert (first.source.node_id, second.source.node_id) == ("n1", "n0")
    limited = plan(full_cluster(), replace(NO_HEADROOM, max_moves=2), NOW_S)
    assert len(limited.moves) == 2


def test_no_exchange_is_proposed_where_a_run_may_make_one_move() -> None:
    made = plan(full_cluster(), replace(NO_HEADROOM, max_moves=1), NOW_S)

    assert made.moves == ()
    assert made.message == "an exchange of two VMs would help, but a run proposes only 1 move"


def test_move_that_does_harm_alone_belongs_to_the_one_that_makes_up_for_it() -> None:
    harmful = PlannedMove(vm=1, source=1, target=0, gain=-2.0)
    useful = PlannedMove(vm=2, source=0, target=1, gain=9.0)
    elsewhere = PlannedMove(vm=3, source=2, target=3, gain=20.0)

    assert partners([harmful, elsewhere, useful], ()) == {1: 2, 2: 1}
    assert partners([useful, elsewhere], ()) == {}


def test_pairs_that_were_found_are_kept_if_both_still_move() -> None:
    one, two = (PlannedMove(vm=number, source=0, target=1, gain=1.0) for number in (1, 2))

    assert partners([one, two], [(1, 2)]) == {1: 2, 2: 1}
    assert partners([one], [(1, 2)]) == {}
    assert partners([one, two], [(1, 2), (2, 7), (1, 7)]) == {1: 2, 2: 1}


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_what_does_harm_in_its_place_belongs_to_another_move(before: ClusterLoad) -> None:
    for config in (CONFIG, FREE, replace(FREE, headroom_failures=0, max_moves=4)):
        made = plan(before, config, NOW_S)
        of_vm = {move.vm.id: move for move in made.moves}
        assert len(of_vm) == len(made.moves) <= config.max_moves
        lone = [move for move in made.moves if not move.exchanged_with]
        for move in made.moves:
            if move.exchanged_with:
                assert of_vm[move.exchanged_with].exchanged_with == move.vm.id
            elif move.imbalance_after >= move.imbalance_before:
                here, there = move.source.node_id, move.target.node_id
                assert not any(each.target.node_id == here or each.source.node_id == there for each in lone)
