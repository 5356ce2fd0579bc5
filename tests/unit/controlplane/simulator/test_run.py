"""What events do to a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Capacity
from controlplane.scheduler.plan import Placement, SchedulerConfig, plan
from controlplane.simulator.cluster_file import ClusterFile
from controlplane.simulator.journeys import Journeys, Wish
from controlplane.simulator.picture import draw
from controlplane.simulator.result import Fate, Result
from controlplane.simulator.run import EventUnusable, simulate
from controlplane.simulator.scenario import NewVms, Scenario, read_event
from controlplane.simulator.world import World, request_of, vm_of

PLAIN: dict[str, Any] = {"cpu_overcommit": 1.0, "memory_overcommit": 1.0, "reserved_cpus": 0, "reserved_memory": "0B"}


def node(name: str, cpus: int = 8, memory: str = "16GiB", **more: Any) -> dict[str, Any]:
    return {"name": name, "cpus": cpus, "memory": memory, **more}


def vm(name: str, on: str, cpus: int = 1, memory: str = "2GiB", **more: Any) -> dict[str, Any]:
    return {"name": name, "node": on, "cpus": cpus, "memory": memory, **more}


def cluster(nodes: list[dict[str, Any]], vms: list[dict[str, Any]] | None = None, **more: Any) -> ClusterFile:
    return ClusterFile.model_validate({"settings": PLAIN | more, "nodes": nodes, "vms": vms or []})


def run(found: ClusterFile, *events: str) -> Result:
    return simulate(found, Scenario(events=tuple(read_event(event) for event in events)))


def fates(result: Result) -> dict[str, Fate]:
    return {outcome.vm_name: outcome.fate for outcome in result.outcomes}


def places(result: Result) -> dict[str, str]:
    return {each.name: seen.name for seen in result.after for each in seen.vms}


def test_no_events_change_nothing() -> None:
    result = run(cluster([node("n1"), node("n2")], [vm("a", "n1")]))

    assert result.before == result.after
    assert result.ended_s == 0
    assert not result.faults


def test_placing_takes_what_fits_and_gives_the_schedulers_words() -> None:
    result = run(cluster([node("n1"), node("n2")]), "place web count=5 cpus=4 memory=1GiB")

    assert [outcome.fate for outcome in result.outcomes] == [Fate.PLACED] * 4 + [Fate.UNPLACED]
    (fault,) = result.faults
    assert fault.reason.startswith("no node fits: 2 nodes: 2 lack CPU")
    assert [name for name, _ in fault.per_node] == ["n1", "n2"]


def test_placing_all_or_nothing_places_nothing() -> None:
    result = run(cluster([node("n1")]), "place web count=3 cpus=4 memory=1GiB all-or-nothing")

    assert result.before == result.after
    assert {outcome.fate for outcome in result.outcomes} == {Fate.UNPLACED}


def test_placing_all_or_nothing_tries_the_largest_first() -> None:
    found = cluster([node("n1", cpus=100), node("n2", cpus=100)])
    scenario = Scenario.model_validate(
        {
            "events": [
                {
                    "place": {
                        "vms": [
                            {"name": "small", "count": 2, "memory": "4GiB"},
                            {"name": "large", "memory": "16GiB"},
                        ],
                        "mode": "all-or-nothing",
                    }
                }
            ]
        }
    )

    assert not simulate(found, scenario).faults


def test_drained_node_is_left_empty_and_in_maintenance() -> None:
    result = run(cluster([node("n1"), node("n2")], [vm("a", "n1"), vm("b", "n1")]), "drain n1")

    assert places(result) == {"a": "n2", "b": "n2"}
    assert result.after[0].phase == "MAINTENANCE"
    assert result.ended_s > 0


def test_drain_without_room_leaves_the_vm_with_the_reason() -> None:
    found = cluster([node("n1"), node("n2", memory="2GiB")], [vm("big", "n1", memory="4GiB"), vm("small", "n1")])
    result = run(found, "drain n1")

    assert fates(result) == {"small": Fate.MOVED, "big": Fate.STAYS}
    assert result.after[0].phase == "DRAINING"
    assert "lacks memory" in result.faults[0].reason


def test_drain_follows_a_vm_that_another_one_must_be_beside() -> None:
    vms = [vm("app", "n1", memory="4GiB", placement={"affinityVms": ["db"]}), vm("db", "n1", memory="2GiB")]

    assert places(run(cluster([node("n1"), node("n2")], vms), "drain n1")) == {"app": "n2", "db": "n2"}


def test_drain_waits_for_its_turn_at_the_limits() -> None:
    vms = [vm(f"v{n}", "n1") for n in range(4)]
    one = run(cluster([node("n1"), node("n2")], vms, times={"migrations_per_node": 1}), "drain n1")
    two = run(cluster([node("n1"), node("n2")], vms, times={"migrations_per_node": 2}), "drain n1")

    assert one.ended_s == pytest.approx(2 * two.ended_s)
    begins = sorted(row.at_s for row in one.timeline if row.what == "migrate")
    assert len(set(begins)) == 4


def test_guest_that_writes_too_fast_stays() -> None:
    result = run(cluster([node("n1"), node("n2")], [vm("a", "n1", writes_per_s="10GiB")]), "drain n1")

    assert fates(result) == {"a": Fate.STAYS}
    assert "writes 10240 MiB/s" in result.faults[0].reason
    assert result.after[1].claimed == Capacity(0, 0)


def test_vm_with_a_device_of_its_host_stays() -> None:
    spec = {"pciDevices": [{"hostAddress": "0000:01:00.0"}]}
    result = run(cluster([node("n1"), node("n2")], [vm("a", "n1", spec=spec)]), "drain n1")

    assert fates(result) == {"a": Fate.STAYS}
    assert "devices of its host" in result.faults[0].reason


def test_failed_nodes_vms_are_restarted_by_priority() -> None:
    vms = [vm("low", "n1", memory="8GiB"), vm("high", "n1", memory="8GiB", priority=10)]
    result = run(cluster([node("n1"), node("n2", memory="8GiB")], vms), "fail n1")

    assert fates(result) == {"high": Fate.RESTARTED, "low": Fate.DOWN}
    assert [outcome.vm_name for outcome in result.faults] == ["low"]


def test_failed_nodes_stopped_vms_and_those_not_to_be_restarted_are_left() -> None:
    vms = [vm("off", "n1", state="STOPPED"), vm("not", "n1", auto_restart=False)]
    result = run(cluster([node("n1"), node("n2")], vms), "fail n1")

    assert set(fates(result).values()) == {Fate.LEFT}
    assert not result.faults


def test_node_that_comes_back_has_its_vms_again() -> None:
    found = cluster([node("n1"), node("n2", memory="1GiB")], [vm("a", "n1")])
    result = run(found, "fail n1", "wait 1h", "enable n1")

    assert fates(result) == {"a": Fate.BACK}
    assert not result.faults
    assert result.ended_s == 30 + 3600


def test_two_nodes_that_fail_give_each_other_nothing() -> None:
    result = run(cluster([node("n1"), node("n2"), node("n3")], [vm("a", "n1"), vm("b", "n2")]), "fail n1 n2")

    assert places(result) == {"a": "n3", "b": "n3"}


def test_added_node_takes_vms() -> None:
    result = run(cluster([node("n1", cpus=1)]), "add-node n2 cpus=64 memory=64GiB", "place a cpus=32 memory=1GiB")

    assert places(result) == {"a": "n2"}


def test_balance_evens_out_and_a_second_one_does_nothing() -> None:
    vms = [vm(f"v{n}", "n1") for n in range(6)]
    found = cluster([node("n1"), node("n2"), node("n3")], vms, balancing={"hold": "0s", "node_cool_down": "0s"})
    result = run(found, "balance", "balance")

    assert result.imbalance_after < result.imbalance_before
    assert dict(result.events[0].fates).keys() == {Fate.MOVED}
    assert result.events[1].fates == ()


def test_balance_holds_vms_until_time_has_passed() -> None:
    vms = [vm(f"v{n}", "n1") for n in range(6)]
    found = cluster([node("n1"), node("n2", schedulable=False)], vms)
    early = run(found, "drain n1", "enable n1 n2", "balance")
    assert early.events[-1].fates == () or early.outcomes  # nothing could be moved by the drain

    found = cluster([node("n1"), node("n2")], vms)
    soon = run(found, "drain n1", "enable n1", "balance")
    later = run(found, "drain n1", "enable n1", "wait 2h", "balance")

    assert soon.events[-1].fates == ()
    assert dict(later.events[-1].fates)[Fate.MOVED] > 0


def test_vm_that_a_plan_moves_twice_arrives_before_it_leaves_again() -> None:
    world = World(cluster([node("n1"), node("n2"), node("n3")], [vm("a", "n1")]))
    journeys = Journeys(world, 1, 0.0, at_once=2, failed=Fate.SKIPPED, in_order=True)
    ended_s = journeys.make([Wish("a", "n2"), Wish("a", "n3")])

    assert world.vms["a"].node_id == "n3"
    first, second = journeys.timeline
    assert second.at_s == first.at_s + first.took_s
    assert ended_s == second.at_s + second.took_s
    assert [seen.claimed.vcpus for seen in world.look()] == [0, 0, 1]


def test_apart_rule_by_label_holds_for_new_vms() -> None:
    rule = {"vmRules": [{"kind": "APART", "labels": {"app": "db"}}]}
    found = cluster([node("n1"), node("n2")], [vm("db", "n1", labels={"app": "db"}, placement=rule)])
    scenario = Scenario.model_validate(
        {"events": [{"place": {"vms": [{"name": "other", "count": 2, "memory": "1GiB", "labels": {"app": "db"}}]}}]}
    )

    assert set(places(simulate(found, scenario)).items()) >= {("other-1", "n2"), ("other-2", "n2")}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("drain n9", "event 1: there is no node 'n9'"),
        ("fail n1 n9", "event 1: there is no node 'n9'"),
        ("drain dead", "node dead is NOT_READY"),
        ("place a memory=1GiB", "there is a VM 'a' already"),
        ("add-node n1 cpus=1 memory=1GiB", "there is a node 'n1' already"),
    ],
)
def test_event_that_makes_no_sense_here_is_refused(event: str, message: str) -> None:
    with pytest.raises(EventUnusable, match=message):
        run(cluster([node("n1"), node("dead", phase="NOT_READY")], [vm("a", "n1")]), event)


def test_drain_of_the_last_node_leaves_everything_there() -> None:
    result = run(cluster([node("n1")], [vm("a", "n1")]), "drain n1")

    assert fates(result) == {"a": Fate.STAYS}


def test_node_claimed_beyond_its_room_is_warned_about() -> None:
    result = run(cluster([node("n1", cpus=1)], [vm("a", "n1", cpus=4)]))

    assert result.warnings == ("node n1 has more claimed than may be; nothing is placed there",)


# -- whatever the cluster

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 16))


@st.composite
def clusters(draw: st.DrawFn) -> ClusterFile:
    """Clusters in which nothing is claimed beyond what there is."""
    nodes = [
        node(f"n{index}", cpus, f"{memory}GiB")
        for index, (cpus, memory) in enumerate(
            draw(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 64)), min_size=1, max_size=6))
        )
    ]
    free = {each["name"]: [each["cpus"], int(each["memory"].removesuffix("GiB"))] for each in nodes}
    vms = []
    for index, ((cpus, memory), at) in enumerate(draw(st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=12))):
        where = nodes[at % len(nodes)]["name"]
        if free[where][0] >= cpus and free[where][1] >= memory:
            free[where][0] -= cpus
            free[where][1] -= memory
            vms.append(vm(f"v{index}", where, cpus, f"{memory}GiB", priority=index % 3))
    return cluster(nodes, vms)


@settings(max_examples=60, deadline=None)
@given(clusters(), st.lists(SIZES, max_size=8))
def test_placement_is_what_the_scheduler_says(found: ClusterFile, sizes: list[tuple[int, int]]) -> None:
    new = [NewVms.model_validate(vm(f"new-{n}", "", c, f"{m}GiB")) for n, (c, m) in enumerate(sizes)]
    if not new:
        return
    result = simulate(found, Scenario.model_validate({"events": [{"place": {"vms": new}}]}))
    world = World(found)
    requests = [request_of(vm_of(each, "")) for each in new]
    outcomes = plan(world.view.candidates, requests, SchedulerConfig()).outcomes

    assert [outcome.node for outcome in result.outcomes] == [
        outcome.node_id if isinstance(outcome, Placement) else "" for outcome in outcomes
    ]


@settings(max_examples=60, deadline=None)
@given(clusters(), st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["drain", "fail"]))
def test_no_event_exceeds_capacity_or_loses_a_vm(found: ClusterFile, picks: list[int], verb: str) -> None:
    names = [found.nodes[pick % len(found.nodes)].name for pick in picks]
    events = [f"{verb} {name}" for name in dict.fromkeys(names)]
    result = run(found, *events, *([f"enable {' '.join(names)}"] if names else []), "wait 3h", "balance runs=3")

    for seen in result.after:
        claimed = Capacity(sum(v.claim.vcpus for v in seen.vms), sum(v.claim.memory_bytes for v in seen.vms))
        assert seen.claimed == claimed
        assert claimed.vcpus <= seen.capacity.vcpus
        assert claimed.memory_bytes <= seen.capacity.memory_bytes
    assert sorted(places(result)) == sorted(vm.name for vm in found.vms)
    assert result.imbalance_after >= 0


@settings(max_examples=25, deadline=None)
@given(clusters())
def test_same_files_twice_give_the_same_result_and_picture(found: ClusterFile) -> None:
    first = found.nodes[0].name
    events = (f"drain {first}", "wait 2h", f"enable {first}", "balance", "place x count=3 memory=2GiB")
    one, two = run(found, *events), run(ClusterFile.model_validate(found.model_copy(deep=True)), *events)

    assert one == two
    assert draw(one, "a") == draw(two, "a")
