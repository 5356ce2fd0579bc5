"""How many more VMs leave the room that is kept: as many as come in when each is asked about by itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.admission import KeptRoom
from controlplane.ha.admission import HostRoom, ProtectedVm, Room, best_node, refusal, room_of
from controlplane.ha.admitted import NewVm, admitted


def room(frees: list[int], vms: list[tuple[int, int]]) -> Room:
    """Nodes of 16 vCPUs and units of memory, of which so much is free, and protected VMs among what is claimed."""
    hosts = [HostRoom(f"n{at}", f"n{at}", (16, 16), (16 - free, 16 - free)) for at, free in enumerate(frees)]
    protected = [ProtectedVm(f"vm{at}", f"n{node}", size, size) for at, (node, size) in enumerate(vms)]
    return room_of(hosts, protected)


def test_empty_nodes_take_what_the_others_hold() -> None:
    found = admitted(room([16] * 3, []), NewVm((1, 1), is_protected=True), dict.fromkeys(("n0", "n1", "n2"), 16), ONE)

    assert sum(found.counts.values()) == 32
    assert "would find no room" in found.refusal


def test_node_takes_no_more_than_its_limit() -> None:
    found = admitted(room([16] * 3, []), NewVm((1, 1), is_protected=True), {"n0": 3, "n2": 1}, ONE)

    assert found.counts == {"n0": 3, "n2": 1}
    assert found.refusal == ""


def test_next_best_node_is_filled_where_the_best_one_must_be_left_free() -> None:
    # Only the emptiest node can restart the large VM of the second.
    found = admitted(
        room([8, 4, 14], [(1, 12)]), NewVm((4, 4), is_protected=False), dict.fromkeys(("n0", "n1", "n2"), 4), ONE
    )

    assert found.counts == {"n0": 2, "n1": 1}


ONE = KeptRoom(failures=1)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_count_is_that_of_asking_about_each_by_itself(data: st.DataObject) -> None:
    vms = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=8))
    claims = [sum(size for node, size in vms if node == at) for at in range(4)]
    frees = [max(16 - claim, 0) for claim in claims]
    before = room(frees, vms)
    size, is_protected = data.draw(st.integers(1, 5)), data.draw(st.booleans())
    limits = {f"n{at}": free // size for at, free in enumerate(frees)}

    found = admitted(before, NewVm((size, size), is_protected), limits, ONE)

    after, is_open = before, before.takes_vms.copy()
    while (node := best_node(after, is_open, after.claimed, before.capacity[0] * 0 + size)) is not None:
        more = after.with_vms([node], (size, size), is_protected=is_protected)
        if refusal(after, more, ONE):
            is_open[node] = False
        else:
            after = more
    taken = (after.claimed - before.claimed)[:, 0] / size
    assert [found.counts.get(f"n{at}", 0) for at in range(4)] == taken.tolist()
