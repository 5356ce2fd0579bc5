"""The comments of the contract, by the full name of what they stand at.

Generated Python modules carry none, so they are read from the descriptor set, which lies beside the package in a
checkout and inside of it once installed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_PLACES: Final = (_PACKAGE / "limiquantix.binpb", _PACKAGE.parent / "limiquantix.binpb")
_OURS: Final = "limiquantix."

_Numbered = tuple[tuple[int, ...], str]


@functools.cache
def comments() -> Mapping[str, str]:
    """Read all comments: "limiquantix.compute.v1.VMService.CreateVM" and so on; blocks at the first call.

    Raises:
        FileNotFoundError: the installation lacks the descriptor set.
    """
    path = next((place for place in _PLACES if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"the contract's descriptor set is missing; looked for {' and '.join(map(str, _PLACES))}"
        )
    files = FileDescriptorSet.FromString(path.read_bytes()).file
    return {name: text for file in files if file.package.startswith(_OURS) for name, text in _comments_of(file)}


def _comments_of(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names = dict(_names_of(file))
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        text = location.leading_comments or location.trailing_comments
        if name is not None and text.strip():
            yield name, _unwrapped(text)


def _names_of(file: FileDescriptorProto) -> Iterator[_Numbered]:
    """Give the path of each thing in a file, in field numbers of descriptor.proto, and its full name."""
    yield from _messages(file.message_type, (4,), file.package)
    yield from _enums(file.enum_type, (5,), file.package)
    for index, service in enumerate(file.service):
        here = f"{file.package}.{service.name}"
        yield (6, index), here
        yield from _named(service.method, (6, index, 2), here)


def _messages(messages: Sequence[Any], path: tuple[int, ...], scope: str) -> Iterator[_Numbered]:
    for index, message in enumerate(messages):
        here, at = f"{scope}.{message.name}", (*path, index)
        yield at, here
        yield from _named(message.field, (*at, 2), here)
        yield from _messages(message.nested_type, (*at, 3), here)
        yield from _enums(message.enum_type, (*at, 4), here)


def _enums(enums: Sequence[Any], path: tuple[int, ...], scope: str) -> Iterator[_Numbered]:
    for index, enum in enumerate(enums):
        here = f"{scope}.{enum.name}"
        yield (*path, index), here
        yield from _named(enum.value, (*path, index, 2), here)


def _named(things: Sequence[Any], path: tuple[int, ...], scope: str) -> Iterator[_Numbered]:
    for index, thing in enumerate(things):
        yield (*path, index), f"{scope}.{thing.name}"


def _unwrapped(text: str) -> str:
    """Join the lines of each paragraph; lists and code keep theirs."""
    paragraphs: list[str] = []
    for block in text.strip().split("\n\n"):
        lines = [line.removeprefix(" ").rstrip() for line in block.splitlines()]
        is_plain = not any(line.startswith((" ", "-", "*", "|")) for line in lines)
        paragraphs.append((" " if is_plain else "\n").join(lines))
    return "\n\n".join(paragraphs)
