"""Messages and enums of the contract as JSON Schemas, in the form that proto3 JSON gives them.

Source: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from controlplane.api.http.openapi.rules import (
    Schema,
    constrained,
    excludes_first_value,
    item_rules,
    key_schema,
    required_fields,
    with_item_rules,
)
from limiquantix.rpc.list_limits import is_map

_REFERENCE: Final = "#/components/schemas/"
_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Paths of fields, separated by commas."},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Empty": {"type": "object"},
}
_WHOLE: Final[Mapping[int, Schema]] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1},
    # Written as text, since JavaScript's numbers are exact up to 2^53 only; numbers are read as well.
    FieldDescriptor.CPPTYPE_INT64: {
        "type": ["string", "integer"],
        "format": "int64",
        "pattern": "^-?[0-9]{1,19}$",
        "minimum": -(2**63),
        "maximum": 2**63 - 1,
    },
    FieldDescriptor.CPPTYPE_UINT64: {
        "type": ["string", "integer"],
        "format": "uint64",
        "pattern": "^[0-9]{1,20}$",
        "minimum": 0,
        "maximum": 2**64 - 1,
    },
}


class Schemas:
    """Collects the schemas of all types that are referred to; `components` has them by full name."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self.components: dict[str, Schema] = {}
        self._comments = comments

    def reference(self, descriptor: Descriptor | EnumDescriptor) -> Schema:
        """Refer to a type, and see to it that its schema is there; well-known types are given as they are."""
        name = descriptor.full_name
        known = _WELL_KNOWN.get(name)
        if known is not None:
            return dict(known)
        if name not in self.components:
            self.components[name] = {}  # types may hold themselves
            if isinstance(descriptor, EnumDescriptor):
                self.components[name] = self._enum(descriptor)
            else:
                self.components[name] = self._message(descriptor)
        return {"$ref": f"{_REFERENCE}{name}"}

    def described(self, full_name: str, schema: Schema) -> Schema:
        """Put a comment of the contract before what the schema says already."""
        words = [text for text in (self._comments.get(full_name), schema.get("description")) if text]
        return {**schema, "description": "\n\n".join(words)} if words else schema

    def _enum(self, enum: EnumDescriptor) -> Schema:
        comments = [(value.name, self._comments.get(f"{enum.full_name}.{value.name}")) for value in enum.values]
        lines = [f"- `{name}`: {' '.join(text.split())}" for name, text in comments if text]
        schema: Schema = {"type": "string", "enum": [value.name for value in enum.values]}
        if lines:
            schema["description"] = "\n".join(lines)
        return self.described(enum.full_name, schema)

    def _message(self, message: Descriptor) -> Schema:
        schema: Schema = {
            "type": "object",
            "properties": {_json_name(field): self._field(field) for field in message.fields},
        }
        required = [_json_name(message.fields_by_name[name]) for name in sorted(required_fields(message))]
        if required:
            schema["required"] = required
        choices = [_choice(oneof) for oneof in message.oneofs if len(oneof.fields) > 1]
        if choices:
            schema["allOf"] = choices
        return self.described(message.full_name, schema)

    def _field(self, field: FieldDescriptor) -> Schema:
        schema: Schema
        if is_map(field):
            assert field.message_type is not None  # noqa: S101 - a map's entries are messages
            value = self._value(field.message_type.fields_by_name["value"])
            schema = {"type": "object", "additionalProperties": with_item_rules(value, item_rules(field))}
            keys = key_schema(field)
            if keys:
                schema["propertyNames"] = keys
        elif field.is_repeated:
            schema = {"type": "array", "items": with_item_rules(self._value(field), item_rules(field))}
        else:
            schema = self._value(field)
        return self.described(field.full_name, constrained(schema, field))

    def _value(self, field: FieldDescriptor) -> Schema:
        kind = field.message_type or field.enum_type
        if kind is not None:
            reference = self.reference(kind)
            if field.enum_type is None or not excludes_first_value(field):
                return reference
            return {"allOf": [reference, {"not": {"const": field.enum_type.values_by_number[0].name}}]}
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return {"type": "boolean"}
            case FieldDescriptor.CPPTYPE_STRING:
                is_bytes = field.type == FieldDescriptor.TYPE_BYTES
                return {"type": "string", "contentEncoding": "base64"} if is_bytes else {"type": "string"}
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return {"type": "number", "format": "double"}
            case _:
                return dict(_WHOLE[field.cpp_type])


def _json_name(field: FieldDescriptor) -> str:
    return str(field.json_name)


def _choice(oneof: Any) -> Schema:
    """Say that at most one of the fields may be given, or exactly one where the contract asks for one."""
    alternatives: list[Schema] = [{"required": [_json_name(field)]} for field in oneof.fields]
    is_required = any(option.full_name == "buf.validate.oneof" and rule.required for option, rule in _options(oneof))
    return {"oneOf": alternatives if is_required else [*alternatives, {"not": {"anyOf": alternatives}}]}


def _options(oneof: Any) -> list[tuple[Any, Any]]:
    return list(oneof.GetOptions().ListFields())
