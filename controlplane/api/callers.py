"""Who calls, and how they want to be answered, as request metadata says; the same on gRPC and HTTP."""

from __future__ import annotations

from google.protobuf.message import Message

from controlplane.access.calling import caller_name
from controlplane.domain.request_digest import digest_of
from controlplane.operations.desk import Caller
from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.rpc.pipeline import CallContext

REQUEST_ID = "limiquantix-request-id"
WAIT = "limiquantix-wait"
OPERATION_ID = "limiquantix-operation-id"

MAX_REQUEST_ID_LENGTH = 128

_WAITS = {"true": True, "false": False}


def caller_of(context: CallContext, method: str, request: Message) -> Caller:
    """Read the metadata of a call that changes something; its answer will name the operation.

    Args:
        method: name of the method, so that one request id cannot stand for two different methods.

    Raises:
        InvalidArgument: the metadata is not what it must be.
    """
    metadata = {key: value for key, value in context.invocation_metadata() or () if key in (REQUEST_ID, WAIT)}
    request_id, wait = _text(metadata.get(REQUEST_ID, "")), _text(metadata.get(WAIT, "true"))
    faults = []
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not (request_id.isascii() and request_id.isprintable()):
        text = f"must have at most {MAX_REQUEST_ID_LENGTH} printable ASCII characters"
        faults.append(FieldViolation(f"metadata.{REQUEST_ID}", text))
    if wait.lower() not in _WAITS:
        faults.append(FieldViolation(f"metadata.{WAIT}", f"must be true or false, not {wait[:32]!r}"))
    if faults:
        raise InvalidArgument.from_violations(faults)

    def tell(operation_id: str) -> None:
        context.set_trailing_metadata(((OPERATION_ID, operation_id),))

    return Caller(
        principal=caller_name(),
        request_id=request_id,
        request_digest=digest_of(method, request) if request_id else "",
        waits=_WAITS[wait.lower()],
        on_operation=tell,
    )


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
