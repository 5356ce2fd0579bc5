"""Read YAML that somebody else wrote: a tree of plain values that knows on which line each of them stands.

The fast reader of PyYAML builds its tree by recursion in C, which a file of brackets alone overflows, and follows
aliases, with which a short file stands for billions of values. So the tree is built here from its events: nesting is
bounded, aliases and tags are refused, and so are keys that come twice. Words mean what they do in YAML 1.2: `no` and
`on` are texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_FILE_BYTES: Final = 128 * 2**20
"""A cluster of 10,000 nodes with 20 VMs each takes a quarter of that."""
MAX_DEPTH: Final = 32
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,30}", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?", re.ASCII)


class FileUnusable(Exception):
    """A file that cannot be used; `faults` has a line for each of them, `name` is the file."""

    def __init__(self, name: str, *faults: str) -> None:
        super().__init__(f"{name}: {faults[0] if faults else 'unusable'}")
        self.name = name
        self.faults = faults


@dataclass(slots=True)
class Tree:
    """A document, and the lines (from 1) of its values by where they are."""

    name: str
    value: Any
    _lines: _Lines

    @classmethod
    def of(cls, name: str, value: Any) -> Tree:
        """Make the tree of a value that was on one line."""
        return cls(name, value, _Lines(1))

    def line_of(self, path: Sequence[str | int]) -> int:
        """Return the line of a value, or of the closest one around it."""
        lines = self._lines
        for step in path:
            inner = lines.inner.get(step)
            if inner is None:
                break
            lines = inner
        return lines.line


@dataclass(slots=True)
class _Lines:
    line: int
    inner: dict[str | int, _Lines] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A mapping or a list that is not complete; `key` waits for its value."""

    value: dict[str, Any] | list[Any]
    lines: _Lines
    key: str | None = None


def read_tree(data: bytes, name: str, most_bytes: int = MAX_FILE_BYTES) -> Tree:
    """Read one document.

    Args:
        name: of the file, for messages.
        most_bytes: that the data may have.

    Raises:
        FileUnusable: it is no YAML, too large, nested too deeply, or holds aliases, tags or a key twice.
    """
    if len(data) > most_bytes:
        raise FileUnusable(name, f"is larger than {most_bytes // 2**20} MiB")
    builder = _Builder(name)
    try:
        for event in _events(data):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise FileUnusable(name, f"{line}is no YAML: {error.problem or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileUnusable(name, f"is no YAML: {' '.join(str(error).split())}") from error
    if builder.root is None:
        raise FileUnusable(name, "is empty")
    return builder.root


def _events(data: bytes) -> Iterator[yaml.Event]:
    return iter(yaml.parse(data, Loader=_LOADER))


class _Builder:
    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[_Open] = []
        self._document_count = 0
        self.root: Tree | None = None

    def take(self, event: yaml.Event) -> None:
        """Take the next event."""
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        match event:
            case yaml.DocumentStartEvent():
                self._document_count += 1
                if self._document_count > 1:
                    raise self._fault(line, "a second document begins; write one")
            case yaml.AliasEvent():
                raise self._fault(line, "aliases are not taken; write the value out")
            case yaml.ScalarEvent():
                self._require_untagged(event.tag, line)
                self._add(event.value if event.style else _plain(event.value), _Lines(line), is_text=True)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._begin(event, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()

    def _begin(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        self._require_untagged(event.tag, line)
        if len(self._open) >= MAX_DEPTH:
            raise self._fault(line, f"is nested more than {MAX_DEPTH} deep")
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        lines = _Lines(line)
        self._add(value, lines, is_text=False)
        self._open.append(_Open(value, lines))

    def _add(self, value: Any, lines: _Lines, *, is_text: bool) -> None:
        if not self._open:
            self.root = Tree(self._name, value, lines)
            return
        around = self._open[-1]
        if isinstance(around.value, list):
            around.lines.inner[len(around.value)] = lines
            around.value.append(value)
        elif around.key is None:
            if not is_text or value is None:
                raise self._fault(lines.line, "a key must be a text")
            key = str(value)
            if key in around.value:
                raise self._fault(lines.line, f"the key {key!r:.80} comes twice")
            around.key = key
        else:
            # The line of the key: that is where people look.
            around.lines.inner[around.key] = lines
            around.value[around.key] = value
            around.key = None

    def _require_untagged(self, tag: str | None, line: int) -> None:
        if tag not in (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._fault(line, f"the tag {tag!r:.80} is not taken")

    def _fault(self, line: int, message: str) -> FileUnusable:
        return FileUnusable(self._name, f"line {line}: {message}")


def _plain(text: str) -> str | int | float | bool | None:
    """Say what an unquoted word means."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[:1] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
