"""Which migrations may begin: never more than the limits allow, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.migration import Migration, MigrationRules, share_storage, turns
from limiquantix.compute.v1.node_pb2 import NodeSpec, StorageDomain
from tests.support.builders import START_OF_TIME, make_node

NODES = ("a", "b", "c", "d")


@st.composite
def queues(draw: st.DrawFn) -> list[Migration]:
    """Migrations between a few nodes, oldest first, none under way."""
    count = draw(st.integers(0, 12))
    found = []
    for number in range(count):
        source, target = draw(st.permutations(NODES))[:2]
        at = START_OF_TIME + timedelta(seconds=number)
        found.append(
            Migration(f"vm-{number}", f"op-{number}", source, target, at, cost=draw(st.sampled_from([1, 2, 5])))
        )
    return found


rules_of = st.builds(MigrationRules, node_units=st.integers(1, 4), cluster_units=st.integers(1, 8))


def begun(queue: list[Migration], rules: MigrationRules) -> list[Migration]:
    """Let those begin that may."""
    may = set(turns(queue, rules).may_begin)
    return [replace(each, granted_at=START_OF_TIME) if each.vm_id in may else each for each in queue]


@given(queues(), rules_of)
def test_limits_hold(queue: list[Migration], rules: MigrationRules) -> None:
    held = [each for each in begun(queue, rules) if each.granted_at is not None]
    use = Counter[str]()
    for each in held:
        for node_id in each.node_ids:
            use[node_id] += min(each.cost, rules.node_units)
    assert all(used <= rules.node_units for used in use.values())
    assert sum(min(each.cost, rules.cluster_units) for each in held) <= rules.cluster_units


@given(queues(), rules_of)
def test_asked_again_nobody_more_may_begin(queue: list[Migration], rules: MigrationRules) -> None:
    assert turns(begun(queue, rules), rules).may_begin == ()


@given(queues(), rules_of)
def test_oldest_begins_when_nothing_is_under_way(queue: list[Migration], rules: MigrationRules) -> None:
    assert not queue or turns(queue, rules).may_begin[0] == queue[0].vm_id


@given(queues(), rules_of)
def test_places_count_those_that_wait(queue: list[Migration], rules: MigrationRules) -> None:
    found = turns(queue, rules)
    waiting = [each.vm_id for each in queue if each.vm_id not in found.may_begin]
    assert found.places == {vm_id: place for place, vm_id in enumerate(waiting, 1)}


@given(queues(), rules_of, st.randoms(use_true_random=False))
def test_everybody_begins_in_the_end_whoever_ends_first(queue: list[Migration], rules: MigrationRules, random) -> None:  # type: ignore[no-untyped-def]
    for _ in range(len(queue) + 1):
        queue = begun(queue, rules)
        held = [each for each in queue if each.granted_at is not None]
        if not held:
            break
        queue.remove(random.choice(held))
    assert queue == []


def test_large_one_is_not_passed_for_ever_by_small_ones_that_come_later() -> None:
    def move(number: int, source: str, target: str, cost: int, *, held: bool = False) -> Migration:
        at = START_OF_TIME + timedelta(seconds=number)
        return Migration(f"vm-{number}", "", source, target, at, cost=cost, granted_at=at if held else None)

    queue = [move(0, "a", "b", 1, held=True), move(1, "a", "b", 2), move(2, "a", "b", 1), move(3, "c", "d", 1)]
    found = turns(queue, MigrationRules(node_units=2, cluster_units=8))
    assert found.may_begin == ("vm-3",)
    assert found.places == {"vm-1": 1, "vm-2": 2}


def test_storage_is_shared_if_the_target_has_all_of_the_sources() -> None:
    def node(*ids: str):  # type: ignore[no-untyped-def]
        return make_node(spec=NodeSpec(storage_domains=[StorageDomain(id=each) for each in ids]))

    assert share_storage(node("x"), node("x", "y"))
    assert not share_storage(node("x", "y"), node("x"))
    assert not share_storage(node(), node())
