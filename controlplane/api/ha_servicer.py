"""HaService on the wire: decode, call the service, encode."""

from __future__ import annotations

from controlplane.api.callers import caller_of
from controlplane.domain.fencing import FenceFilter
from controlplane.services.ha import HaService
from controlplane.services.ha_status import HaStatusService
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import ha_service_pb2 as api
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceServicer
from limiquantix.rpc.pipeline import CallContext


class HaServicer(HaServiceServicer):
    """All methods of the contract."""

    def __init__(self, ha: HaService, status: HaStatusService) -> None:
        self._ha = ha
        self._status = status

    async def GetHaStatus(self, request: api.GetHaStatusRequest, context: CallContext) -> api.HaStatus:
        return await self._status.read(include_forecast=request.include_forecast)

    async def GetFence(self, request: api.GetFenceRequest, context: CallContext) -> api.Fence:
        return await self._ha.get(request.id)

    async def ListFences(self, request: api.ListFencesRequest, context: CallContext) -> api.ListFencesResponse:
        wanted = FenceFilter(node_id=request.node_id, only_current=request.only_current)
        page = await self._ha.list(wanted, decode_cursor(request.page_token, request), page_limit(request.page_size))
        return api.ListFencesResponse(
            fences=page.items,
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def FenceNode(self, request: api.FenceNodeRequest, context: CallContext) -> api.Fence:
        caller = caller_of(context, "FenceNode", request)
        return await self._ha.fence_node(request.node_id, request.reason, caller.principal)

    async def ConfirmNodeDead(self, request: api.ConfirmNodeDeadRequest, context: CallContext) -> api.Fence:
        caller = caller_of(context, "ConfirmNodeDead", request)
        return await self._ha.confirm_dead(request.node_id, request.hostname, request.statement, caller.principal)

    async def DisarmHa(self, request: api.DisarmHaRequest, context: CallContext) -> api.HaSettings:
        return await self._ha.disarm(request.reason, caller_of(context, "DisarmHa", request).principal)

    async def ArmHa(self, request: api.ArmHaRequest, context: CallContext) -> api.HaSettings:
        return await self._ha.arm(caller_of(context, "ArmHa", request).principal)
