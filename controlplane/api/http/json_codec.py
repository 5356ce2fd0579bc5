"""JSON bodies to messages, strictly: what a caller wrote is used, reported as ignored, or refused by path.

protobuf's own parser, told to ignore unknown fields, also drops unknown enum names in silence. So the body is walked
beside the message's descriptor first: unknown fields are noted for the response header `limiquantix-ignored-fields`,
enum names that do not exist are noted as faults, which validation reports together with all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from connectrpc.codec import Codec
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from limiquantix.errors import FieldViolation, InvalidArgument, Reason

MessageT = TypeVar("MessageT", bound=Message)

_MAX_REPORTED_PATH_CHARS = 200

MAX_REPORTED_FIELDS = 32
"""Ignored fields named in the response header; a body can hold thousands."""


@dataclass(slots=True)
class DecodeNotes:
    """What decoding one request found besides the message itself."""

    ignored: list[str] = field(default_factory=list)
    """Paths of fields that the message does not have."""
    faults: list[FieldViolation] = field(default_factory=list)
    """Enum names that do not exist."""


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
            InvalidArgument: it is not JSON, or a value does not fit its field's type.
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
        notes = decode_notes.get() or DecodeNotes()
        notes.faults.extend(_faults_of(document, message.DESCRIPTOR, "", notes.ignored))
        try:
            json_format.ParseDict(document, message, ignore_unknown_fields=True, max_recursion_depth=64)
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
        """Decode from the wire format."""
        return message_class.FromString(bytes(data))


def _faults_of(document: dict[str, Any], descriptor: Any, path: str, ignored: list[str]) -> Iterator[FieldViolation]:
    """Walk an object beside its message type: yields enum faults, collects unknown fields in `ignored`."""
    fields = descriptor.fields_by_name
    for key, value in document.items():
        known = descriptor.fields_by_camelcase_name.get(key) or fields.get(key)
        name = known.name if known is not None else key
        here = f"{path}.{name}" if path else name
        if known is None:
            if len(ignored) < MAX_REPORTED_FIELDS:
                ignored.append(here[:_MAX_REPORTED_PATH_CHARS])
        elif value is not None:
            yield from _faults_of_field(value, known, here, ignored)


def _faults_of_field(value: Any, known: FieldDescriptor, path: str, ignored: list[str]) -> Iterator[FieldViolation]:
    if known.message_type is not None and known.message_type.GetOptions().map_entry:
        entry = known.message_type.fields_by_name["value"]
        items = value.items() if isinstance(value, dict) else ()
        for key, item in items:
            yield from _faults_of_value(item, entry, f'{path}["{key}"]', ignored)
    elif known.is_repeated:
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _faults_of_value(item, known, f"{path}[{index}]", ignored)
    else:
        yield from _faults_of_value(value, known, path, ignored)


def _faults_of_value(value: Any, known: FieldDescriptor, path: str, ignored: list[str]) -> Iterator[FieldViolation]:
    if known.enum_type is not None and isinstance(value, str):
        if value not in known.enum_type.values_by_name:
            yield FieldViolation(path, f"{value!r:.100} is not one of {', '.join(_names(known.enum_type))}")
    elif isinstance(value, dict) and _is_plain_message(known.message_type):
        yield from _faults_of(value, known.message_type, path, ignored)


def _is_plain_message(descriptor: Any) -> bool:
    """Whether JSON writes the message as an object of its fields; well-known types have forms of their own."""
    return descriptor is not None and not descriptor.full_name.startswith("google.protobuf.")


def _names(enum: EnumDescriptor) -> list[str]:
    return [value.name for value in enum.values]
