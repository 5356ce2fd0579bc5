"""Which turn a placement takes for the room that is kept: alone, unless there is so much that it cannot matter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controlplane.domain.admission import KeptRoom
from controlplane.domain.node import Capacity, Node, NodeClaims, Phase
from controlplane.ha.admission import HostRoom, ProtectedVm, room_of, survives
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.kept_room import SHARED_BY, RoomKeeper, Turn
from controlplane.services.seen import SeenVms
from controlplane.state.schema_base import PLACEMENT_TURN_COUNT
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from tests.support.builders import GIB, make_node, make_vm

ONE = KeptRoom(failures=1)


class Reading:
    """A transaction that knows nodes only."""

    def __init__(self, nodes: list[Node]) -> None:
        self.known = nodes

    async def node_claims(self) -> list[NodeClaims]:
        return [
            NodeClaims(each.id, each.version, each.allocated.vcpus, each.allocated.memory_bytes) for each in self.known
        ]

    async def nodes(self, ids: Any) -> list[Node]:
        return [each for each in self.known if each.id in ids]


async def turn_of(nodes: list[Node], kept: KeptRoom = ONE, *, cores: int = 1, gib: int = 1) -> Turn:
    spec = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=gib * 1024))
    reading: Any = Reading(nodes)
    return await RoomKeeper(reading, make_vm(spec=spec), SchedulerConfig(kept_room=kept), SeenVms(reading, {})).turn({})


def nodes_of(count: int, used: int = 0, **fields: Any) -> list[Node]:
    return [
        make_node(vcpus=64, memory_bytes=64 * GIB, allocated=Capacity(used, used * GIB), **fields) for _ in range(count)
    ]


def test_turn_is_reckoned_with_for_as_many_as_may_share_it() -> None:
    assert SHARED_BY == PLACEMENT_TURN_COUNT


async def test_no_turn_is_taken_where_no_room_is_kept_or_nothing_can_be_restarted() -> None:
    assert await turn_of(nodes_of(8), KeptRoom()) == Turn.NONE
    assert await turn_of(nodes_of(1)) == Turn.NONE


async def test_turn_is_shared_while_there_is_plenty_and_the_vm_is_small() -> None:
    assert await turn_of(nodes_of(8)) == Turn.SHARED
    assert await turn_of(nodes_of(8, used=8)) == Turn.SHARED
    assert await turn_of(nodes_of(8), KeptRoom(share=0.25)) == Turn.SHARED


@pytest.mark.parametrize("size", [{"cores": 2}, {"gib": 2}])
async def test_turn_is_taken_alone_for_a_large_vm(size: dict[str, Any]) -> None:
    assert await turn_of(nodes_of(8), **size) == Turn.ALONE


async def test_turn_is_taken_alone_where_room_may_be_scarce() -> None:
    assert await turn_of(nodes_of(8, used=40)) == Turn.ALONE
    assert await turn_of(nodes_of(2)) == Turn.ALONE
    assert await turn_of(nodes_of(8, used=45), KeptRoom(share=0.25)) == Turn.ALONE
    # VMs of a node that is silent wait for room even where only one node is left.
    assert await turn_of([*nodes_of(1), *nodes_of(1, used=60, phase=Phase.NOT_READY)]) == Turn.ALONE


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_where_the_turn_is_shared_all_vms_can_be_restarted_whatever_comes_with_it(data: st.DataObject) -> None:
    nodes = nodes_of(data.draw(st.integers(3, 12)))
    vms = []
    for number in range(data.draw(st.integers(0, 20))):
        size = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24)) * GIB
        vms.append((data.draw(st.integers(0, len(nodes) - 1)), size, f"vm-{number}"))
    claimed = [
        tuple(sum(size[kind] for at, size, _ in vms if at == place) for kind in (0, 1)) for place in range(len(nodes))
    ]
    assume(all(vcpus <= 64 and memory <= 64 * GIB for vcpus, memory in claimed))
    used = [
        make_node(id=node.id, vcpus=64, memory_bytes=64 * GIB, allocated=Capacity(*claimed[place]))
        for place, node in enumerate(nodes)
    ]
    assume(await turn_of(used) == Turn.SHARED)
    # As many as share the turn come at once to wherever is worst; here to one node.
    target = data.draw(st.integers(0, len(nodes) - 1))
    vms += [(target, (1, GIB), f"new-{number}") for number in range(SHARED_BY)]
    hosts = []
    for place, node in enumerate(nodes):
        more = SHARED_BY if place == target else 0
        sums = (claimed[place][0] + more, claimed[place][1] + more * GIB)
        hosts.append(HostRoom(node.id, node.hostname, (64, 64 * GIB), sums))

    protected = [ProtectedVm(name, nodes[at].id, *size) for at, size, name in vms]

    assert survives(room_of(hosts, protected), 1)
