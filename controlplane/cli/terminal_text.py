"""Text from elsewhere made safe for a terminal.

Names, labels, messages and above all what a guest writes to its console may hold escape sequences that retitle,
recolour or script a terminal, and characters that reorder what is read. None of it reaches a terminal unless asked for.
"""

from __future__ import annotations

import codecs
import enum
import re

_REORDERING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_REORDERING}]")

MAX_SEQUENCE_CHARS = 4096
"""An escape sequence longer than this is none; without a bound, one unfinished sequence would hide all that follows."""


def one_line(text: str) -> str:
    """Show control and reordering characters as escapes, so that the text stays on its line and means what it shows."""
    return _UNSAFE.sub(lambda match: escaped(match[0]), text)


def json_safe(document: str) -> str:
    r"""Write what JSON leaves as it is, but a terminal would act on, as the \u escapes of JSON."""
    return re.sub(f"[\x7f-\x9f\u2028\u2029{_REORDERING}]", lambda match: f"\\u{ord(match[0]):04x}", document)


def escaped(character: str) -> str:
    """Write one character as an escape."""
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )


class _In(enum.Enum):
    """Where in an escape sequence the filter is (ECMA-48, section 5)."""

    TEXT = enum.auto()
    ESCAPE = enum.auto()
    """After ESC and any intermediate bytes."""
    CONTROL = enum.auto()
    """In a control sequence (CSI): parameters until a final byte."""
    STRING = enum.auto()
    """In a control string (OSC, DCS, APC, PM, SOS): until BEL or ST."""


_STRING_STARTERS = frozenset("]PX^_")
_C1_CONTROL = "\x9b"
_C1_STRING_STARTERS = frozenset("\x90\x98\x9d\x9e\x9f")
_STRING_TERMINATORS = frozenset("\x07\x9c")


class ConsoleFilter:
    """Turns a guest's console bytes into text without terminal control, piece by piece.

    Sequences and characters may be split over pieces. Of control characters only newline and tab remain.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._state = _In.TEXT
        self._sequence_chars = 0

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return the text of the next piece; `final` also that of an unfinished character."""
        return "".join(filter(None, map(self._step, self._decoder.decode(data, final))))

    def _step(self, character: str) -> str:
        if self._state is _In.TEXT:
            return self._text(character)
        self._sequence_chars += 1
        if character == "\n" or self._sequence_chars > MAX_SEQUENCE_CHARS:
            self._state = _In.TEXT
            return self._text(character)
        if character == "\x1b":
            # Ends a control string when a backslash follows, and starts a new sequence in any case.
            self._state = _In.ESCAPE
        elif self._state is _In.ESCAPE:
            self._escape(character)
        elif self._state is _In.CONTROL:
            if not "\x20" <= character <= "\x3f":
                self._state = _In.TEXT
        elif character in _STRING_TERMINATORS:
            self._state = _In.TEXT
        return ""

    def _escape(self, character: str) -> None:
        if character == "[":
            self._state = _In.CONTROL
        elif character in _STRING_STARTERS:
            self._state = _In.STRING
        elif not "\x20" <= character <= "\x2f":
            self._state = _In.TEXT

    def _text(self, character: str) -> str:
        if character in "\n\t":
            return character
        if character == "\x1b":
            self._enter(_In.ESCAPE)
        elif character == _C1_CONTROL:
            self._enter(_In.CONTROL)
        elif character in _C1_STRING_STARTERS:
            self._enter(_In.STRING)
        elif not _UNSAFE.match(character):
            return character
        return ""

    def _enter(self, state: _In) -> None:
        self._state = state
        self._sequence_chars = 0
