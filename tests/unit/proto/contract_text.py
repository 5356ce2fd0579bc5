"""Two ways to the same flat picture of a contract: from its documented text, and from built descriptors.

The picture maps each full name to what stands there, so that comparing two contracts is comparing two dictionaries:
a service or message to its file, a method to its signature, a field to number, type and label, an enum value to its
number. Names of other than ours are full ones (`google.protobuf.Empty`).

The documented text, line by line:

    ### compute/v1/vm.proto   (package limiquantix.compute.v1)
    service VMService
      WatchVM(WatchVMRequest) -> stream VirtualMachine
    message M: a:string=1, b:N[]=2, c:bool?=3, d:map<string, uint64>=4, e:N=5 [oneof choice]
      enum Nested {ZERO=0, ONE=1}
    enum E {ZERO=0}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from tests.unit.proto.descriptors import is_map, is_repeated, map_value

_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
_WELL_KNOWN = {name: f"google.protobuf.{name}" for name in ("Empty", "Timestamp", "FieldMask")}

_SECTION = re.compile(r"### (\S+\.proto)\s+\(package (\S+)\)")
_SERVICE = re.compile(r"service (\w+)")
_METHOD = re.compile(r"  (\w+)\(([\w.]+)\) -> (stream )?([\w.]+)")
_MESSAGE = re.compile(r"message (\w+):(.*)")
_ENUM = re.compile(r"( *)enum (\w+) \{(.*)\}")
_FIELD = re.compile(
    r"(?P<name>\w+):(?:map<string, (?P<mapped>[\w.]+)>|(?P<type>[\w.]+))(?P<mark>\[\]|\?|)=(?P<number>\d+)"
    r"(?: \[oneof (?P<oneof>\w+)\])?(?:, |$)"
)
_VALUE = re.compile(r"(\w+)=(\d+)(?:, |$)")


class ContractTextError(Exception):
    """A line of the text is not understood; nothing is skipped in silence."""


@dataclass(frozen=True, slots=True)
class Method:
    """Signature of a method."""

    request: str
    response: str
    is_response_streaming: bool


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `label` is "", "repeated", "optional", "map" (then `type` is the value's) or "oneof <name>"."""

    number: int
    type: str
    label: str


@dataclass(slots=True)
class Contract:
    """The picture. Keys are full names; a service, message or enum is mapped to the file that defines it."""

    services: dict[str, str] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Field] = field(default_factory=dict)
    enums: dict[str, str] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)


def _whole(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Match a list that the pattern must cover from end to end."""
    matches, position = [], 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise ContractTextError(f"not understood from {text[position:]!r} on")
        matches.append(match)
        position = match.end()
    return matches


def _label(match: re.Match[str]) -> str:
    if match["mapped"]:
        return "map"
    if match["oneof"]:
        return f"oneof {match['oneof']}"
    return {"[]": "repeated", "?": "optional", "": ""}[match["mark"]]


class _Reader:
    def __init__(self) -> None:
        self.contract = Contract()
        self._file = self._package = self._service = self._message = ""
        # Types can be used before their lines, so names are resolved at the end.
        self._used: list[tuple[str, re.Match[str]]] = []
        self._signatures: list[tuple[str, re.Match[str]]] = []

    def read(self, line: str) -> None:
        if match := _SECTION.fullmatch(line):
            self._file, self._package = f"limiquantix/{match[1]}", match[2]
        elif match := _SERVICE.fullmatch(line):
            self._service = f"{self._package}.{match[1]}"
            self.contract.services[self._service] = self._file
        elif match := _METHOD.fullmatch(line):
            self._signatures.append((self._service, match))
        elif match := _MESSAGE.fullmatch(line):
            self._message = f"{self._package}.{match[1]}"
            self.contract.messages[self._message] = self._file
            self._used += [(self._message, item) for item in _whole(_FIELD, match[2].strip())]
        elif match := _ENUM.fullmatch(line):
            scope = self._message if match[1] else self._package
            self.contract.enums[f"{scope}.{match[2]}"] = self._file
            for value in _whole(_VALUE, match[3]):
                self.contract.values[f"{scope}.{match[2]}.{value[1]}"] = int(value[2])
        else:
            raise ContractTextError(f"not understood: {line!r}")

    def finish(self) -> Contract:
        for service, match in self._signatures:
            self.contract.methods[f"{service}.{match[1]}"] = Method(
                self._resolve(service, match[2]), self._resolve(service, match[4]), bool(match[3])
            )
        for message, match in self._used:
            resolved = self._resolve(message, match["mapped"] or match["type"])
            self.contract.fields[f"{message}.{match['name']}"] = Field(int(match["number"]), resolved, _label(match))
        return self.contract

    def _resolve(self, scope: str, name: str) -> str:
        if name in _SCALARS.values():
            return name
        known = self.contract.messages.keys() | self.contract.enums.keys()
        package = scope.rpartition(".")[0]
        for candidate in (f"{scope}.{name}", f"{package}.{name}", _WELL_KNOWN.get(name, "")):
            if candidate in known or candidate in _WELL_KNOWN.values():
                return candidate
        raise ContractTextError(f"type {name} used in {scope} is not defined")


def contract_of_text(text: str) -> Contract:
    """Read documented text; several files may be joined.

    Raises:
        ContractTextError: something in it is not understood.
    """
    reader = _Reader()
    for line in text.splitlines():
        if line.strip():
            reader.read(line.rstrip())
    return reader.finish()


def contract_of_descriptors(files: Iterable[FileDescriptor]) -> Contract:
    """Draw the same picture of built descriptors."""
    contract = Contract()
    for file in files:
        for service in file.services_by_name.values():
            contract.services[service.full_name] = file.name
            for method in service.methods:
                assert not method.client_streaming, f"{method.full_name}: the text has no way to say that"
                contract.methods[method.full_name] = Method(
                    method.input_type.full_name, method.output_type.full_name, method.server_streaming
                )
        for enum in file.enum_types_by_name.values():
            _add_enum(contract, enum)
        for message in file.message_types_by_name.values():
            _add_message(contract, message)
    return contract


def _add_enum(contract: Contract, enum: EnumDescriptor) -> None:
    contract.enums[enum.full_name] = enum.file.name
    for value in enum.values:
        contract.values[f"{enum.full_name}.{value.name}"] = value.number


def _add_message(contract: Contract, message: Descriptor) -> None:
    contract.messages[message.full_name] = message.file.name
    for member in message.fields:
        contract.fields[member.full_name] = Field(member.number, _type_of(member), _label_of(member))
    for enum in message.enum_types:
        _add_enum(contract, enum)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            _add_message(contract, nested)


def _type_of(member: FieldDescriptor) -> str:
    if is_map(member):
        return _type_of(map_value(member))
    named = member.message_type or member.enum_type
    return named.full_name if named is not None else _SCALARS[member.type]


def _label_of(member: FieldDescriptor) -> str:
    if is_map(member):
        return "map"
    if is_repeated(member):
        return "repeated"
    oneof = member.containing_oneof
    if oneof is None:
        return ""
    # `optional` is a oneof with one member that protoc makes and names after the field.
    return "optional" if oneof.name == f"_{member.name}" else f"oneof {oneof.name}"
