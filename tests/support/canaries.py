"""A secret that gives itself away, in every field of a request that the contract marks as secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from limiquantix.rpc.list_limits import rules_of
from limiquantix.rpc.redaction import may_hold_secrets

CANARY: Final = "kanari47"
"""No longer than a console's password may be."""
LONG: Final = f"{CANARY} flies over the meadow"
"""Fit to be a password."""
_DEPTH: Final = 6
_LIST: Final = "[]"
"""After the name of a list of messages."""
_IDS: Final = ("id", "vm_id", "source_vm_id")
_NAMES: Final = ("name", "user", "path", "hostname")

Value = Callable[[FieldDescriptor], Any]


def canary_for(field: FieldDescriptor) -> Any:
    """The longest canary that a field takes."""
    rules = rules_of(field)
    limit = (0 if rules is None else rules.string.max_len) or len(LONG)
    text = LONG if limit >= len(LONG) else CANARY
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


def planted(descriptor: Descriptor, value: Value = canary_for) -> Message:
    """Make a request with a value in every secret field, and nothing else."""
    request: Message = GetMessageClass(descriptor)()
    _fill(request, descriptor, value, _DEPTH)
    return request


def named(request: Message, vm_id: str) -> Message:
    """Fill in what a request needs to come further than its check."""
    fields = request.DESCRIPTOR.fields_by_name
    for name in _IDS:
        choice = fields[name].containing_oneof if name in fields else None
        if name in fields and (choice is None or not request.WhichOneof(choice.name)):
            setattr(request, name, vm_id)
    for name in _NAMES:
        if name in fields:
            setattr(request, name, "/x" if name == "path" else "x")
    return request


def paths(descriptor: Descriptor, depth: int = _DEPTH) -> Iterator[tuple[str, ...]]:
    """Yield where secret fields are, by their names in JSON."""
    for each in descriptor.fields:
        if each.GetOptions().debug_redact:
            yield (each.json_name,)
        elif (kind := _kind_with_secrets(each)) is not None and depth:
            own = f"{each.json_name}{_LIST if each.is_repeated else ''}"
            yield from ((own, *below) for below in paths(kind, depth - 1))


def at_path(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Make a JSON document with one value."""
    for name in reversed(path):
        value = {name.removesuffix(_LIST): [value] if name.endswith(_LIST) else value}
    return dict(value)


def _fill(message: Message, descriptor: Descriptor, value: Value, depth: int) -> None:
    for each in descriptor.fields:
        if each.GetOptions().debug_redact:
            planted_value = value(each)
            if each.message_type is not None and each.message_type.GetOptions().map_entry:
                getattr(message, each.name)["NAME"] = planted_value
            elif each.is_repeated:
                getattr(message, each.name).append(planted_value)
            else:
                setattr(message, each.name, planted_value)
        elif (kind := _kind_with_secrets(each)) is not None and depth:
            child = getattr(message, each.name).add() if each.is_repeated else getattr(message, each.name)
            child.SetInParent()
            _fill(child, kind, value, depth - 1)


def _kind_with_secrets(field: FieldDescriptor) -> Descriptor | None:
    """The type of a field's messages, if it has some that may hold secrets."""
    kind = field.message_type
    return None if kind is None or kind.GetOptions().map_entry or not may_hold_secrets(kind) else kind
