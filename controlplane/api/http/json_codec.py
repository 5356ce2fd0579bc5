"""JSON bodies to messages, strictly: what a caller wrote is used, reported as ignored, or refused by path.

The walk over the document is in `json_check`. Its notes are left on the request: ignored fields go into the response
header `limiquantix-ignored-fields`, faults are reported by validation together with all others.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from connectrpc.codec import Codec
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from controlplane.api.http.json_check import DocumentCheck
from limiquantix.errors import FieldViolation, InvalidArgument, Reason

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(slots=True)
class DecodeNotes:
    """What decoding one request found besides the message itself."""

    ignored: list[str] = field(default_factory=list)
    """Paths of fields that the message does not have."""
    faults: list[FieldViolation] = field(default_factory=list)
    """Values that do not fit their fields, which the message was made without."""


decode_notes: ContextVar[DecodeNotes | None] = ContextVar("decode_notes", default=None)
"""Where the codec leaves its notes on the current request."""


class StrictJsonCodec(Codec[Message, Any]):
    """Connect codec "json" for google.protobuf messages."""

    def name(self) -> str:
        """Content type suffix this codec answers to."""
        return "json"

    def encode(self, message: Message) -> bytes:
        """Encode as proto3 JSON: camelCase names, enum values by name, unset fields left out."""
        return json_format.MessageToJson(message, indent=None).encode()

    def decode(self, data: bytes | bytearray, message_class: type[MessageT]) -> MessageT:
        """Decode a body; an empty one is the empty message.

        Raises:
            InvalidArgument: it is not a JSON object. Values that do not fit their fields are noted, not raised.
        """
        message = message_class()
        if not data.strip():
            return message
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise InvalidArgument(Reason.MALFORMED_REQUEST, f"the body is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise InvalidArgument(Reason.MALFORMED_REQUEST, "the body must be a JSON object")
        check = DocumentCheck()
        usable = check.usable(document, message.DESCRIPTOR)
        notes = decode_notes.get()
        if notes is None:
            raise RuntimeError("a body is decoded outside of report_ignored_fields, so its faults would be lost")
        notes.ignored, notes.faults = check.ignored, check.faults
        try:
            json_format.ParseDict(usable, message, max_recursion_depth=64)
        except (json_format.ParseError, ValueError, TypeError, OverflowError) as error:
            raise InvalidArgument(Reason.MALFORMED_REQUEST, f"a value does not fit its field: {error}") from error
        return message


class BinaryCodec(Codec[Message, Any]):
    """Connect codec "proto" for google.protobuf messages."""

    def name(self) -> str:
        """Content type suffix this codec answers to."""
        return "proto"

    def encode(self, message: Message) -> bytes:
        """Encode in the wire format."""
        return message.SerializeToString()

    def decode(self, data: bytes | bytearray, message_class: type[MessageT]) -> MessageT:
        """Decode from the wire format.

        Raises:
            InvalidArgument: it is no such message.
        """
        try:
            return message_class.FromString(bytes(data))
        except DecodeError as error:
            name = message_class.DESCRIPTOR.full_name
            raise InvalidArgument(Reason.MALFORMED_REQUEST, f"the body is not a {name}") from error
