"""AuditService on the wire: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.domain.audit import AuditFilter, AuditOutcome
from controlplane.domain.documents import timestamp
from controlplane.services.audit_records import AuditReader, AuditView
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import audit_service_pb2 as api
from limiquantix.compute.v1.audit_service_pb2_grpc import AuditServiceServicer
from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.rpc.pipeline import CallContext

LINES_IN_MESSAGE: Final = 100
"""Of an export. With requests of 16 KiB at most, a message stays below 2 MiB."""


_OUTCOMES: Final = {
    AuditOutcome.DONE: api.AUDIT_OUTCOME_DONE,
    AuditOutcome.FAILED: api.AUDIT_OUTCOME_FAILED,
    AuditOutcome.REFUSED: api.AUDIT_OUTCOME_REFUSED,
    AuditOutcome.UNKNOWN: api.AUDIT_OUTCOME_UNKNOWN,
}


class AuditServicer(AuditServiceServicer):
    """All methods of the contract."""

    def __init__(self, reader: AuditReader) -> None:
        self._reader = reader

    async def ListAuditRecords(
        self, request: api.ListAuditRecordsRequest, context: CallContext
    ) -> api.ListAuditRecordsResponse:
        after = decode_cursor(request.page_token, request)
        page = await self._reader.list(_filter(request.filter), after, page_limit(request.page_size))
        return api.ListAuditRecordsResponse(
            records=[to_message(each) for each in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def ExportAuditRecords(
        self, request: api.ExportAuditRecordsRequest, context: CallContext
    ) -> AsyncIterator[api.ExportAuditRecordsResponse]:
        async for batch in self._reader.export(_filter(request.filter)):
            for begin in range(0, len(batch), LINES_IN_MESSAGE):
                lines = [_line(each) for each in batch[begin : begin + LINES_IN_MESSAGE]]
                yield api.ExportAuditRecordsResponse(lines="".join(lines).encode())

    async def VerifyAuditRecords(
        self, request: api.VerifyAuditRecordsRequest, context: CallContext
    ) -> api.VerifyAuditRecordsResponse:
        verdict = await self._reader.verify()
        return api.VerifyAuditRecordsResponse(
            record_count=verdict.record_count,
            writer_count=verdict.writer_count,
            faults=[
                api.AuditFault(writer_id=each.writer_id, number=each.number, description=each.description)
                for each in verdict.faults
            ],
        )


def to_message(view: AuditView) -> api.AuditRecord:
    """Encode a record."""
    record, entry = view.record, view.record.entry
    message = api.AuditRecord(
        id=entry.id,
        begun_at=timestamp(entry.begun_at),
        principal_kind=entry.principal_kind,
        principal_id=entry.principal_id,
        principal_name=entry.principal_name,
        method=entry.method,
        resources=entry.resources,
        project_id=entry.project_id,
        request_id=entry.request_id,
        reason=entry.reason,
        address=entry.address,
        outcome=_OUTCOMES[record.outcome],
        code=entry.code if record.end is None else record.end.code,
        message=entry.message if record.end is None else record.end.message,
        request_json=entry.request_json,
        call_count=entry.call_count,
        operation_id=view.operation_id,
        writer_id=record.writer_id,
        number=record.number,
        digest=record.digest,
    )
    if entry.is_refusal:
        message.ended_at.CopyFrom(timestamp(entry.begun_at))
    elif record.end is not None:
        message.ended_at.CopyFrom(timestamp(record.end.ended_at))
    return message


def _line(view: AuditView) -> str:
    return json_format.MessageToJson(to_message(view), indent=None, ensure_ascii=True) + "\n"


def _filter(wanted: api.AuditFilter) -> AuditFilter:
    since = _moment(wanted.since, "since") if wanted.HasField("since") else None
    until = _moment(wanted.until, "until") if wanted.HasField("until") else None
    return AuditFilter(
        since=since,
        until=until,
        principal=wanted.principal,
        resource=wanted.resource,
        method=wanted.method,
        outcomes=frozenset(AuditOutcome(each) for each in wanted.outcomes),
    )


def _moment(sent: Timestamp, name: str) -> datetime:
    try:
        return sent.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        text = "is no moment between the years 1 and 9999"
        raise InvalidArgument.from_violations([FieldViolation(f"filter.{name}", text)]) from error
