from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.terminal_text import MAX_SEQUENCE_CHARS, ConsoleFilter, json_safe, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web-1", "web-1"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj\u202eexe", "gpj\\u202eexe"),
        ("Jürgen 日本 [bold]", "Jürgen 日本 [bold]"),
    ],
)
def test_one_line_control_and_reordering_characters_become_escapes(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_json_safe_document_means_the_same_and_holds_no_control_characters() -> None:
    value = {"name": "\x9b2J\x7f\u202e日本\u2028"}
    text = json_safe(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert "日本" in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"login: \r\n\tok\n", "login: \n\tok\n"),
        (b"\x1b[1;31mred\x1b[0m plain", "red plain"),
        (b"\x1b]0;title\x07shell", "shell"),
        (b"\x1b]52;c;cm0gLXJm\x1b\\shell", "shell"),
        (b"\x1bP1$r0m\x1b\\after", "after"),
        (b"\x1b(B\x1b7\x1bcdone", "done"),
        (b"\x07\x08\x00\x7fx", "x"),
        ("\x9b2Jx\x9d0;t\x9cy".encode(), "xy"),
        (b"\xff\xfex", "\ufffd\ufffdx"),
        (b"\x1b]0;never ended\nnext line", "\nnext line"),
        ("\u202eabc".encode(), "abc"),
    ],
)
def test_console_filter_leaves_text_only(data: bytes, text: str) -> None:
    assert ConsoleFilter().feed(data, final=True) == text


def test_console_filter_endless_sequence_hides_a_bounded_part() -> None:
    text = ConsoleFilter().feed(b"\x1b]" + b"x" * (MAX_SEQUENCE_CHARS + 100))
    assert 100 <= len(text) <= 102


@given(st.binary(max_size=300), st.integers(1, 7))
def test_console_filter_pieces_of_any_size_give_the_same_safe_text(data: bytes, piece_bytes: int) -> None:
    whole = ConsoleFilter().feed(data, final=True)
    parts = ConsoleFilter()
    text = "".join(parts.feed(data[at : at + piece_bytes]) for at in range(0, len(data), piece_bytes))
    assert text + parts.feed(b"", final=True) == whole
    assert all(c in "\n\t" or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0) for c in whole)


@given(st.text(st.characters(blacklist_categories=("Cc", "Cf", "Zl", "Zp", "Cs"))))
def test_console_filter_plain_text_passes_unchanged(text: str) -> None:
    assert ConsoleFilter().feed(text.encode(), final=True) == text
