"""Walk a JSON document beside the message it is meant to be, and part what can be used from what cannot.

protobuf's own parser stops at the first value that does not fit, tells no path a caller could use, and drops enum names
it does not know in silence. Here every value that does not fit is a fault with its path and is left out, so that the
rest can be parsed and validated, and the caller hears of everything at once. Fields the message does not have are
noted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sized
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from limiquantix.errors import FieldViolation
from limiquantix.rpc.list_limits import item_limit, too_long

MAX_REPORTED_FIELDS = 32
"""Ignored fields that are noted; a body can hold thousands."""

_MAX_PATH_CHARS = 200
_FIELD_MASK = "google.protobuf.FieldMask"
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_INT_BITS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


_NOTHING = object()
"""Stands for a value that could not be used; None is a JSON value."""

_Reader = Callable[[Any, FieldDescriptor, str], Any]


class _Unusable(Exception):
    """A value does not fit; the message says what would."""


class DocumentCheck:
    """Findings of one walk: `faults` are values that do not fit, `ignored` paths of fields nobody knows."""

    def __init__(self) -> None:
        self.faults: list[FieldViolation] = []
        self.ignored: list[str] = []

    def usable(self, document: Mapping[str, Any], descriptor: Any, path: str = "") -> dict[str, Any]:
        """Copy the part of an object that fits its message type, keys in proto names."""
        kept: dict[str, Any] = {}
        seen: set[str] = set()
        for key, value in document.items():
            known = descriptor.fields_by_camelcase_name.get(key) or descriptor.fields_by_name.get(key)
            here = _joined(path, key if known is None else known.name)
            if known is None:
                self._ignore(here)
            elif known.name in seen:
                self._fault(here, "is given twice, in both spellings")
            elif value is not None and (fitting := self._read(self._field, value, known, here)) is not _NOTHING:
                kept[known.name] = fitting
            if known is not None:
                seen.add(known.name)
        return kept

    def _field(self, value: Any, known: FieldDescriptor, path: str) -> Any:
        if known.message_type is not None and known.message_type.GetOptions().map_entry:
            return self._map(value, known, path)
        if not known.is_repeated:
            return self._value(value, known, path)
        if not isinstance(value, list):
            raise _Unusable("must be a list")
        _require_bounded(value, known)
        items = [self._read(self._value, item, known, f"{path}[{index}]") for index, item in enumerate(value)]
        return [item for item in items if item is not _NOTHING]

    def _map(self, value: Any, known: FieldDescriptor, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Unusable("must be an object of keys and values")
        _require_bounded(value, known)
        assert known.message_type is not None  # noqa: S101 - a map's entries are messages
        entry = known.message_type.fields_by_name["value"]
        items = {key: self._read(self._value, item, entry, f'{path}["{key}"]') for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not _NOTHING}

    def _value(self, value: Any, known: FieldDescriptor, path: str) -> Any:
        if known.message_type is None:
            return _scalar(value, known)
        if known.message_type.full_name.startswith("google.protobuf."):
            return _well_known(value, known, known.message_type)
        if not isinstance(value, dict):
            raise _Unusable("must be an object")
        return self.usable(value, known.message_type, path)

    def _read(self, read: _Reader, value: Any, known: FieldDescriptor, path: str) -> Any:
        """Give what `read` makes of a value; `_NOTHING`, and a fault, if it cannot be used."""
        try:
            return read(value, known, path)
        except _Unusable as error:
            self._fault(path, str(error))
            return _NOTHING

    def _fault(self, path: str, description: str) -> None:
        self.faults.append(FieldViolation(path[:_MAX_PATH_CHARS], description))

    def _ignore(self, path: str) -> None:
        if len(self.ignored) < MAX_REPORTED_FIELDS:
            self.ignored.append(path[:_MAX_PATH_CHARS])


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _require_bounded(items: Sized, known: FieldDescriptor) -> None:
    """Refuse a list that is too long as a whole: a body has room for millions of items, and each costs time."""
    limit = item_limit(known)
    if limit is not None and len(items) > limit:
        raise _Unusable(too_long(known, "").description)


def _scalar(value: Any, known: FieldDescriptor) -> Any:
    if known.enum_type is not None:
        return _enum(value, known.enum_type)
    match known.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            if not isinstance(value, bool):
                raise _Unusable("must be true or false")
        case FieldDescriptor.CPPTYPE_STRING:
            _require_text(value, is_bytes=known.type == FieldDescriptor.TYPE_BYTES)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
                raise _Unusable("must be a number")
        case _:
            return _whole_number(value, *_INT_BITS[known.cpp_type])
    return value


def _require_text(value: Any, *, is_bytes: bool) -> None:
    if not isinstance(value, str):
        raise _Unusable("must be text")
    if is_bytes:
        try:
            base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _Unusable("must be base64") from error


def _whole_number(value: Any, smallest: int, largest: int) -> int:
    """Read an integer; 64-bit ones are written as text in proto3 JSON, and 1.0 is one too."""
    is_text = isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_text and not is_number and not (isinstance(value, float) and value.is_integer()):
        raise _Unusable("must be a whole number")
    number = int(value)
    if not smallest <= number <= largest:
        raise _Unusable(f"must be between {smallest} and {largest}")
    return number


def _enum(value: Any, enum: EnumDescriptor) -> Any:
    if isinstance(value, str) and value in enum.values_by_name:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31:
        return value  # numbers nobody defined are for validation to refuse, as over gRPC
    names = ", ".join(each.name for each in enum.values)
    raise _Unusable(f"{value!r:.100} is not one of {names}")


def _well_known(value: Any, known: FieldDescriptor, kind: Descriptor) -> Any:
    """Check a value whose type has a JSON form of its own, such as a timestamp."""
    if kind.full_name == _FIELD_MASK and isinstance(value, str):
        value = re.sub(r"_([a-z])", lambda found: found[1].upper(), value)  # paths in both spellings, as all names
    try:
        json_format.ParseDict(value, GetMessageClass(kind)())
    except (json_format.ParseError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise _Unusable(f"must be the JSON form of a {kind.full_name}") from error
    return value
