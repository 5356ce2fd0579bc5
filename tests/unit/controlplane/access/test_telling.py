"""Who may not see hosts is not told their names by an error, on the wire or in an operation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from controlplane.access.telling import told
from controlplane.access.visibility import CallersVisibility
from controlplane.api.operation_servicer import OperationServicer
from controlplane.domain.access import OPERATOR, Permission, Place
from controlplane.domain.errors import no_node_fits, vm_not_found
from controlplane.domain.operation import Fault, Operation
from controlplane.domain.principal import Principal
from limiquantix.compute.v1 import operation_service_pb2 as operation_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import ApiError, ResourceExhausted
from tests.support.access_scene import METHOD, bound, called_by, gate, said_by, user, write
from tests.support.builders import START_OF_TIME, make_id, make_project
from tests.support.control_plane_world import World

CLUSTERS, PROJECTS = user("clusters"), user("projects")
REFUSAL = no_node_fits("no node fits: 2 lack memory", [("host-1", "full"), ("host-2", "full")])
METHOD_CREATE = f"{METHOD}VMService/CreateVM"


def test_error_without_names_is_passed_on_as_it_is() -> None:
    absent = vm_not_found("v")

    assert told(absent, frozenset()) is absent
    assert told(REFUSAL, frozenset({Permission.NODE_READ})) is REFUSAL


def test_error_with_names_keeps_all_but_them() -> None:
    refusal = ResourceExhausted("FULL", "no", metadata={"node.a": "full", "vm_id": "v"}, retry_after_s=3.0)

    less = told(refusal, frozenset())

    assert (type(less), less.reason, less.message) == (ResourceExhausted, "FULL", "no")
    assert (dict(less.metadata), less.retry_after_s) == ({"vm_id": "v"}, 3.0)


@pytest.mark.parametrize(("who", "node_count"), [(CLUSTERS, 2), (PROJECTS, 0)], ids=["clusters", "projects"])
async def test_operator_of_a_project_is_not_told_the_names_of_hosts(
    world: World, who: Principal, node_count: int
) -> None:
    project = make_project()
    await write(world.store, project, bound("user:clusters", OPERATOR))
    await write(world.store, bound("user:projects", OPERATOR, Place(project.id)))
    door = gate(world.store, CLUSTERS, PROJECTS)

    async def create() -> None:
        request = vm_api.CreateVMRequest(project_id=project.id)
        await door.guard.admit(METHOD_CREATE, said_by(who))
        async with door.guard.around(METHOD_CREATE, request, said_by(who)):
            raise REFUSAL

    with pytest.raises(ApiError) as refused:
        await asyncio.create_task(create())
    assert refused.value.message == REFUSAL.message
    assert names_of_nodes(refused.value.metadata) == node_count
    servicer = OperationServicer(OneFailed(), CallersVisibility(door.memory))  # type: ignore[arg-type]
    with called_by(who):
        got = await servicer.GetOperation(operation_api.GetOperationRequest(id=make_id()), None)  # type: ignore[arg-type]
    assert got.error.message == REFUSAL.message
    assert names_of_nodes(got.error.metadata) == node_count


def names_of_nodes(metadata: Mapping[str, str]) -> int:
    return sum(key.startswith("node.") for key in metadata)


class OneFailed:
    """A desk at which every operation failed."""

    async def get(self, operation_id: str) -> Operation:
        fault = Fault.of(REFUSAL)
        return Operation(
            operation_id, "vm.create", "vm", make_id(), make_id(), "user:x", START_OF_TIME, (), fault=fault
        )
