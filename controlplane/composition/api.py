"""The API: one servicer for each service of the contract, served over gRPC and HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from controlplane.api.alert_servicer import AlertServicer
from controlplane.api.balancing_servicer import BalancingServicer
from controlplane.api.checks import CHECKS
from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.endpoints import Advisory, routes
from controlplane.api.http.server import HttpServer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.operation_servicer import OperationServicer
from controlplane.api.placement_servicer import PlacementServicer
from controlplane.api.unfilled import FolderServicer
from controlplane.api.vm_servicer import VmServicer, VmServices
from controlplane.composition import rules
from controlplane.composition.balancing import Balancing
from controlplane.composition.core import Core
from controlplane.composition.ha import HighAvailability
from controlplane.composition.listening import Listening
from controlplane.composition.rules import utc_now
from controlplane.coordination.interface import CoordinationAway, Coordinator
from controlplane.reconcile.reports import HostReportService
from controlplane.services.event_lists import EventListService
from controlplane.services.metrics import MetricsService
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.services.node_life import NodeLifeService
from controlplane.services.nodes import NodeService
from controlplane.services.opinions import PlacementOpinions
from controlplane.services.watches import WatchService
from limiquantix.compute.v1 import (
    alert_service_pb2,
    balancing_service_pb2,
    folder_service_pb2,
    ha_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    placement_service_pb2,
    vm_service_pb2,
)
from limiquantix.compute.v1.alert_service_pb2_grpc import add_AlertServiceServicer_to_server
from limiquantix.compute.v1.balancing_service_pb2_grpc import add_BalancingServiceServicer_to_server
from limiquantix.compute.v1.folder_service_pb2_grpc import add_FolderServiceServicer_to_server
from limiquantix.compute.v1.ha_service_pb2_grpc import add_HaServiceServicer_to_server
from limiquantix.compute.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from limiquantix.compute.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from limiquantix.compute.v1.placement_service_pb2_grpc import add_PlacementServiceServicer_to_server
from limiquantix.compute.v1.vm_service_pb2_grpc import add_VMServiceServicer_to_server
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from telemetry.metrics import RpcMetrics, build_registry


@dataclass(frozen=True, slots=True)
class ServedService:
    """A service of the contract, what answers it, and how a gRPC server is told."""

    descriptor: ServiceDescriptor
    servicer: Any
    add_to: Callable[[Any, Any], None]


def served_of(
    core: Core, balancing: Balancing, listening: Listening, ha: HighAvailability, feeds: MetricsFeeds
) -> Sequence[ServedService]:
    """Build all servicers.

    Documented methods that this version does not fill are inherited and answer UNIMPLEMENTED, hence the ignores;
    tests/contract/test_filled_methods.py lists them.
    """
    store, policy = core.store, rules.capacity_policy(core.config)
    watches, event_lists = WatchService(core.watches), EventListService(store)
    metrics = MetricsService(store, feeds)
    vm_servicer = VmServicer(
        VmServices.of(core.access, core.scheduler, utc_now, watches, event_lists, metrics, core.migrations, core.memory)
    )
    node_servicer = NodeServicer(  # type: ignore[abstract]
        NodeService(store, policy, utc_now, listening.hearing),
        listening.heartbeats,
        HostReportService(store, core.desk, utc_now),
        watches,
        event_lists,
        metrics,
        NodeLifeService(store, core.desk, policy, utc_now, listening.heartbeats.patience, core.scheduler),
        listening.shutdowns,
    )
    folder_servicer = FolderServicer()  # type: ignore[abstract]
    opinions = PlacementOpinions(store, core.scheduler, utc_now, core.memory)
    return (
        _served(vm_service_pb2, vm_servicer, add_VMServiceServicer_to_server),
        _served(node_service_pb2, node_servicer, add_NodeServiceServicer_to_server),
        _served(folder_service_pb2, folder_servicer, add_FolderServiceServicer_to_server),
        _served(operation_service_pb2, OperationServicer(core.desk), add_OperationServiceServicer_to_server),
        _served(
            balancing_service_pb2,
            BalancingServicer(balancing.service, balancing.moves),
            add_BalancingServiceServicer_to_server,
        ),
        _served(alert_service_pb2, AlertServicer(balancing.alerts), add_AlertServiceServicer_to_server),
        _served(placement_service_pb2, PlacementServicer(opinions), add_PlacementServiceServicer_to_server),
        _served(ha_service_pb2, ha.servicer, add_HaServiceServicer_to_server),
    )


def _served(module: Any, servicer: Any, add_to: Callable[[Any, Any], None]) -> ServedService:
    (descriptor,) = module.DESCRIPTOR.services_by_name.values()
    return ServedService(descriptor, servicer, add_to)


@dataclass(frozen=True, slots=True)
class Servers:
    """What listens."""

    rpc: RpcServer
    http: HttpServer


def servers_of(core: Core, services: Sequence[ServedService], coordinator: Coordinator | None) -> Servers:
    """Build both servers over the same servicers; nothing listens yet."""
    config = core.config
    names = [each.descriptor.full_name for each in services]
    registry = build_registry()
    pipeline = CallPipeline(CHECKS, RpcMetrics(registry))

    def add_services(server: Any) -> None:
        for each in services:
            each.add_to(each.servicer, server)

    advisory = {} if coordinator is None else {"coordination": _coordination(coordinator)}
    application = build_application(
        [ServiceApplication(each.descriptor, each.servicer, pipeline) for each in services],
        routes({"database": core.store.ping}, registry, utc_now(), names, advisory),
        config.http.cors_origins,
        config.http.accepted_hosts,
    )
    return Servers(RpcServer(pipeline, names, add_services, rules.tls_files(config.grpc.tls)), HttpServer(application))


def _coordination(coordinator: Coordinator) -> Advisory:
    async def problem() -> str:
        try:
            await coordinator.check()
        except CoordinationAway as error:
            return str(error)
        return ""

    return problem
