"""What a call is written down as: who, what, on what, why and from where, without what is secret."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.domain.audit import AuditEntry
from controlplane.domain.principal import Principal
from limiquantix.rpc.peers import peer_of
from limiquantix.rpc.pipeline import CallOrigin
from limiquantix.rpc.redaction import without_secrets

REQUEST_ID: Final = "limiquantix-request-id"
REASON: Final = "limiquantix-reason"
"""Metadata; HTTP sends them as headers."""

MAX_REQUEST_CHARS: Final = 16 * 2**10
MAX_TEXT_CHARS: Final = 1024
_MAX_ID_CHARS: Final = 256


def entry_of(
    principal: Principal | None,
    method: str,
    request: Message | None,
    resource: str,
    origin: CallOrigin,
    now: datetime,
) -> AuditEntry:
    """Describe a call that begins.

    Args:
        resource: several are separated by commas.
    """
    metadata = dict(origin.invocation_metadata() or ())
    resources = tuple(bounded(each, _MAX_ID_CHARS) for each in resource.split(",") if each)
    return AuditEntry(
        id=str(uuid.uuid4()),
        begun_at=now,
        method=bounded(method, _MAX_ID_CHARS),
        principal_kind="" if principal is None else str(principal.kind),
        principal_id="" if principal is None else bounded(principal.id, _MAX_ID_CHARS),
        principal_name="" if principal is None else bounded(principal.name, _MAX_ID_CHARS),
        resources=resources,
        project_id=bounded(_project_of(request, resources), _MAX_ID_CHARS),
        request_id=bounded(_text(metadata.get(REQUEST_ID, "")), _MAX_ID_CHARS),
        reason=bounded(_text(metadata.get(REASON, "")) or _own_reason(request), MAX_TEXT_CHARS),
        address=bounded(peer_of(origin.peer()).address, _MAX_ID_CHARS),
        request_json="" if request is None else request_json(request),
    )


def bounded(text: str, limit: int) -> str:
    """Cut a text, and take out of it what could pose as something else in a table or a log."""
    cut = text[:limit]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " for c in cut)


def request_json(request: Message) -> str:
    """Write a request as JSON of at most `MAX_REQUEST_CHARS`, without secrets; of long ones the largest parts go."""
    try:
        document: dict[str, Any] = json_format.MessageToDict(without_secrets(request))
    except (ValueError, TypeError):  # such as a moment after the year 9999
        return json.dumps({"unreadable": request.DESCRIPTOR.full_name})
    text = _dumped(document)
    by_size = sorted(document, key=lambda name: len(_dumped(document[name])), reverse=True)
    for name in by_size:
        if len(text) <= MAX_REQUEST_CHARS:
            break
        document[name] = f"[{len(_dumped(document[name]))} characters left out]"
        text = _dumped(document)
    return text


def _dumped(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _project_of(request: Message | None, resources: tuple[str, ...]) -> str:
    named = _own_text(request, "project_id")
    return named or next((each.removeprefix("project/") for each in resources if each.startswith("project/")), "")


def _own_reason(request: Message | None) -> str:
    return _own_text(request, "reason")


def _own_text(request: Message | None, name: str) -> str:
    fields: Mapping[str, Any] = {} if request is None else request.DESCRIPTOR.fields_by_name
    value = getattr(request, name) if name in fields else ""
    return value if isinstance(value, str) else ""


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
