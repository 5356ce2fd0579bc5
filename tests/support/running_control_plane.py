"""A real control plane on free ports of this machine, with clients of both kinds and one host behind it."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from controlplane.app import Addresses, ControlPlane
from controlplane.config import ControlPlaneConfig, GrpcSettings, HttpSettings, NodeSettings
from controlplane.state.factory import create_store
from controlplane.state.interface import Store
from controlplane.state.seals import NO_SEALS, Seals
from limiquantix.compute.v1 import (
    alert_service_pb2,
    balancing_service_pb2,
    node_service_pb2,
    placement_service_pb2,
    vm_service_pb2,
)
from limiquantix.compute.v1.alert_service_pb2_grpc import AlertServiceStub
from limiquantix.compute.v1.balancing_service_pb2_grpc import BalancingServiceStub
from limiquantix.compute.v1.folder_service_pb2_grpc import FolderServiceStub
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.placement_service_pb2_grpc import PlacementServiceStub
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.errors import ApiError
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.status import ERROR_DOMAIN, from_rpc_error
from tests.support.control_plane_world import register_request
from tests.support.databases import fresh_sqlite
from tests.support.fake_daemons import FakeDaemon, serve

VM_SERVICE = "limiquantix.compute.v1.VMService"
NODE_SERVICE = "limiquantix.compute.v1.NodeService"
PLACEMENT_SERVICE = "limiquantix.compute.v1.PlacementService"
BALANCING_SERVICE = "limiquantix.compute.v1.BalancingService"
ALERT_SERVICE = "limiquantix.compute.v1.AlertService"
DEADLINE_S = 40.0

DetailT = TypeVar("DetailT", bound=Message)


@dataclass(frozen=True)
class JsonAnswer:
    """What a JSON call got: an HTTP status, a document, and headers."""

    status: int
    document: Any
    headers: httpx.Headers

    @property
    def code(self) -> str:
        """Connect's name of the error code; "" for success."""
        return str(self.document.get("code", "")) if self.status != 200 else ""

    def detail(self, kind: type[DetailT]) -> DetailT:
        """Give one of the error's details; an empty message if it has none of that kind."""
        message = kind()
        for detail in self.document.get("details", ()):
            if detail["type"].rpartition("/")[2] == message.DESCRIPTOR.full_name:
                message.ParseFromString(base64.b64decode(detail["value"] + "=="))
        return message

    @property
    def faulty_fields(self) -> list[str]:
        """Paths in the error's BadRequest."""
        return [violation.field for violation in self.detail(BadRequest).field_violations]


def sound_body(**changes: Any) -> dict[str, Any]:
    """Make the JSON body of a sound `CreateVM`, with some keys replaced."""
    return {"name": "t", "spec": sound_spec(), **changes}


def sound_spec(**changes: Any) -> dict[str, Any]:
    """Make the JSON of a sound spec, with some keys replaced."""
    return {"cpu": {"cores": 1}, "memory": {"sizeMib": 128}, **changes}


@dataclass
class RunningControlPlane:
    """Everything a wire test needs."""

    plane: ControlPlane
    store: Store
    database: Path
    addresses: Addresses
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    daemon: FakeDaemon = field(default_factory=FakeDaemon)
    node_id: str = ""

    def __post_init__(self) -> None:
        self.vms = VMServiceStub(self.channel)
        self.nodes = NodeServiceStub(self.channel)
        self.folders = FolderServiceStub(self.channel)
        self.balancing = BalancingServiceStub(self.channel)
        self.alerts = AlertServiceStub(self.channel)
        self.placements = PlacementServiceStub(self.channel)

    async def refused(
        self, method: str, body: dict[str, Any], service: str = VM_SERVICE
    ) -> tuple[ApiError, JsonAnswer]:
        """Make a call that must fail, on both wires, and check that both say the same."""
        module, stub = {
            VM_SERVICE: (vm_service_pb2, self.vms),
            NODE_SERVICE: (node_service_pb2, self.nodes),
            BALANCING_SERVICE: (balancing_service_pb2, self.balancing),
            ALERT_SERVICE: (alert_service_pb2, self.alerts),
            PLACEMENT_SERVICE: (placement_service_pb2, self.placements),
        }[service]
        descriptor = module.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name[method]
        request = json_format.ParseDict(body, GetMessageClass(descriptor.input_type)())
        error = await error_of(getattr(stub, method)(request, timeout=DEADLINE_S))
        answer = await self.post(method, body, service)
        assert (answer.code.upper(), answer.document["message"]) == (error.code.name, error.message)
        assert answer.detail(ErrorInfo) == ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.metadata)
        )
        assert answer.faulty_fields == [violation.field for violation in error.violations]
        assert "Traceback" not in json.dumps(answer.document)
        return error, answer

    async def clear(self) -> None:
        """Take the host's faults back and delete every VM."""
        self.daemon.heal()
        vms = await self.vms.ListVMs(vm_service_pb2.ListVMsRequest(page_size=1000), timeout=DEADLINE_S)
        for vm in vms.vms:
            await self.vms.DeleteVM(vm_service_pb2.DeleteVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)

    async def assert_no_trace_of_vms(self) -> None:
        """Check that there is no row, no claim and nothing on the host."""
        assert (await self.post("ListVMs", {})).document == {}
        node = (await self.post("GetNode", {"id": self.node_id}, NODE_SERVICE)).document
        assert "allocatedVcpus" not in node["status"]["resources"]["cpu"]
        assert self.daemon.vms == {}

    async def post(self, method: str, body: Any, service: str = VM_SERVICE, **headers: str) -> JsonAnswer:
        """Call a method with JSON; bytes and text are sent as they are."""
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        response = await self.http.post(
            f"/{service}/{method}", content=content, headers={"content-type": "application/json", **headers}
        )
        return JsonAnswer(response.status_code, _parsed(response), response.headers)


def _parsed(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"raw": response.text}


async def error_of(call: Any) -> ApiError:
    """Await a gRPC call that must fail and give its error."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, peer="the control plane")
    raise AssertionError(f"the call succeeded: {answer}")


@contextlib.asynccontextmanager
async def running_control_plane(
    directory: Path, *, cors_origins: Sequence[str] = (), with_node: bool = True, seals: Seals = NO_SEALS
) -> AsyncIterator[RunningControlPlane]:
    """Run a control plane, and a host that is registered there."""
    url = fresh_sqlite(directory)
    store = create_store(url, seals=seals)
    config = ControlPlaneConfig(
        http=HttpSettings(listen_address="127.0.0.1:0", cors_origins=list(cors_origins)),
        grpc=GrpcSettings(listen_address="127.0.0.1:0"),
        nodes=NodeSettings(heartbeat_interval_s=3600),  # the host never beats, and must not be missed on a slow machine
    )
    plane = ControlPlane(config, store)
    addresses = await plane.start()
    daemon = FakeDaemon()
    host = serve(daemon)
    port = await host.start("127.0.0.1:0")
    try:
        async with (
            open_channel(addresses.grpc) as channel,
            httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=DEADLINE_S) as http,
        ):
            database = Path(url.removeprefix("sqlite:///"))
            running = RunningControlPlane(plane, store, database, addresses, http, channel, daemon)
            if with_node:
                request = register_request("host-a", agent_endpoint=f"127.0.0.1:{port}")
                running.node_id = (await running.nodes.RegisterNode(request, timeout=DEADLINE_S)).id
            yield running
    finally:
        await plane.stop()
        await host.stop(0)
