"""Which fields of the contract's messages are secret, and messages without them.

A field is secret if its option `debug_redact` says so (google/protobuf/descriptor.proto); that is the one place where
it is said, for records, logs and what is sealed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED: Final = "[secret]"
"""Stands for a text that was taken out, so that one sees that there was one."""

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class _Child:
    """A field whose messages may hold secrets somewhere below."""

    name: str
    is_repeated: bool
    is_map: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where to look in messages of one type."""

    secret_texts: tuple[str, ...]
    """Single strings."""
    other_secrets: tuple[str, ...]
    """Bytes, messages, lists and maps."""
    children: tuple[_Child, ...]


_PLANS: Final[dict[type[Message], _Plan]] = {}


def may_hold_secrets(descriptor: Descriptor) -> bool:
    """Tell whether messages of a type have secret fields, at any depth."""
    plan = _plan(descriptor)
    return bool(plan.secret_texts or plan.other_secrets or plan.children)


def holds_secrets(message: Message) -> bool:
    """Tell whether any secret field is filled in."""
    plan = _plan_of(type(message))
    if any(getattr(message, name) for name in plan.secret_texts):
        return True
    if any(_is_set(message, name) for name in plan.other_secrets):
        return True
    return any(holds_secrets(each) for child in plan.children for each in _messages(message, child))


def without_secrets(message: MessageT) -> MessageT:
    """Return a copy in which secret texts read `REDACTED` and other secrets are left out.

    The contents of an `Any` are left out too: its type need not be known here, nor what is secret in it.
    """
    copy = type(message)()
    copy.CopyFrom(message)
    _redact(copy)
    return copy


def _redact(message: Message) -> None:
    if isinstance(message, AnyMessage):
        message.Clear()
        return
    plan = _plan_of(type(message))
    for name in plan.secret_texts:
        if getattr(message, name):
            setattr(message, name, REDACTED)
    for name in plan.other_secrets:
        message.ClearField(name)
    for child in plan.children:
        for each in _messages(message, child):
            _redact(each)


def _is_set(message: Message, name: str) -> bool:
    value: Any = getattr(message, name)
    return message.HasField(name) if isinstance(value, Message) else bool(value)


def _messages(message: Message, child: _Child) -> Iterable[Message]:
    if child.is_map:
        values: Iterable[Message] = getattr(message, child.name).values()
        return values
    if child.is_repeated:
        listed: Iterable[Message] = getattr(message, child.name)
        return listed
    return (getattr(message, child.name),) if message.HasField(child.name) else ()


def _plan_of(kind: type[Message]) -> _Plan:
    """The plan by class, since asking a message for its descriptor costs more than all of the rest."""
    plan = _PLANS.get(kind)
    if plan is None:
        plan = _PLANS[kind] = _plan(kind.DESCRIPTOR)
    return plan


@functools.cache
def _plan(descriptor: Descriptor) -> _Plan:
    fields = list(descriptor.fields)
    secret = [field for field in fields if field.GetOptions().debug_redact]
    texts = [each for each in secret if each.type == FieldDescriptor.TYPE_STRING and not each.is_repeated]
    return _Plan(
        secret_texts=tuple(field.name for field in texts),
        other_secrets=tuple(field.name for field in secret if field not in texts),
        children=tuple(_child(field) for field in fields if field not in secret and _leads_to_secrets(field)),
    )


def _child(field: FieldDescriptor) -> _Child:
    return _Child(field.name, field.is_repeated, _is_map(field))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _leads_to_secrets(field: FieldDescriptor) -> bool:
    """Whether a secret field can be reached; types that contain themselves are looked at once."""
    seen: set[str] = set()
    waiting = [field.message_type]
    while waiting:
        descriptor = waiting.pop()
        if descriptor is None or descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        if descriptor.full_name == AnyMessage.DESCRIPTOR.full_name:
            return True
        if any(each.GetOptions().debug_redact for each in descriptor.fields):
            # Of a map whose values are no messages, nothing can be walked: it is marked as a whole.
            return not _is_map(field) or descriptor.fields_by_name["value"].message_type is not None
        waiting += [each.message_type for each in descriptor.fields]
    return False
