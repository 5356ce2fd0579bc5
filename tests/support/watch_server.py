"""The watching methods of both services on real wires, without the rest of a control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc

from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.server import HttpServer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.vm_servicer import VmServicer, VmServices
from controlplane.events.hub import HubConfig
from controlplane.state.interface import Store
from limiquantix.compute.v1 import node_service_pb2, vm_service_pb2
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub, add_NodeServiceServicer_to_server
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub, add_VMServiceServicer_to_server
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.watching import Watching, watching


@dataclass
class WatchServer:
    """Where the servers listen, with clients of the gRPC one."""

    watching: Watching
    rpc: RpcServer
    http: HttpServer
    grpc_port: int
    http_port: int
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.vms = VMServiceStub(self.channel)
        self.nodes = NodeServiceStub(self.channel)

    @property
    def store(self) -> Store:
        """What writers use."""
        return self.watching.store


@asynccontextmanager
async def watch_server(store: Store, hub: HubConfig | None = None) -> AsyncIterator[WatchServer]:
    """Serve; no watch may be left behind."""
    async with watching(store, hub) as world:
        unused = cast("Any", None)  # services whose methods are not called
        vms = VmServicer(VmServices.of(unused, unused, unused, world.service, world.lists, unused, unused, unused))
        nodes = NodeServicer(unused, unused, unused, world.service, world.lists, unused, unused, unused)  # type: ignore[abstract]
        served = (
            (vm_service_pb2.DESCRIPTOR.services_by_name["VMService"], vms),
            (node_service_pb2.DESCRIPTOR.services_by_name["NodeService"], nodes),
        )
        pipeline = CallPipeline({}, RpcMetrics(build_registry()))

        def add_services(server: Any) -> None:
            add_VMServiceServicer_to_server(vms, server)
            add_NodeServiceServicer_to_server(nodes, server)

        rpc = RpcServer(pipeline, [descriptor.full_name for descriptor, _ in served], add_services)
        http = HttpServer(
            build_application([ServiceApplication(descriptor, each, pipeline) for descriptor, each in served], [], ())
        )
        grpc_port, http_port = await rpc.start("127.0.0.1:0"), await http.start("127.0.0.1:0")
        try:
            async with open_channel(f"127.0.0.1:{grpc_port}") as channel:
                yield WatchServer(world, rpc, http, grpc_port, http_port, channel)
        finally:
            world.hub.stop()
            await http.stop()
            await rpc.stop(1.0)
