"""AlertService on the wire: decode, call the service, encode."""

from __future__ import annotations

from controlplane.api.callers import caller_of
from controlplane.domain.alert import Alert, AlertFilter
from controlplane.domain.documents import timestamp
from controlplane.services.alerts import AlertService
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import alert_service_pb2 as api
from limiquantix.compute.v1.alert_service_pb2_grpc import AlertServiceServicer
from limiquantix.rpc.pipeline import CallContext


class AlertServicer(AlertServiceServicer):
    """All methods of the contract."""

    def __init__(self, alerts: AlertService) -> None:
        self._alerts = alerts

    async def GetAlert(self, request: api.GetAlertRequest, context: CallContext) -> api.Alert:
        return to_message(await self._alerts.get(request.id))

    async def ListAlerts(self, request: api.ListAlertsRequest, context: CallContext) -> api.ListAlertsResponse:
        wanted = AlertFilter(
            include_resolved=request.include_resolved,
            resource_id=request.resource_id,
            kinds=frozenset(request.kinds),
        )
        after = decode_cursor(request.page_token, request)
        page = await self._alerts.list(wanted, after, page_limit(request.page_size))
        return api.ListAlertsResponse(
            alerts=[to_message(alert) for alert in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def AcknowledgeAlert(self, request: api.AcknowledgeAlertRequest, context: CallContext) -> api.Alert:
        caller = caller_of(context, "AcknowledgeAlert", request)
        return to_message(await self._alerts.acknowledge(request.id, caller.principal))


def to_message(alert: Alert) -> api.Alert:
    """Encode an alert."""
    message = api.Alert(
        id=alert.id,
        kind=alert.kind,
        severity=alert.severity,
        resource_type=alert.resource_type,
        resource_id=alert.resource_id,
        message=alert.message,
        raised_at=timestamp(alert.raised_at),
        last_seen_at=timestamp(alert.last_seen_at),
        acknowledged_by=alert.acknowledged_by,
    )
    for name, moment in (("resolved_at", alert.resolved_at), ("acknowledged_at", alert.acknowledged_at)):
        if moment is not None:
            getattr(message, name).CopyFrom(timestamp(moment))
    return message
