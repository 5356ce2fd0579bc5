"""Translate `ApiError` to google.rpc.Status with rich details, and back.

The details follow AIP-193: exactly one `ErrorInfo`, plus `BadRequest` for faulty fields and `RetryInfo` where a retry
makes sense. The same details travel over gRPC (trailing metadata) and Connect (the `details` array).

gRPC clients refuse trailing metadata above 8 KiB by default, and lose the whole error with it. The message travels
twice and the details in base64, so each part has a budget; what does not fit is counted instead of sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from limiquantix.errors import ERROR_CLASSES, ApiError, Code, DeadlineExceeded, FieldViolation, Reason, Unavailable

ERROR_DOMAIN = "limiquantix"

MAX_MESSAGE_BYTES = 800
MAX_METADATA_BYTES = 1_500
MAX_VIOLATIONS_BYTES = 1_500
"""On the wire at most 800 x 3 (percent-encoded) + (800 + 1,500 + 1,500) x 4/3 bytes and framing, below 8 KiB."""

OMITTED = "omitted_count"
"""Metadata key that says how many entries did not fit."""


def to_status(error: ApiError) -> status_pb2.Status:
    """Encode an error with its details, cut to what every client can receive."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=_fitting(error.metadata))
    ]
    if error.violations:
        details.append(_bad_request(error.violations))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=int(error.code), message=_shortened(error.message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _shortened(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "..."


def _fitting(metadata: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room_bytes = MAX_METADATA_BYTES
    for key, value in metadata.items():
        room_bytes -= len(key.encode()) + len(value.encode())
        if room_bytes < 0:
            return {**kept, OMITTED: str(len(metadata) - len(kept))}
        kept[key] = value
    return kept


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    room_bytes = MAX_VIOLATIONS_BYTES
    for index, violation in enumerate(violations):
        room_bytes -= len(violation.field.encode()) + len(violation.description.encode())
        if room_bytes < 0 and index > 0:
            bad.field_violations.add(description=f"and {len(violations) - index} more faults")
            return bad
        bad.field_violations.add(
            field=_shortened(violation.field, MAX_VIOLATIONS_BYTES),
            description=_shortened(violation.description, MAX_VIOLATIONS_BYTES),
        )
    return bad


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
