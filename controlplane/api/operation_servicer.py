"""OperationService on the wire: decode, call the desk, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson

from controlplane.access.calling import caller_name
from controlplane.access.telling import told_metadata
from controlplane.access.visibility import EverythingVisible, Sight, Visibility
from controlplane.domain.access import THE_CLUSTER, Permission
from controlplane.domain.documents import timestamp
from controlplane.domain.operation import Operation, OperationFilter
from controlplane.domain.query import Cursor
from controlplane.operations.desk import OperationDesk
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import operation_pb2
from limiquantix.compute.v1 import operation_service_pb2 as api
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceServicer
from limiquantix.rpc.pipeline import CallContext


class OperationServicer(OperationServiceServicer):
    """All methods of the contract."""

    def __init__(self, desk: OperationDesk, visibility: Visibility | None = None) -> None:
        self._desk = desk
        self._visibility = visibility or EverythingVisible()

    async def GetOperation(self, request: api.GetOperationRequest, context: CallContext) -> operation_pb2.Operation:
        return _for(self._visibility.of_caller(), await self._desk.get(request.id))

    async def ListOperations(
        self, request: api.ListOperationsRequest, context: CallContext
    ) -> api.ListOperationsResponse:
        sight = self._visibility.of_caller()
        wanted = OperationFilter(
            resource_id=request.resource_id,
            project_id=request.project_id,
            kinds=frozenset(request.kinds),
            states=frozenset(request.states),
            visible=sight.places(Permission.OPERATION_READ),
        )
        after: Cursor | None = decode_cursor(request.page_token, request)
        page = await self._desk.list(wanted, after, page_limit(request.page_size))
        return api.ListOperationsResponse(
            operations=[_for(sight, operation) for operation in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def WaitOperation(self, request: api.WaitOperationRequest, context: CallContext) -> operation_pb2.Operation:
        return _for(self._visibility.of_caller(), await self._desk.ended(request.id, request.timeout_sec or None))

    async def CancelOperation(
        self, request: api.CancelOperationRequest, context: CallContext
    ) -> operation_pb2.Operation:
        return _for(self._visibility.of_caller(), await self._desk.cancel(request.id, caller_name()))

    async def WatchOperation(
        self, request: api.WatchOperationRequest, context: CallContext
    ) -> AsyncIterator[operation_pb2.Operation]:
        sight = self._visibility.of_caller()
        async for operation in self._desk.follow(request.id):
            yield _for(sight, operation)


def _for(sight: Sight, operation: Operation) -> operation_pb2.Operation:
    """Encode what whoever sees so much may know of an operation."""
    message = to_message(operation)
    if message.error.metadata:
        metadata = told_metadata(message.error.metadata, sight.permissions(THE_CLUSTER))
        message.error.metadata.clear()
        message.error.metadata.update(metadata)
    return message


def to_message(operation: Operation) -> operation_pb2.Operation:
    """Encode an operation; its parameters stay inside, since they may hold secrets."""
    message = operation_pb2.Operation(
        id=operation.id,
        kind=operation.kind,
        resource_type=operation.resource_type,
        resource_id=operation.resource_id,
        project_id=operation.project_id,
        state=operation.state,
        progress_percent=operation.progress_percent,
        waiting_for=operation.waiting_for,
        principal=operation.principal,
        request_id=operation.request_id,
        cancel_requested=bool(operation.cancel_requested),
        attempt_count=operation.attempt_count,
        created_at=timestamp(operation.created_at),
        version=operation.version,
    )
    for step in operation.steps:
        text = orjson.dumps(dict(step.result)).decode() if step.result else ""
        message.steps.add(name=step.name, state=step.state, result_json=text)
    if operation.fault is not None:
        fault = operation.fault
        message.error.code = fault.code
        message.error.reason = fault.reason
        message.error.message = fault.message
        message.error.metadata.update(fault.metadata)
    if operation.response:
        message.response.ParseFromString(operation.response)
    for name, moment in (("started_at", operation.started_at), ("ended_at", operation.ended_at)):
        if moment is not None:
            getattr(message, name).CopyFrom(timestamp(moment))
    return message
