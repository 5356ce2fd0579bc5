"""Count the lists of a request before anything looks at what is in them.

The contract bounds every list (`max_items`, `max_pairs`), but its validator judges each item of one that is too long as
well. A message of 16 MiB has room for millions of items, and all other calls wait while they are judged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from limiquantix.errors import FieldViolation

_RULES = "buf.validate.field"


def rules_of(field: FieldDescriptor) -> Any:
    """Give the field's `buf.validate.FieldRules`; None if it has none."""
    return next((rules for option, rules in field.GetOptions().ListFields() if option.full_name == _RULES), None)


def is_map(field: FieldDescriptor) -> bool:
    """Tell a map from other repeated fields."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


@functools.cache
def item_limit(field: FieldDescriptor) -> int | None:
    """Say how many items the contract lets a list or map have; None for a single value, or without a rule."""
    rules = rules_of(field)
    if rules is None or not field.is_repeated:
        return None
    return (rules.map.max_pairs if is_map(field) else rules.repeated.max_items) or None


def too_long(field: FieldDescriptor, path: str) -> FieldViolation:
    """Describe a list or map with more than its `item_limit`."""
    return FieldViolation(path, f"must have at most {item_limit(field)} {'entries' if is_map(field) else 'items'}")


def overlong_lists(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """Find every list and map that has too many items, without looking into any that has."""
    for field in _fields_with_lists(message.DESCRIPTOR):
        here = f"{path}.{field.name}" if path else field.name
        if not field.is_repeated:
            if message.HasField(field.name):
                yield from overlong_lists(getattr(message, field.name), here)
            continue
        items, limit = getattr(message, field.name), item_limit(field)
        if limit is not None and len(items) > limit:
            yield too_long(field, here)
        elif not is_map(field) and field.message_type is not None and _fields_with_lists(field.message_type):
            for index, item in enumerate(items):
                yield from overlong_lists(item, f"{here}[{index}]")


@functools.cache
def _fields_with_lists(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """List the fields that are lists or hold some, however deep."""
    return tuple(field for field in descriptor.fields if _has_lists(field, frozenset()))


def _has_lists(field: FieldDescriptor, within: frozenset[str]) -> bool:
    """Tell whether a value of the field can hold a list; `within` ends types that hold themselves."""
    if field.is_repeated:
        return True
    if field.message_type is None or field.message_type.full_name in within:
        return False
    deeper = within | {field.message_type.full_name}
    return any(_has_lists(inner, deeper) for inner in field.message_type.fields)
