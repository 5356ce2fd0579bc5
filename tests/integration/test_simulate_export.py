"""A live control plane's cluster as a file, and that the simulator sees in it what the control plane sees."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import yaml

from controlplane.simulator.cluster_file import ClusterFile, read_cluster
from controlplane.simulator.export import export_cluster
from controlplane.simulator.run import simulate
from controlplane.simulator.scenario import Scenario
from tests.support.control_plane_world import register_request
from tests.support.running_control_plane import (
    DEADLINE_S,
    NODE_SERVICE,
    PLACEMENT_SERVICE,
    VM_SERVICE,
    RunningControlPlane,
    running_control_plane,
    sound_body,
    sound_spec,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """One control plane with the host "host-a" that answers, and "host-b" that only registered."""
    async with running_control_plane(tmp_path_factory.mktemp("plane")) as running:
        other = register_request("host-b", labels={"rack": "2"}, agent_endpoint="127.0.0.1:9")
        await running.nodes.RegisterNode(other, timeout=DEADLINE_S)
        yield running


async def exported(plane: RunningControlPlane) -> ClusterFile:
    nodes = (await plane.post("ListNodes", {}, NODE_SERVICE)).document["nodes"]
    vms = (await plane.post("ListVMs", {}, VM_SERVICE)).document.get("vms", [])
    return read_cluster(yaml.safe_dump(export_cluster(nodes, vms)).encode())


async def test_exported_cluster_has_the_claims_of_the_live_one(plane: RunningControlPlane) -> None:
    spec = sound_spec(placement={"requiredNodes": ["host-a"]})
    vm = (await plane.post("CreateVM", sound_body(spec=spec))).document
    result = simulate(await exported(plane), Scenario())
    nodes = (await plane.post("ListNodes", {}, NODE_SERVICE)).document["nodes"]

    assert result.before == result.after
    live = {node["id"]: node["status"]["resources"] for node in nodes}
    for seen in result.after:
        resources = live[seen.id]
        assert seen.claimed.vcpus == resources["cpu"].get("allocatedVcpus", 0)
        assert seen.claimed.memory_bytes == int(resources["memory"].get("allocatedBytes", 0))
        assert seen.capacity.memory_bytes == int(resources["memory"]["allocatableBytes"])
    assert [each.id for seen in result.after for each in seen.vms] == [vm["id"]]
    await plane.clear()


@pytest.mark.parametrize("labels", [{}, {"rack": "2"}, {"rack": "no"}])
async def test_simulated_placement_is_where_the_control_plane_would_place(
    plane: RunningControlPlane, labels: dict[str, str]
) -> None:
    spec = sound_spec(placement={"requiredLabels": labels})
    told = (await plane.post("ExplainPlacement", {"candidate": {"spec": spec}}, PLACEMENT_SERVICE)).document
    size = {"cpus": spec["cpu"]["cores"], "memory": f"{spec['memory']['sizeMib']}MiB"}
    wish = {"vms": [{"name": "new", **size, "spec": spec}]}
    result = simulate(await exported(plane), Scenario.model_validate({"events": [{"place": wish}]}))

    ids = {node.name: node.id for node in result.after}
    (outcome,) = result.outcomes
    assert ids.get(outcome.node, "") == told.get("chosenNodeId", "")
    if not outcome.node:
        assert outcome.reason == told["summary"]
