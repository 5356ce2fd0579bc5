"""Page tokens: where to go on, bound to the query they were made for.

A token is opaque, base64url of a version byte, a digest of the query and the cursor. It is neither secret nor signed:
it holds only a position, and every page is filtered and authorised by its own request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import uuid
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from controlplane.domain import errors
from controlplane.domain.query import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Cursor

_VERSION = 1
_DIGEST_BYTES = 8
_LAYOUT = struct.Struct(f">B{_DIGEST_BYTES}sq16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def page_limit(page_size: int) -> int:
    """Turn a requested page size into rows to read: 0 is the default, above the maximum means the maximum (AIP-158)."""
    return min(page_size, MAX_PAGE_SIZE) if page_size else DEFAULT_PAGE_SIZE


def _digest(request: Message) -> bytes:
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page_token")
    query.ClearField("page_size")
    return hashlib.sha256(query.SerializeToString(deterministic=True)).digest()[:_DIGEST_BYTES]


def encode_cursor(cursor: Cursor | None, request: Message) -> str:
    """Make the token that continues `request` after the cursor; "" on the last page."""
    if cursor is None:
        return ""
    created_us = (cursor.created_at - _EPOCH) // _MICROSECOND
    packed = _LAYOUT.pack(_VERSION, _digest(request), created_us, uuid.UUID(cursor.id).bytes)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode_cursor(token: str, request: Message) -> Cursor | None:
    """Read the position from a token; None for "".

    Raises:
        InvalidArgument: the token is damaged, or was made for a query with other filters.
    """
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4))
        version, digest, created_us, id_bytes = _LAYOUT.unpack(raw)
        created_at = _EPOCH + created_us * _MICROSECOND
    except (ValueError, OverflowError, binascii.Error, struct.error) as error:
        raise errors.page_token_invalid() from error
    if version != _VERSION or digest != _digest(request):
        raise errors.page_token_invalid()
    return Cursor(created_at=created_at, id=str(uuid.UUID(bytes=id_bytes)))
