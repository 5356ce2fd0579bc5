"""Give every id of a request its one spelling, before anything looks at it.

The contract takes UUIDs in capitals too, as RFC 9562 wants it, and answers in small letters. Compared as text, the two
would be different VMs: a look-up would miss, an anti-affinity would silently not hold. Which fields are ids is read
from their validation rules, so a new field needs nothing here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from limiquantix.rpc.list_limits import is_map, rules_of


@dataclass(frozen=True, slots=True)
class _Ids:
    """Names of the fields of one message type that are ids, or hold messages that may have some."""

    single: tuple[str, ...]
    repeated: tuple[str, ...]
    message: tuple[str, ...]
    messages: tuple[str, ...]


def canonicalise_ids(message: Message) -> None:
    """Write every UUID of the message in small letters, in place."""
    ids = _ids_of(message.DESCRIPTOR)
    for name in ids.single:
        value = getattr(message, name)
        if value != value.lower():
            setattr(message, name, value.lower())
    for name in ids.repeated:
        values = getattr(message, name)
        values[:] = [value.lower() for value in values]
    for name in ids.message:
        if message.HasField(name):
            canonicalise_ids(getattr(message, name))
    for name in ids.messages:
        for inner in getattr(message, name):
            canonicalise_ids(inner)


@functools.cache
def _ids_of(descriptor: Descriptor) -> _Ids:
    fields = [field for field in descriptor.fields if not is_map(field)]
    ids = [field for field in fields if _is_id(field)]
    holders = [field for field in fields if field.message_type and _has_ids(field.message_type, frozenset())]
    return _Ids(
        single=tuple(field.name for field in ids if not field.is_repeated),
        repeated=tuple(field.name for field in ids if field.is_repeated),
        message=tuple(field.name for field in holders if not field.is_repeated),
        messages=tuple(field.name for field in holders if field.is_repeated),
    )


def _has_ids(descriptor: Descriptor, within: frozenset[str]) -> bool:
    """Tell whether a message of this type can hold an id, however deep; `within` ends types that hold themselves."""
    if descriptor.full_name in within:
        return False
    deeper = within | {descriptor.full_name}
    return any(
        _is_id(field) or (field.message_type is not None and _has_ids(field.message_type, deeper))
        for field in descriptor.fields
        if not is_map(field)
    )


def _is_id(field: FieldDescriptor) -> bool:
    rules = rules_of(field)
    if field.type != field.TYPE_STRING or rules is None:
        return False
    return bool(rules.repeated.items.string.uuid if field.is_repeated else rules.string.uuid)
