"""BalancingService on the wire: decode, call the service, encode."""

from __future__ import annotations

from controlplane.api.callers import caller_of
from controlplane.domain.documents import timestamp
from controlplane.domain.recommendation import Automation, Recommendation, RecommendationFilter
from controlplane.drs.snapshot import LoadOfNode
from controlplane.services.balancing import BalancingService
from controlplane.services.balancing_moves import BalancingMoves
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import balancing_service_pb2 as api
from limiquantix.compute.v1.balancing_service_pb2_grpc import BalancingServiceServicer
from limiquantix.rpc.pipeline import CallContext

_AUTOMATIONS = {
    Automation.MANUAL: api.BALANCING_AUTOMATION_MANUAL,
    Automation.PARTIAL: api.BALANCING_AUTOMATION_PARTIAL,
    Automation.FULL: api.BALANCING_AUTOMATION_FULL,
}


class BalancingServicer(BalancingServiceServicer):
    """All methods of the contract."""

    def __init__(self, service: BalancingService, moves: BalancingMoves) -> None:
        self._service = service
        self._moves = moves

    async def GetBalance(self, request: api.GetBalanceRequest, context: CallContext) -> api.Balance:
        view = await self._service.balance()
        config = self._service.config
        message = api.Balance(
            automation=_AUTOMATIONS[config.automation],
            is_enabled=config.is_enabled,
            imbalance=view.imbalance,
            nodes=[_load(node) for node in view.nodes],
            message=view.message,
        )
        for name, moment in (("last_run_at", view.run.ran_at), ("next_run_at", view.next_run_at)):
            if moment is not None:
                getattr(message, name).CopyFrom(timestamp(moment))
        return message

    async def RunBalancing(self, request: api.RunBalancingRequest, context: CallContext) -> api.RunBalancingResponse:
        outcome = await self._service.run()
        return api.RunBalancingResponse(
            recommendations=[to_message(each) for each in outcome.recommendations],
            imbalance_before=outcome.imbalance_before,
            imbalance_after=outcome.imbalance_after,
            message=outcome.message,
        )

    async def GetRecommendation(
        self, request: api.GetRecommendationRequest, context: CallContext
    ) -> api.Recommendation:
        return to_message(await self._service.get(request.id))

    async def ListRecommendations(
        self, request: api.ListRecommendationsRequest, context: CallContext
    ) -> api.ListRecommendationsResponse:
        wanted = RecommendationFilter(statuses=frozenset(request.statuses), vm_id=request.vm_id)
        after = decode_cursor(request.page_token, request)
        page = await self._service.list(wanted, after, page_limit(request.page_size))
        return api.ListRecommendationsResponse(
            recommendations=[to_message(each) for each in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def ApproveRecommendation(
        self, request: api.ApproveRecommendationRequest, context: CallContext
    ) -> api.Recommendation:
        caller = caller_of(context, "ApproveRecommendation", request)
        return to_message(await self._service.approve(request.id, caller.principal))

    async def RejectRecommendation(
        self, request: api.RejectRecommendationRequest, context: CallContext
    ) -> api.Recommendation:
        caller = caller_of(context, "RejectRecommendation", request)
        return to_message(await self._service.reject(request.id, request.reason, caller.principal))

    async def ApplyRecommendation(
        self, request: api.ApplyRecommendationRequest, context: CallContext
    ) -> api.Recommendation:
        caller = caller_of(context, "ApplyRecommendation", request)
        return to_message(await self._moves.apply(request.id, caller.principal, waits=caller.waits))


def _load(load: LoadOfNode) -> api.NodeLoad:
    return api.NodeLoad(
        node_id=load.node_id,
        hostname=load.hostname,
        cpu_percent=load.used_cpu,
        memory_percent=load.used_memory,
        cpu_claimed_percent=load.claimed_cpu,
        memory_claimed_percent=load.claimed_memory,
        vm_count=load.vm_count,
    )


def to_message(recommendation: Recommendation) -> api.Recommendation:
    """Encode a recommendation."""
    message = api.Recommendation(
        id=recommendation.id,
        priority=api.Recommendation.Priority.ValueType(recommendation.priority),
        status=recommendation.status,
        reason=recommendation.reason,
        vm_id=recommendation.vm_id,
        vm_name=recommendation.vm_name,
        source_node_id=recommendation.source_node_id,
        target_node_id=recommendation.target_node_id,
        gain_percent=recommendation.gain_percent,
        cost_memory_bytes=recommendation.cost_memory_bytes,
        cost_dirty_bytes_per_sec=recommendation.cost_dirty_bytes_per_s,
        cost_duration_ms=recommendation.cost_duration_ms,
        source_load_before=recommendation.source_load_before,
        source_load_after=recommendation.source_load_after,
        target_load_before=recommendation.target_load_before,
        target_load_after=recommendation.target_load_after,
        step=recommendation.step,
        run_id=recommendation.run_id,
        created_at=timestamp(recommendation.created_at),
        expires_at=timestamp(recommendation.expires_at),
        decided_by=recommendation.decided_by,
        operation_id=recommendation.operation_id,
        status_message=recommendation.status_message,
        exchange_with=recommendation.exchanged_with,
    )
    if recommendation.decided_at is not None:
        message.decided_at.CopyFrom(timestamp(recommendation.decided_at))
    return message
