"""PlacementService on the wire: decode, call the service, encode."""

from __future__ import annotations

from controlplane.services.opinions import PlacementOpinions
from limiquantix.compute.v1 import placement_service_pb2 as api
from limiquantix.compute.v1.placement_service_pb2_grpc import PlacementServiceServicer
from limiquantix.rpc.pipeline import CallContext


class PlacementServicer(PlacementServiceServicer):
    """All methods of the contract."""

    def __init__(self, opinions: PlacementOpinions) -> None:
        self._opinions = opinions

    async def ExplainPlacement(
        self, request: api.ExplainPlacementRequest, context: CallContext
    ) -> api.ExplainPlacementResponse:
        return await self._opinions.explain(request)

    async def PlanPlacements(
        self, request: api.PlanPlacementsRequest, context: CallContext
    ) -> api.PlanPlacementsResponse:
        return await self._opinions.plan(request)

    async def GetCapacity(self, request: api.GetCapacityRequest, context: CallContext) -> api.GetCapacityResponse:
        return await self._opinions.capacity(request)
