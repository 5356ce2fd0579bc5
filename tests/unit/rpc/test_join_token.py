"""The text of a join token: what was written is read, all else is refused without telling its secret."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiquantix.join_token import PREFIX, JoinTokenText, JoinTokenUnreadable, decode

TOKEN = JoinTokenText("id-1", "s3cret", b"\x30\x82der", ("cp-1.example:8081", "[2001:db8::1]:8081"))


def test_what_was_written_is_read_also_when_a_terminal_broke_the_line() -> None:
    text = TOKEN.encode()
    assert decode(text) == TOKEN
    assert decode(f"  {text[:20]}\n{text[20:50]}\r\n {text[50:]}\n") == TOKEN
    assert text.startswith("lqj1.")


def test_secret_is_not_shown_by_accident() -> None:
    assert "s3cret" not in repr(TOKEN)


def _body(document: object) -> str:
    return PREFIX + base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


GOOD = {"i": "id-1", "s": "s3cret", "c": base64.b64encode(b"der").decode(), "a": ["cp:1"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lqj2.abc",
        PREFIX,
        PREFIX + "!",
        TOKEN.encode()[:-9],
        _body([]),
        _body("text"),
        _body({**GOOD, "a": []}),
        _body({**GOOD, "a": "cp:1"}),
        _body({**GOOD, "a": [1]}),
        _body({**GOOD, "i": ""}),
        _body({**GOOD, "s": "line\nbreak"}),
        _body({**GOOD, "c": "%"}),
        _body({**GOOD, "c": ""}),
        _body({**GOOD, "x": 1}),
        PREFIX + "A" * 9000,
        PREFIX + base64.urlsafe_b64encode(b"[" * 5000).decode(),
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(JoinTokenUnreadable) as refused:
        decode(text)
    assert "s3cret" not in str(refused.value)


def test_good_document_is_taken() -> None:
    assert decode(_body(GOOD)).addresses == ("cp:1",)


@given(st.text(max_size=300))
def test_no_text_does_harm(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with contextlib.suppress(JoinTokenUnreadable):
            decode(candidate)
