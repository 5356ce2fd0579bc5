"""Room for VMs of nodes that fail: what it says is what restarting them by the scheduler comes to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.admission import KeptRoom
from controlplane.domain.node import Capacity, Phase
from controlplane.ha.admission import (
    LOST,
    HostRoom,
    ProtectedVm,
    failures_survived,
    lack_of,
    lacks,
    refusal,
    room_of,
    survives,
)
from controlplane.scheduler.decide import decide
from controlplane.scheduler.outcomes import Placement, SchedulerConfig
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView, PlacedVm

MIB = 2**20
ONE = KeptRoom(failures=1)


def host(name: str, vcpus: int = 16, mib: int = 16_384, used: tuple[int, int] = (0, 0), **flags: bool) -> HostRoom:
    return HostRoom(name, name, (vcpus, mib * MIB), (used[0], used[1] * MIB), **flags)


def vm(name: str, node: str, vcpus: int = 1, mib: int = 1024, priority: int = 0) -> ProtectedVm:
    return ProtectedVm(name, node, vcpus, mib * MIB, priority)


def with_claims(hosts: Sequence[HostRoom], vms: Sequence[ProtectedVm]) -> list[HostRoom]:
    """Add what the VMs claim to what others do."""
    return [
        HostRoom(
            each.id,
            each.hostname,
            each.capacity,
            (
                each.claimed[0] + sum(vm.vcpus for vm in vms if vm.node_id == each.id),
                each.claimed[1] + sum(vm.memory_bytes for vm in vms if vm.node_id == each.id),
            ),
            each.takes_vms,
            each.is_down,
        )
        for each in hosts
    ]


def restarted_by_the_scheduler(
    hosts: Sequence[HostRoom], vms: Sequence[ProtectedVm], failed: Sequence[str], strategy: Strategy
) -> int:
    """Restart the VMs of failed nodes one after the other by real decisions; returns how many have no place."""
    gone = {each.id for each in hosts if each.is_down} | set(failed)
    view = ClusterView(
        [
            Candidate(
                each.id,
                each.hostname,
                Phase.READY,
                each.takes_vms,
                True,
                Capacity(*each.capacity),
                Capacity(*each.claimed),
            )
            for each in hosts
            if each.id not in gone
        ]
    )
    homeless = 0
    for each in sorted((vm for vm in vms if vm.node_id in gone), key=lambda vm: (-vm.priority, vm.id)):
        request = PlacementRequest(each.vcpus, each.memory_bytes, vm_id=each.id)
        outcome = decide(view, request, SchedulerConfig(strategy))
        if isinstance(outcome, Placement):
            view.place(PlacedVm(outcome.node_id, request))
        else:
            homeless += 1
    return homeless


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[HostRoom], list[ProtectedVm]]:
    count = draw(st.integers(1, 6))
    bare = [
        host(
            f"node-{number}",
            vcpus=draw(st.sampled_from([0, 8, 16])),
            mib=draw(st.sampled_from([4096, 8192, 16_384])),
            used=(draw(st.integers(0, 4)), draw(st.integers(0, 4096))),
            takes_vms=draw(st.sampled_from([True, True, True, False])),
            is_down=draw(st.sampled_from([False, False, False, False, True])),
        )
        for number in range(count)
    ]
    vms = [
        vm(
            f"vm-{number}",
            f"node-{draw(st.integers(0, count - 1))}",
            draw(st.integers(1, 4)),
            draw(st.sampled_from([512, 1024, 1500, 3000])),
            draw(st.integers(0, 2)),
        )
        for number in range(draw(st.integers(0, 14)))
    ]
    return with_claims(bare, vms), vms


@settings(max_examples=300, deadline=None)
@given(clusters(), st.integers(0, 3), st.sampled_from(Strategy))
def test_what_survives_by_admission_is_restarted_by_the_scheduler_and_nothing_else(
    cluster: tuple[list[HostRoom], list[ProtectedVm]], failures: int, strategy: Strategy
) -> None:
    hosts, vms = cluster
    room = room_of(hosts, vms, strategy)
    count = min(failures, max(room.open_count - 1, 0))
    may_fail = [
        each.id for each in hosts if not each.is_down and (each.takes_vms or any(vm.node_id == each.id for vm in vms))
    ]

    survived = all(
        restarted_by_the_scheduler(hosts, vms, failed, strategy) == 0 for failed in combinations(may_fail, count)
    )

    assert survives(room, failures) == survived


@settings(max_examples=100, deadline=None)
@given(clusters(), st.integers(1, 4), st.sampled_from([512, 3000]), st.booleans())
def test_vm_that_is_admitted_leaves_no_more_vms_without_a_place_than_there_were(
    cluster: tuple[list[HostRoom], list[ProtectedVm]], vcpus: int, mib: int, is_protected: bool
) -> None:
    hosts, vms = cluster
    before = room_of(hosts, vms)
    for node in hosts:
        size = (vcpus, mib * MIB)
        after = before.with_vm(node.id, size, is_protected=is_protected, priority=1)
        if refusal(before, after, ONE) or not survives(before, 1):
            continue
        added = [*vms, vm("vm-new", node.id, vcpus, mib, 1)] if is_protected else vms
        # A VM that is not restarted elsewhere claims room all the same.
        claims = [*vms, vm("vm-new", node.id, vcpus, mib, 1)]
        rebuilt = room_of(with_claims([_without_claims(each, vms) for each in hosts], claims), added)
        assert survives(rebuilt, 1)


def _without_claims(each: HostRoom, vms: Sequence[ProtectedVm]) -> HostRoom:
    mine = [vm for vm in vms if vm.node_id == each.id]
    claimed = (
        each.claimed[0] - sum(vm.vcpus for vm in mine),
        each.claimed[1] - sum(vm.memory_bytes for vm in mine),
    )
    return HostRoom(each.id, each.hostname, each.capacity, claimed, each.takes_vms, each.is_down)


def test_refusal_names_node_vms_and_what_lacks() -> None:
    vms = [vm(f"vm-{number}", "node-a", 2, 4096) for number in range(3)]
    before = room_of(with_claims([host("node-a"), host("node-b")], vms), vms)

    after = before.with_vm("node-b", (2, 6144 * MIB), is_protected=False)

    assert refusal(before, after, ONE) == "if node-a failed, 1 of 3 VMs would find no room (2 vCPUs and 4,096 MiB)"


def test_vm_that_is_not_restarted_needs_no_room_itself() -> None:
    before = room_of([host("node-a"), host("node-b")], [])

    after = before.with_vm("node-a", (16, 16_384 * MIB), is_protected=False)
    after = after.with_vm("node-b", (16, 16_384 * MIB), is_protected=False)

    assert refusal(before, after, ONE) == ""


def test_protected_vm_that_only_one_node_can_hold_is_refused() -> None:
    before = room_of([host("node-a", mib=65_536), host("node-b")], [])

    after = before.with_vm("node-a", (1, 32_768 * MIB), is_protected=True)

    assert "if node-a failed, 1 of 1 VMs" in refusal(before, after, ONE)


def test_lack_that_was_there_before_refuses_nothing_that_does_not_add_to_it() -> None:
    large = vm("large", "node-a", 1, 32_768)
    before = room_of(with_claims([host("node-a", mib=65_536), host("node-b")], [large]), [large])
    assert not survives(before, 1)

    assert refusal(before, before.with_vm("node-b", (1, 1024 * MIB), is_protected=False), ONE) == ""
    assert refusal(before, before.with_vm("node-a", (1, 20_000 * MIB), is_protected=True), ONE) != ""


def test_cluster_of_one_node_refuses_nothing() -> None:
    before = room_of([host("node-a")], [])

    after = before.with_vm("node-a", (16, 16_384 * MIB), is_protected=True)

    assert refusal(before, after, ONE) == ""
    assert failures_survived(after) == 0


def test_vms_that_wait_already_need_their_room_first() -> None:
    vms = [vm("waits", "node-c", 1, 12_000), vm("runs", "node-a", 1, 12_000)]
    hosts = [host("node-a"), host("node-b"), host("node-c", takes_vms=False, is_down=True)]
    room = room_of(with_claims(hosts, vms), vms)

    assert failures_survived(room) == 0
    assert failures_survived(room.with_vm("node-b", (1, 6000 * MIB), is_protected=False)) == LOST


def test_failures_are_counted_until_one_too_many() -> None:
    vms = [vm(f"vm-{number}", f"node-{number % 4}", 1, 2048) for number in range(8)]
    room = room_of(with_claims([host(f"node-{number}", mib=8192) for number in range(4)], vms), vms)

    assert failures_survived(room) == 2
    assert next(lacks(room, 3)).homeless_count == 4


def test_share_counts_all_claims_of_nodes_that_take_vms() -> None:
    kept = KeptRoom(share=0.25)
    empty = room_of([host("node-a"), host("node-b"), host("node-c", takes_vms=False)], [])

    full = empty.with_vm("node-a", (16, 1024 * MIB), is_protected=False)

    assert refusal(empty, full, kept) == ""
    assert refusal(full, full.with_vm("node-b", (8, MIB), is_protected=False), kept) == ""
    assert refusal(full, full.with_vm("node-b", (9, MIB), is_protected=False), kept) == (
        "7 of 32 vCPUs would be left, 25% shall be"
    )
    assert refusal(full, full.with_vm("node-c", (9, MIB), is_protected=False), kept) == ""


def test_emptied_node_has_its_vms_where_they_fit() -> None:
    vms = [vm("one", "node-a", 1, 4096), vm("two", "node-a", 1, 4096)]
    room = room_of(with_claims([host("node-a", used=(1, 4096)), host("node-b"), host("node-c")], vms), vms)

    emptied = room.emptied("node-a", [(1, 4096 * MIB)])

    assert emptied.open_count == 2
    assert emptied.claimed[0].tolist() == [0, 0]
    assert {emptied.node_ids[node] for node in emptied.place} == {"node-b", "node-c"}
    assert lack_of(emptied, (1,)).homeless_count == 0


def test_emptied_node_has_its_vms_on_the_one_that_they_are_to_go_to() -> None:
    vms = [vm(f"vm-{number}", "node-a", 1, 6000) for number in range(2)]
    hosts = [host("node-a", used=(1, 2048)), host("node-b"), host("node-c"), host("node-d")]

    emptied = room_of(with_claims(hosts, vms), vms).emptied("node-a", [(1, 2048 * MIB)], "node-c")

    assert {emptied.node_ids[node] for node in emptied.place} == {"node-c"}
    assert emptied.claimed[:, 0].tolist() == [0, 0, 3, 0]


def test_vm_of_an_emptied_node_that_fits_nowhere_stays() -> None:
    vms = [vm("large", "node-a", 1, 12_288)]
    room = room_of(with_claims([host("node-a"), host("node-b", mib=8192)], vms), vms)

    emptied = room.emptied("node-a", [])

    assert emptied.claimed[:, 1].tolist() == [12_288 * MIB, 0]
    assert emptied.place.tolist() == [0]


@pytest.mark.parametrize("bad", [{"failures": -1}, {"share": 1.0}, {"share": -0.1}])
def test_kept_room_refuses_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot keep room"):
        KeptRoom(**bad)  # type: ignore[arg-type]
