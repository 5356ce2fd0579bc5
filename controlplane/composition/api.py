"""The API: one servicer for each service of the contract, served over gRPC and HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.api.alert_servicer import AlertServicer
from controlplane.api.api_key_servicer import ApiKeyServicer
from controlplane.api.audit_servicer import AuditServicer
from controlplane.api.auth_servicer import AuthServicer
from controlplane.api.balancing_servicer import BalancingServicer
from controlplane.api.call_limits import limits_of
from controlplane.api.checks import CHECKS
from controlplane.api.folder_servicer import FolderServicer
from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.endpoints import Advisory, routes
from controlplane.api.http.insiders import Insiders
from controlplane.api.http.openapi.contract import contract_document
from controlplane.api.http.openapi.endpoint import openapi_route
from controlplane.api.http.server import HttpServer
from controlplane.api.join_servicer import JoinServicer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.operation_servicer import OperationServicer
from controlplane.api.placement_servicer import PlacementServicer
from controlplane.api.project_servicer import ProjectServicer
from controlplane.api.role_servicer import RoleServicer
from controlplane.api.user_servicer import UserServicer
from controlplane.api.vm_servicer import VmServicer, VmServices
from controlplane.composition import rules
from controlplane.composition.balancing import Balancing
from controlplane.composition.core import Core
from controlplane.composition.ha import HighAvailability
from controlplane.composition.listening import Listening
from controlplane.composition.rules import utc_now
from controlplane.composition.security import Security
from controlplane.coordination.interface import CoordinationAway, Coordinator
from controlplane.reconcile.reports import HostReportService
from controlplane.services.audit_records import AuditReader
from controlplane.services.event_lists import EventListService
from controlplane.services.folders import FolderService
from controlplane.services.metrics import MetricsService
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.services.node_life import NodeLifeService
from controlplane.services.nodes import NodeService
from controlplane.services.opinions import PlacementOpinions
from controlplane.services.projects import ProjectService, nothing_kept
from controlplane.services.roles import RoleService
from controlplane.services.watches import WatchService
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import (
    alert_service_pb2,
    api_key_service_pb2,
    audit_service_pb2,
    auth_service_pb2,
    balancing_service_pb2,
    folder_service_pb2,
    ha_service_pb2,
    join_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    placement_service_pb2,
    project_service_pb2,
    role_service_pb2,
    user_service_pb2,
    vm_service_pb2,
)
from limiquantix.compute.v1.alert_service_pb2_grpc import add_AlertServiceServicer_to_server
from limiquantix.compute.v1.api_key_service_pb2_grpc import add_ApiKeyServiceServicer_to_server
from limiquantix.compute.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from limiquantix.compute.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from limiquantix.compute.v1.balancing_service_pb2_grpc import add_BalancingServiceServicer_to_server
from limiquantix.compute.v1.folder_service_pb2_grpc import add_FolderServiceServicer_to_server
from limiquantix.compute.v1.ha_service_pb2_grpc import add_HaServiceServicer_to_server
from limiquantix.compute.v1.join_service_pb2_grpc import add_JoinServiceServicer_to_server
from limiquantix.compute.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from limiquantix.compute.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from limiquantix.compute.v1.placement_service_pb2_grpc import add_PlacementServiceServicer_to_server
from limiquantix.compute.v1.project_service_pb2_grpc import add_ProjectServiceServicer_to_server
from limiquantix.compute.v1.role_service_pb2_grpc import add_RoleServiceServicer_to_server
from limiquantix.compute.v1.user_service_pb2_grpc import add_UserServiceServicer_to_server
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
    core: Core,
    balancing: Balancing,
    listening: Listening,
    ha: HighAvailability,
    feeds: MetricsFeeds,
    security: Security | None = None,
) -> Sequence[ServedService]:
    """Build all servicers.

    Documented methods that this version does not fill are inherited and answer UNIMPLEMENTED, hence the ignores;
    tests/contract/test_filled_methods.py lists them.
    """
    store, policy = core.store, rules.capacity_policy(core.config)
    visibility: Visibility = security.visibility if security is not None else EverythingVisible()
    refresh = security.access.refresh if security is not None else nothing_kept
    watches, event_lists = WatchService(core.watches, visibility), EventListService(store)
    metrics = MetricsService(store, feeds)
    vm_servicer = VmServicer(
        VmServices.of(
            *(core.access, core.scheduler, utc_now, watches, event_lists, metrics, core.migrations, core.memory),
            visibility,
        )
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
        (lambda: security.machines.newest_revocation) if security is not None else (lambda: None),
    )
    folder_servicer = FolderServicer(FolderService(store, utc_now, refresh, visibility))
    opinions = PlacementOpinions(store, core.scheduler, utc_now, core.memory)
    return (
        _served(vm_service_pb2, vm_servicer, add_VMServiceServicer_to_server),
        _served(node_service_pb2, node_servicer, add_NodeServiceServicer_to_server),
        _served(folder_service_pb2, folder_servicer, add_FolderServiceServicer_to_server),
        _served(
            operation_service_pb2, OperationServicer(core.desk, visibility), add_OperationServiceServicer_to_server
        ),
        _served(
            balancing_service_pb2,
            BalancingServicer(balancing.service, balancing.moves),
            add_BalancingServiceServicer_to_server,
        ),
        _served(alert_service_pb2, AlertServicer(balancing.alerts), add_AlertServiceServicer_to_server),
        _served(placement_service_pb2, PlacementServicer(opinions), add_PlacementServiceServicer_to_server),
        _served(ha_service_pb2, ha.servicer, add_HaServiceServicer_to_server),
        _served(
            project_service_pb2,
            ProjectServicer(ProjectService(store, utc_now, refresh, visibility)),
            add_ProjectServiceServicer_to_server,
        ),
        _served(
            role_service_pb2,
            RoleServicer(RoleService(store, utc_now, _user_id, refresh, visibility)),
            add_RoleServiceServicer_to_server,
        ),
        *(_closed(core, security) if security is not None else ()),
    )


def _closed(core: Core, security: Security) -> Sequence[ServedService]:
    """Build the servicers that there is a use for once calls say who makes them."""
    hosts = security.settings.hosts_addresses or (security.settings.hosts_listen_address,)
    reader = AuditReader(core.store, security.trail, security.keyring.chain_key)
    return (
        _served(
            join_service_pb2,
            JoinServicer(security.joining, hosts, security.machines, security.migrations),
            add_JoinServiceServicer_to_server,
        ),
        _served(auth_service_pb2, AuthServicer(security.sessions, security.issuers), add_AuthServiceServicer_to_server),
        _served(user_service_pb2, UserServicer(security.users), add_UserServiceServicer_to_server),
        _served(api_key_service_pb2, ApiKeyServicer(security.api_keys), add_ApiKeyServiceServicer_to_server),
        _served(audit_service_pb2, AuditServicer(reader), add_AuditServiceServicer_to_server),
    )


async def _user_id(tx: Transaction, name: str) -> str | None:
    user = await tx.user_named(name)
    return None if user is None else user.id


def _served(module: Any, servicer: Any, add_to: Callable[[Any, Any], None]) -> ServedService:
    (descriptor,) = module.DESCRIPTOR.services_by_name.values()
    return ServedService(descriptor, servicer, add_to)


@dataclass(frozen=True, slots=True)
class Servers:
    """What listens."""

    rpc: RpcServer
    http: HttpServer
    hosts: RpcServer | None = None


def servers_of(
    core: Core,
    services: Sequence[ServedService],
    coordinator: Coordinator | None,
    security: Security | None = None,
) -> Servers:
    """Build the servers over the same servicers; nothing listens yet."""
    config = core.config
    names = [each.descriptor.full_name for each in services]
    registry = build_registry()
    metrics, limits = RpcMetrics(registry), limits_of(each.descriptor for each in services)
    guard = security.guard if security is not None else None
    pipeline = CallPipeline(CHECKS, metrics, guard, limits)

    advisory = {} if coordinator is None else {"coordination": _coordination(coordinator)}
    application = build_application(
        [ServiceApplication(each.descriptor, each.servicer, pipeline) for each in services],
        [
            *routes({"database": core.store.ping}, registry, utc_now(), names, Insiders(pipeline), advisory),
            openapi_route(contract_document),
        ],
        config.http.cors_origins,
        config.http.accepted_hosts,
        config.http.trusted_proxies,
    )
    if security is None:
        return Servers(RpcServer(pipeline, names, _adding(services)), HttpServer(application))
    shown, for_hosts = security.own.credentials, [each for each in services if each.descriptor.name in _OF_HOSTS]
    return Servers(
        RpcServer(pipeline, names, _adding(services), shown.server(asks_for_certificate=False)),
        HttpServer(application, tls=security.https),
        RpcServer(
            CallPipeline(CHECKS, metrics, security.hosts_guard, limits),
            [each.descriptor.full_name for each in for_hosts],
            _adding(for_hosts),
            shown.server(asks_for_certificate=True),
            reflects=False,
        ),
    )


_OF_HOSTS = frozenset({"NodeService", "JoinService"})
"""Services with methods that hosts call; which those are, the guard's table says."""


def _adding(services: Sequence[ServedService]) -> Callable[[Any], None]:
    def add(server: Any) -> None:
        for each in services:
            each.add_to(each.servicer, server)

    return add


def _coordination(coordinator: Coordinator) -> Advisory:
    async def problem() -> str:
        try:
            await coordinator.check()
        except CoordinationAway as error:
            return str(error)
        return ""

    return problem
