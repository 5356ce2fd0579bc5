from __future__ import annotations

import io
import os
import threading
import time

import pytest

from controlplane.cli.failures import Interrupted
from controlplane.cli.output import STATE_STYLES, Column, print_columns, print_fields, print_table
from controlplane.cli.progress import redraw, spinner, waiting


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


COLUMNS = (Column("NAME"), Column("STATE", styles=STATE_STYLES), Column("VCPUS", is_number=True))


@pytest.fixture(autouse=True)
def _terminal_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "COLOR" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")


def test_print_table_to_a_file_is_plain_and_aligned() -> None:
    stream = io.StringIO()
    print_table(COLUMNS, [["web", "RUNNING", "2"], ["[b]x\n", "", "128"]], stream)
    assert stream.getvalue() == "NAME    STATE    VCPUS\nweb     RUNNING      2\n[b]x\\n  -          128\n"


def test_print_table_to_a_terminal_colours_states_and_takes_no_markup() -> None:
    stream = _Terminal()
    print_table(COLUMNS, [["[red]web[/red]", "RUNNING", "2"]], stream)
    assert "[red]web[/red]" in stream.getvalue()
    assert "\x1b[32mRUNNING" in stream.getvalue()


def test_print_table_with_no_color_set_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    print_table(COLUMNS, [["web", "RUNNING", "2"]], stream)
    assert "\x1b[3" not in stream.getvalue()
    assert "RUNNING" in stream.getvalue()


def test_print_table_to_a_narrow_terminal_cuts_nothing() -> None:
    stream = _Terminal()
    print_table(COLUMNS, [["n" * 60, "RUNNING", "2"]], stream)
    assert "n" * 60 in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2


def test_print_fields_leaves_out_what_has_no_value() -> None:
    stream = io.StringIO()
    print_fields([("Name", "a\x1b"), ("Empty", ""), ("Longer title", "b")], stream)
    assert stream.getvalue() == "Name:          a\\x1b\nLonger title:  b\n"


def test_spinner_of_what_ends_at_once_shows_nothing() -> None:
    stream = _Terminal()
    with spinner("starting web", stream):
        pass
    assert stream.getvalue() == ""


def test_waiting_cut_short_tells_how_to_find_out_what_became_of_it() -> None:
    with pytest.raises(Interrupted) as caught, waiting("starting web", hint="look there"):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert caught.value.message == "interrupted while starting web; the server goes on with it"
    assert caught.value.hint == "look there"


def test_spinner_shows_how_far_it_is_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = _Terminal()
    looked = threading.Event()

    def look() -> str:
        looked.set()
        return "50 %, \x1b[2Jdefine"

    with spinner("starting web", stream, look=look):
        assert looked.wait(60)
        deadline_s = time.monotonic() + 60
        while "starting web: 50 %, \\x1b[2Jdefine" not in stream.getvalue():
            assert time.monotonic() < deadline_s, stream.getvalue()
            time.sleep(0.01)
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_redraw_keeps_a_long_text_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = _Terminal()
    redraw("x\n" + "y" * 100, stream)
    assert stream.getvalue() == "\r\x1b[2Kx\\n" + "y" * 16


def test_print_columns_pads_and_colours_only_at_a_terminal() -> None:
    stream, pipe = _Terminal(), io.StringIO()
    for each in (stream, pipe):
        print_columns([("a\x1b", 6, ""), ("RUNNING", 8, "green"), ("", 0, "")], each)
    assert pipe.getvalue() == "a\\x1b   RUNNING   -\n"
    assert "\x1b[32mRUNNING " in stream.getvalue()
