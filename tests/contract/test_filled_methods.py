"""Which methods of the contract this version fills. All others answer UNIMPLEMENTED, whatever they are sent.

A method that is filled moves into the list here, and nowhere else has to be told.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from controlplane.api.alert_servicer import AlertServicer
from controlplane.api.balancing_servicer import BalancingServicer
from controlplane.api.folder_servicer import FolderServicer
from controlplane.api.ha_servicer import HaServicer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.operation_servicer import OperationServicer
from controlplane.api.placement_servicer import PlacementServicer
from controlplane.api.project_servicer import ProjectServicer
from controlplane.api.role_servicer import RoleServicer
from controlplane.api.vm_servicer import VmServicer
from limiquantix.compute.v1 import (
    alert_service_pb2,
    balancing_service_pb2,
    folder_service_pb2,
    ha_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    placement_service_pb2,
    project_service_pb2,
    role_service_pb2,
    vm_service_pb2,
)
from limiquantix.errors import Code, Reason
from limiquantix.node.v1 import node_daemon_pb2
from limiquantix.node.v1.node_daemon_pb2_grpc import add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallPipeline, is_filled
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import from_rpc_error
from nodedaemon.servicer import SERVICE as NODE_DAEMON
from nodedaemon.servicer import NodeDaemonServicer
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.node_daemon_parts import node_daemon_parts
from tests.support.running_control_plane import DEADLINE_S, RunningControlPlane, running_control_plane

QUIET_S = 0.3
"""A stream that says nothing for so long is one that waits for something to happen."""

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILLED: dict[str, set[str]] = {
    "limiquantix.compute.v1.VMService": {
        *("CreateVM", "GetVM", "ListVMs", "UpdateVM", "DeleteVM"),
        *("StartVM", "StopVM", "RebootVM", "PauseVM", "ResumeVM", "SuspendVM"),
        *("CreateSnapshot", "ListSnapshots", "RevertToSnapshot", "DeleteSnapshot"),
        *("CloneVM", "ConvertToTemplate", "MigrateVM"),
        *("AttachDisk", "DetachDisk", "ResizeDisk", "UpdateDisk", "AttachNIC", "DetachNIC", "UpdateNIC"),
        *("AttachCDROM", "DetachCDROM", "MountISO", "EjectISO"),
        *("PingAgent", "GetGuestInfo", "ExecuteScript", "ReadGuestFile", "WriteGuestFile", "GuestShutdown"),
        *("SetGuestPassword", "SyncGuestTime", "FreezeGuest", "ThawGuest"),
        *("GetConsole", "GetConsoleLog", "TakeOverVM", "ListVMEvents", "WatchVM", "WatchVMs", "StreamMetrics"),
    },
    "limiquantix.compute.v1.NodeService": {
        *("RegisterNode", "GetNode", "ListNodes", "UpdateHeartbeat", "SyncFullState", "NotifyVMChange"),
        "AnnounceShutdown",
        *("UpdateNode", "EnableNode", "DisableNode", "DrainNode", "DecommissionNode"),
        *("AddTaint", "RemoveTaint", "UpdateLabels"),
        *("ListNodeEvents", "WatchNode", "WatchNodes", "StreamEvents", "GetNodeMetrics", "StreamNodeMetrics"),
    },
    "limiquantix.compute.v1.OperationService": {
        *("GetOperation", "ListOperations", "WaitOperation", "CancelOperation", "WatchOperation"),
    },
    "limiquantix.compute.v1.BalancingService": {
        *("GetBalance", "RunBalancing", "GetRecommendation", "ListRecommendations"),
        *("ApproveRecommendation", "RejectRecommendation", "ApplyRecommendation"),
    },
    "limiquantix.compute.v1.AlertService": {"GetAlert", "ListAlerts", "AcknowledgeAlert"},
    "limiquantix.compute.v1.HaService": {
        *("GetHaStatus", "GetFence", "ListFences", "FenceNode", "ConfirmNodeDead", "DisarmHa", "ArmHa"),
    },
    "limiquantix.compute.v1.PlacementService": {"ExplainPlacement", "PlanPlacements", "GetCapacity"},
    "limiquantix.compute.v1.FolderService": {
        *("CreateFolder", "GetFolder", "ListFolders", "UpdateFolder", "DeleteFolder", "GetFolderTree", "MoveVM"),
    },
    "limiquantix.compute.v1.ProjectService": {
        *("CreateProject", "GetProject", "ListProjects", "UpdateProject", "DeleteProject"),
    },
    "limiquantix.compute.v1.RoleService": {
        *("CreateRole", "GetRole", "ListRoles", "UpdateRole", "DeleteRole"),
        *("BindRole", "UnbindRole", "ListRoleBindings"),
    },
    "limiquantix.node.v1.NodeDaemonService": {
        *("HealthCheck", "GetNodeInfo", "CreateVM", "ReconfigureVM", "ResizeVM", "DeleteVM", "GetVMStatus", "ListVMs"),
        *("StartVM", "StopVM", "ForceStopVM", "RebootVM", "PauseVM", "ResumeVM", "SuspendVM"),
        *("CreateSnapshot", "ListSnapshots", "RevertSnapshot", "DeleteSnapshot"),
        *("AttachDisk", "DetachDisk", "ResizeDisk", "UpdateDisk", "AttachNIC", "DetachNIC", "UpdateNIC"),
        *("AttachCDROM", "DetachCDROM", "ChangeMedia", "SettleDevices"),
        *("SetVMProtection", "AdoptVM", "ReleaseVM"),
        *("PingGuestAgent", "GetGuestInfo", "ExecuteInGuest", "ReadGuestFile", "WriteGuestFile", "ShutdownGuest"),
        *("SetGuestPassword", "SyncGuestTime", "FreezeGuest", "ThawGuest"),
        *("GetConsole", "OpenConsole", "GetConsoleLog", "StreamMetrics", "StreamEvents"),
        *("PrepareMigration", "ReceiveMigration", "MigrateVM", "GetMigration", "CancelMigration", "EndMigration"),
        "ForecastMigration",
    },
}

SERVICERS: dict[str, type] = {
    "limiquantix.compute.v1.VMService": VmServicer,
    "limiquantix.compute.v1.NodeService": NodeServicer,
    "limiquantix.compute.v1.OperationService": OperationServicer,
    "limiquantix.compute.v1.BalancingService": BalancingServicer,
    "limiquantix.compute.v1.AlertService": AlertServicer,
    "limiquantix.compute.v1.HaService": HaServicer,
    "limiquantix.compute.v1.PlacementService": PlacementServicer,
    "limiquantix.compute.v1.FolderService": FolderServicer,
    "limiquantix.compute.v1.ProjectService": ProjectServicer,
    "limiquantix.compute.v1.RoleService": RoleServicer,
    "limiquantix.node.v1.NodeDaemonService": NodeDaemonServicer,
}

SERVICES: list[ServiceDescriptor] = [
    service
    for module in (
        *(vm_service_pb2, node_service_pb2, operation_service_pb2, balancing_service_pb2, alert_service_pb2),
        *(placement_service_pb2, ha_service_pb2, folder_service_pb2, project_service_pb2, role_service_pb2),
        node_daemon_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]

SERVED_HERE = [
    method for service in SERVICES if service.file.package == "limiquantix.compute.v1" for method in service.methods
]


METHODS = {f"{service.name}.{method.name}": method for service in SERVICES for method in service.methods}


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def filled(method: MethodDescriptor) -> bool:
    return method.name in FILLED[method.containing_service.full_name]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """A control plane without nodes."""
    async with running_control_plane(tmp_path_factory.mktemp("filled"), with_node=False) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channels(
    plane: RunningControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """Channels to the control plane and to a node daemon, by package."""
    async with node_daemon_parts(tmp_path_factory.mktemp("node")) as daemon:
        server = RpcServer(
            CallPipeline({}, RpcMetrics(build_registry())),
            [NODE_DAEMON],
            lambda s: add_NodeDaemonServiceServicer_to_server(daemon.servicer, s),
        )
        port = await server.start("127.0.0.1:0")
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield {"limiquantix.compute.v1": plane.channel, "limiquantix.node.v1": channel}
        await server.stop(0)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
async def test_methods_a_servicer_defines_are_those_listed(service: ServiceDescriptor) -> None:
    servicer = SERVICERS[service.full_name]

    assert {method.name for method in service.methods if is_filled(getattr(servicer, method.name))} == FILLED[
        service.full_name
    ]


async def grpc_outcome(channels: dict[str, grpc.aio.Channel], method: MethodDescriptor) -> tuple[Code | None, str]:
    """Call with an empty request; gives the error's code and reason, or None for an answer or a stream that waits."""
    channel = channels[method.containing_service.file.package]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    coding: dict[str, Any] = {
        "request_serializer": request.SerializeToString,
        "response_deserializer": response.FromString,
    }
    try:
        if method.server_streaming:
            limit_s = QUIET_S if filled(method) else DEADLINE_S  # one that is not filled has to say so, however late
            async for _ in channel.unary_stream(path(method), **coding)(request(), timeout=limit_s):
                break
        else:
            await channel.unary_unary(path(method), **coding)(request(), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        decoded = from_rpc_error(error, peer="the daemon")
        if method.server_streaming and decoded.code is Code.DEADLINE_EXCEEDED:
            return None, ""
        return decoded.code, decoded.reason
    return None, ""


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
async def test_method_is_filled_or_unimplemented_over_grpc(
    channels: dict[str, grpc.aio.Channel], method: MethodDescriptor
) -> None:
    code, reason = await grpc_outcome(channels, method)

    if filled(method):
        assert code in {None, Code.INVALID_ARGUMENT}
    else:
        assert (code, reason) == (Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED)


@pytest.mark.parametrize("body", [b"{}", b'{"id": 7, "vmId": "x", "nonsense": true}'], ids=["empty", "nonsense"])
@pytest.mark.parametrize(
    "method",
    [method for method in SERVED_HERE if not method.server_streaming],
    ids=lambda method: method.full_name.rpartition("v1.")[2],
)
async def test_method_is_filled_or_unimplemented_over_json(
    plane: RunningControlPlane, method: MethodDescriptor, body: bytes
) -> None:
    answer = await plane.post(method.name, body, method.containing_service.full_name)

    if filled(method):
        assert answer.status in {200, 400}
    else:
        assert (answer.status, answer.code) == (501, "unimplemented")
        assert method.name in answer.document["message"]


@pytest.mark.parametrize(
    "method",
    [method for method in SERVED_HERE if method.server_streaming],
    ids=lambda method: method.full_name.rpartition("v1.")[2],
)
async def test_streaming_method_is_filled_or_unimplemented_over_json(
    plane: RunningControlPlane, method: MethodDescriptor
) -> None:
    body = b'{"fromRevision": "9223372036854775808"}'  # larger than any, so that a filled method has to refuse it
    envelope = struct.pack(">BI", 0, len(body)) + body

    response = await plane.http.post(
        path(method), content=envelope, headers={"content-type": "application/connect+json"}
    )

    assert response.status_code == 200  # Connect puts a stream's error into its last envelope
    assert response.content[0] == 0x02
    code = b"invalid_argument" if filled(method) else b"unimplemented"
    assert b'"code":"' + code + b'"' in response.content.replace(b": ", b":")
