"""NodeService on the wire: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime

from google.protobuf.empty_pb2 import Empty

from controlplane.access.calling import calling
from controlplane.api.callers import caller_of
from controlplane.domain import documents
from controlplane.domain.principal import PrincipalKind
from controlplane.reconcile.reports import HostReportService
from controlplane.services.event_lists import EventListService
from controlplane.services.heartbeats import HeartbeatService
from controlplane.services.metrics import MetricsService
from controlplane.services.node_life import NodeLifeService
from controlplane.services.nodes import NodeService
from controlplane.services.page_tokens import encode_cursor
from controlplane.services.shutdowns import ShutdownService
from controlplane.services.watches import WatchService
from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceServicer
from limiquantix.rpc.pipeline import CallContext


class NodeServicer(NodeServiceServicer):
    """Methods not defined here are documented but not in this version; they answer UNIMPLEMENTED."""

    def __init__(
        self,
        nodes: NodeService,
        heartbeats: HeartbeatService,
        reports: HostReportService,
        watches: WatchService,
        events: EventListService,
        metrics: MetricsService,
        life: NodeLifeService,
        shutdowns: ShutdownService,
        newest_revocation: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._nodes = nodes
        self._heartbeats = heartbeats
        self._reports = reports
        self._watches = watches
        self._events = events
        self._metrics = metrics
        self._life = life
        self._shutdowns = shutdowns
        self._newest_revocation = newest_revocation

    async def RegisterNode(self, request: api.RegisterNodeRequest, context: CallContext) -> node_pb2.Node:
        who = calling.get()
        registered = await self._nodes.register(request, who.id if who and who.kind is PrincipalKind.NODE else "")
        return documents.node(*await self._nodes.get(registered.id))

    async def GetNode(self, request: api.GetNodeRequest, context: CallContext) -> node_pb2.Node:
        return documents.node(*await self._nodes.get(request.id))

    async def ListNodes(self, request: api.ListNodesRequest, context: CallContext) -> api.ListNodesResponse:
        page = await self._nodes.list(request)
        return api.ListNodesResponse(
            nodes=[documents.node(node, page.vm_ids.get(node.id, ())) for node in page.nodes],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def UpdateNode(self, request: api.UpdateNodeRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.update(request, caller_of(context, "UpdateNode", request))

    async def EnableNode(self, request: api.EnableNodeRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.enable(request.id, caller_of(context, "EnableNode", request))

    async def DisableNode(self, request: api.DisableNodeRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.disable(request, caller_of(context, "DisableNode", request))

    async def DrainNode(self, request: api.DrainNodeRequest, context: CallContext) -> api.DrainNodeResponse:
        return await self._life.drain(request, caller_of(context, "DrainNode", request))

    async def DecommissionNode(self, request: api.DecommissionNodeRequest, context: CallContext) -> Empty:
        await self._life.decommission(request, caller_of(context, "DecommissionNode", request))
        return Empty()

    async def AddTaint(self, request: api.AddTaintRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.add_taint(request, caller_of(context, "AddTaint", request))

    async def RemoveTaint(self, request: api.RemoveTaintRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.remove_taint(request, caller_of(context, "RemoveTaint", request))

    async def UpdateLabels(self, request: api.UpdateLabelsRequest, context: CallContext) -> node_pb2.Node:
        return await self._life.label(request, caller_of(context, "UpdateLabels", request))

    async def UpdateHeartbeat(
        self, request: api.UpdateHeartbeatRequest, context: CallContext
    ) -> api.UpdateHeartbeatResponse:
        answer = await self._heartbeats.heartbeat(request)
        if (revoked_at := self._newest_revocation()) is not None:
            answer.newest_revocation.CopyFrom(documents.timestamp(revoked_at))
        return answer

    async def AnnounceShutdown(
        self, request: api.AnnounceShutdownRequest, context: CallContext
    ) -> api.AnnounceShutdownResponse:
        return await self._shutdowns.announce(request)

    async def NotifyVMChange(self, request: api.VMChangeNotification, context: CallContext) -> api.VMChangeAck:
        return api.VMChangeAck(acknowledged=True, action=await self._reports.vm_changed(request))

    async def SyncFullState(self, request: api.SyncFullStateRequest, context: CallContext) -> api.SyncFullStateResponse:
        outcome = await self._reports.full_state(request)
        return api.SyncFullStateResponse(
            acknowledged=True,
            vms_reconciled=outcome.reconciled,
            vms_discovered=len(outcome.discovered),
            vms_lost=len(outcome.lost),
            conflicts=[
                api.SyncConflict(
                    resource_type="vm",
                    resource_id=vm_id,
                    conflict_type="MISPLACED",
                    message=f"VM {vm_id} is placed on node {node_id} but exists here too",
                )
                for vm_id, node_id in outcome.misplaced
            ],
        )

    async def GetNodeMetrics(self, request: api.GetNodeMetricsRequest, context: CallContext) -> api.NodeMetrics:
        return await self._metrics.node(request)

    async def StreamNodeMetrics(
        self, request: api.StreamNodeMetricsRequest, context: CallContext
    ) -> AsyncIterator[api.NodeMetrics]:
        async with aclosing(self._metrics.nodes(request)) as measures:
            async for metrics in measures:
                yield metrics

    async def ListNodeEvents(
        self, request: api.ListNodeEventsRequest, context: CallContext
    ) -> api.ListNodeEventsResponse:
        return api.ListNodeEventsResponse(events=await self._events.of_node(request))

    async def WatchNode(self, request: api.WatchNodeRequest, context: CallContext) -> AsyncIterator[node_pb2.Node]:
        async with aclosing(self._watches.node(request)) as nodes:
            async for node in nodes:
                yield node

    async def WatchNodes(self, request: api.WatchNodesRequest, context: CallContext) -> AsyncIterator[api.NodeUpdate]:
        async with aclosing(self._watches.nodes(request)) as updates:
            async for update in updates:
                yield update

    async def StreamEvents(
        self, request: api.StreamEventsRequest, context: CallContext
    ) -> AsyncIterator[api.SystemEvent]:
        async with aclosing(self._watches.events(request)) as events:
            async for event in events:
                yield event
