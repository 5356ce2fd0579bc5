"""Validation rules of the contract as constraints of JSON Schema.

What JSON Schema cannot say (CEL expressions, an address with a port) is told in words.

Sources: buf/validate/validate.proto; JSON Schema 2020-12, Validation.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from limiquantix.rpc.list_limits import rules_of
from limiquantix.rpc.validation import violations_of

Schema = dict[str, Any]

_IGNORE_IF_ZERO: Final = 1
_IGNORE_ALWAYS: Final = 3
_UUID: Final = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_TEXT: Final = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern"}
_NUMBER: Final = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_LIST: Final = {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}
_MAP: Final = {"min_pairs": "minProperties", "max_pairs": "maxProperties"}


@functools.cache
def required_fields(message: Descriptor) -> frozenset[str]:
    """Name the fields that a message without any lacks, so that rules are only interpreted in one place."""
    return frozenset(found.field for found in violations_of(GetMessageClass(message)())) & frozenset(
        message.fields_by_name
    )


def constrained(schema: Schema, field: FieldDescriptor) -> Schema:
    """Add the rules of a single value, or of a list or map as a whole, to its schema."""
    rules = rules_of(field)
    return schema if rules is None else _with_rules(schema, rules)


def item_rules(field: FieldDescriptor) -> Any:
    """Give the rules of a list's items, or of a map's values; None if there are none."""
    rules = rules_of(field)
    if rules is None:
        return None
    return rules.map.values if rules.WhichOneof("type") == "map" else rules.repeated.items


def key_schema(field: FieldDescriptor) -> Schema:
    """Say what the keys of a map may be; {} for anything."""
    rules = rules_of(field)
    return {} if rules is None else _with_rules({}, rules.map.keys)


def with_item_rules(schema: Schema, rules: Any) -> Schema:
    """Add the rules of one item to its schema."""
    return schema if rules is None else _with_rules(schema, rules)


def excludes_first_value(field: FieldDescriptor) -> bool:
    """Tell whether an enum's field must not be UNSPECIFIED."""
    rules = rules_of(field)
    return rules is not None and 0 in rules.enum.not_in


def _with_rules(schema: Schema, rules: Any) -> Schema:
    if rules.ignore == _IGNORE_ALWAYS:
        return schema
    added = _typed(rules)
    words = [expression.message or expression.id for expression in rules.cel]
    result = schema
    if added:
        is_wider = rules.ignore == _IGNORE_IF_ZERO and _excludes_zero(schema, added)
        result = {"anyOf": [schema | added, {"const": _zero(schema)}]} if is_wider else schema | added
    if words:
        result = {**result, "description": "\n\n".join([*filter(None, [result.get("description")]), *words])}
    return result


def _typed(rules: Any) -> Schema:
    kind = rules.WhichOneof("type")
    if kind is None:
        return {}
    typed = getattr(rules, kind)
    given = {name.name: value for name, value in typed.ListFields()}
    match kind:
        case "string":
            return _text(given)
        case "repeated":
            return _renamed(given, _LIST)
        case "map":
            return _renamed(given, _MAP)
        case "bytes":
            # Four characters of base64 for three bytes, begun or whole.
            return {"maxLength": -(-given["max_len"] // 3) * 4} if "max_len" in given else {}
        case _:
            return _renamed(given, _NUMBER)


def _text(given: Schema) -> Schema:
    schema = _renamed(given, _TEXT)
    if given.get("uuid"):
        schema |= {"format": "uuid", "pattern": _UUID}
    if given.get("ip"):
        schema |= {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
    if given.get("host_and_port"):
        schema |= {"description": "A host name or IP address, a colon and a port."}
    return schema


def _renamed(given: Schema, names: dict[str, str]) -> Schema:
    return {names[name]: value for name, value in given.items() if name in names}


def _zero(schema: Schema) -> Any:
    return "" if schema.get("type") == "string" else 0


def _excludes_zero(schema: Schema, added: Schema) -> bool:
    """Tell whether constraints refuse the value of a field that was not set."""
    if schema.get("type") == "string":
        return bool(added.keys() & {"format", "pattern", "minLength", "anyOf"})
    return bool(added.get("minimum", 0) > 0 or "exclusiveMinimum" in added)
