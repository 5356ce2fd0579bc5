"""The details of an API error, read from protobuf's wire format by hand.

Connect sends them as base64 of google.rpc messages. Three small messages do not justify loading the protobuf runtime
into a command that is to start at once. Source: https://protobuf.dev/programming-guides/encoding/ and
google/rpc/error_details.proto.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limiquantix.errors import FieldViolation

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What an error says besides code and message."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[FieldViolation] = ()
    retry_after_s: float | None = None


def decode_details(details: object) -> ErrorDetails:
    """Read the `details` array of a Connect error. What cannot be read is left out: the message says enough."""
    reason, metadata, violations = "", dict[str, str](), list[FieldViolation]()
    retry_after_s: float | None = None
    for detail in details if isinstance(details, list) else ():
        kind, payload = _payload(detail)
        try:
            if kind == "google.rpc.ErrorInfo":
                reason, metadata = _error_info(payload)
            elif kind == "google.rpc.BadRequest":
                violations += _violations(payload)
            elif kind == "google.rpc.RetryInfo":
                retry_after_s = _retry_delay(payload)
        except ValueError:
            continue
    return ErrorDetails(reason, metadata, violations, retry_after_s)


def _payload(detail: Any) -> tuple[str, bytes]:
    if not isinstance(detail, dict):
        return "", b""
    value = str(detail.get("value", ""))
    try:
        return str(detail.get("type", "")), base64.b64decode(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        return "", b""


def _error_info(data: bytes) -> tuple[str, dict[str, str]]:
    reason, metadata = "", {}
    for number, value in _fields(data):
        if number == 1:
            reason = _text(value)
        elif number == 3:
            entry = dict(_fields(_bytes(value)))
            metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    return reason, metadata


def _violations(data: bytes) -> list[FieldViolation]:
    found = []
    for number, value in _fields(data):
        if number == 1:
            parts = dict(_fields(_bytes(value)))
            found.append(FieldViolation(_text(parts.get(1, b"")), _text(parts.get(2, b""))))
    return found


def _retry_delay(data: bytes) -> float:
    duration = dict(_fields(_bytes(dict(_fields(data)).get(1, b""))))
    seconds, nanos = duration.get(1, 0), duration.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise ValueError("a duration is made of numbers")
    return seconds + nanos / 1e9


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values: numbers for varints, bytes for everything else.

    Raises:
        ValueError: the data ends inside a field, or has a wire type nobody uses.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if wire_type == _BYTES:
            length, at = _varint(data, at)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("cut short")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode("utf-8", "replace")
