"""Power that is cut beside the loop."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.node import Node
from controlplane.ha.model import (
    CutPower,
    NodeSeen,
    PowerResult,
    ProofMethod,
    ProveFence,
    WithdrawFence,
)
from controlplane.power.interface import PowerFailed
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_POWER_OFF
from tests.support.ha_plane import FakeController, HaPlane
from tests.support.ha_scene import (
    fenced,
    seen_node,
)


async def power_of(plane: HaPlane, node_id: str, *wanted: PowerResult) -> NodeSeen:
    async with asyncio.timeout(60):
        while True:
            seen = seen_node(await plane.round(), node_id)
            if seen.power in wanted:
                return seen
            await asyncio.sleep(0.01)


async def test_power_is_cut_beside_the_loop_and_its_words_are_the_evidence(plane: HaPlane, nodes: list[Node]) -> None:
    controller = plane.controllers.by_hostname[nodes[0].hostname] = FakeController()
    fence = await fenced(plane, nodes[0].id)
    observed = await plane.round(CutPower(nodes[0].id, fence.id))
    assert seen_node(observed, nodes[0].id).has_power_agent
    assert not seen_node(observed, nodes[1].id).has_power_agent

    seen = await power_of(plane, nodes[0].id, PowerResult.OFF)
    assert seen.power_evidence == "fake: off"

    await plane.round(CutPower(nodes[0].id, fence.id))
    await plane.round(ProveFence(nodes[0].id, fence.id, ProofMethod.POWER_OFF, seen.power_evidence))
    proof = (await plane.the_fence()).proof
    assert proof is not None
    assert proof.method == FENCE_METHOD_POWER_OFF
    assert controller.cut_count == 1


@pytest.mark.parametrize(
    ("controller", "said"),
    [
        (FakeController(said=PowerFailed("redfish https://192.0.2.9: 401")), "401"),
        (FakeController(hangs=True), "did not answer within 0.2 s"),
    ],
)
async def test_power_that_is_not_cut_is_told_and_may_be_tried_again(
    plane: HaPlane, nodes: list[Node], controller: FakeController, said: str
) -> None:
    plane.controllers.by_hostname[nodes[0].hostname] = controller
    fence = await fenced(plane, nodes[0].id)
    await plane.round(CutPower(nodes[0].id, fence.id))
    assert said in (await power_of(plane, nodes[0].id, PowerResult.FAILED)).power_evidence

    controller.said, controller.hangs = None, False
    await plane.round(CutPower(nodes[0].id, fence.id))
    await power_of(plane, nodes[0].id, PowerResult.OFF)


async def test_power_of_a_host_whose_fence_is_over_is_not_cut(plane: HaPlane, nodes: list[Node]) -> None:
    controller = plane.controllers.by_hostname[nodes[0].hostname] = FakeController()
    fence = await fenced(plane, nodes[0].id)
    withdraw = WithdrawFence(nodes[0].id, fence.id, "heard")
    await plane.round(withdraw, CutPower(nodes[0].id, fence.id))
    await plane.power.stop()

    assert controller.cut_count == 0
