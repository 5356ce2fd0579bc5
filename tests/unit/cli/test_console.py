"""How to get at a console: which is asked for, and what is refused before anything is."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_http_api import Document, FakeApi, Run, uuid_of

ENTRY: Document = {
    "consoleType": "CONSOLE_TYPE_SERIAL",
    "host": "127.0.0.1",
    "port": 5901,
    "password": "s3cret",
    "expiresAt": "2024-01-01T00:01:00Z",
}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ((), {}),
        (("--type", "vnc"), {"consoleType": "CONSOLE_TYPE_VNC"}),
        (("--type", "spice"), {"consoleType": "CONSOLE_TYPE_SPICE"}),
        (("--type", "serial"), {"consoleType": "CONSOLE_TYPE_SERIAL"}),
    ],
)
def test_console_asks_for_the_kind_that_is_wanted(
    api: FakeApi, run: Run, arguments: tuple[str, ...], asked: Document
) -> None:
    api.answers["GetConsole"] = lambda _: ENTRY
    output = run("vm", "console", uuid_of(1), *arguments).stdout
    assert api.request("GetConsole") == {"vmId": uuid_of(1), **asked}
    for words in ("SERIAL", "127.0.0.1:5901", "s3cret", "2024-01-01T00:01:00Z"):
        assert words in output


def test_console_in_json_is_the_apis_own(api: FakeApi, run: Run) -> None:
    api.answers["GetConsole"] = lambda _: ENTRY
    assert json.loads(run("vm", "console", uuid_of(1), "-o", "json").stdout) == ENTRY


def test_attach_to_a_display_is_refused_before_an_entry_is_made(api: FakeApi, run: Run) -> None:
    result = run("vm", "console", uuid_of(1), "--type", "vnc", "--attach")
    assert result.exit_code == 2
    assert "needs a viewer" in result.stderr
    assert api.requests == []


def test_attach_without_a_terminal_says_what_to_do(api: FakeApi, run: Run) -> None:
    result = run("vm", "console", uuid_of(1), "--attach")
    assert result.exit_code == 2
    assert "--attach needs a terminal" in result.stderr
    assert api.requests == []
