"""Translate `ApiError` to google.rpc.Status with rich details, and back.

The details follow AIP-193: exactly one `ErrorInfo`, plus `BadRequest` for faulty fields and `RetryInfo` where a retry
makes sense. The same details travel over gRPC (trailing metadata) and Connect (the `details` array).
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from limiquantix.errors import ERROR_CLASSES, ApiError, Code, DeadlineExceeded, FieldViolation, Reason, Unavailable

ERROR_DOMAIN = "limiquantix"


def to_status(error: ApiError) -> status_pb2.Status:
    """Encode an error with its details."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.metadata))
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations
                ]
            )
        )
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=int(error.code), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_status(status: status_pb2.Status) -> ApiError:
    """Decode a status; details this version does not know are dropped, the code and message never are."""
    reason, metadata = "UNKNOWN", {}
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        try:
            if packed.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif packed.Unpack(bad):
                violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
            elif packed.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        except DecodeError:
            continue
    error_class = ERROR_CLASSES.get(Code(status.code), ApiError)
    return error_class(reason, status.message, metadata=metadata, violations=violations, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str) -> ApiError:
    """Turn what a gRPC client call raised into the error the peer meant.

    Args:
        peer: who was called, for the message where the peer itself said nothing ("node n1 (10.0.0.4:9090)").
    """
    status = rpc_status.from_call(error)
    if status is not None:
        return from_status(status)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                Reason.NODE_UNREACHABLE, f"{peer} cannot be reached: {error.details()}", metadata={"peer": peer}
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(Reason.DEADLINE_EXCEEDED, f"{peer} did not answer in time", metadata={"peer": peer})
        case code:
            number = Code(code.value[0])
            error_class = ERROR_CLASSES.get(number, ApiError)
            return error_class("UNKNOWN", f"{peer}: {error.details()}", metadata={"peer": peer})
