"""One stream for structlog and the standard library."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from google.protobuf.duration_pb2 import Duration

from telemetry.logs import LogFormat, configure_logging


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_facts_of_both_kinds_of_loggers() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, stream)
    structlog.get_logger("a").info("vm_started", vm_id="v1")
    logging.getLogger("b").warning("took %d s", 3, extra={"peer": "p"})
    first, second = lines(stream)
    assert (first["event"], first["vm_id"], first["logger"], first["level"]) == ("vm_started", "v1", "a", "info")
    assert (second["event"], second["peer"], second["logger"], second["level"]) == ("took 3 s", "p", "b", "warning")
    assert first["timestamp"]


def test_lines_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure_logging("warning", LogFormat.JSON, stream)
    structlog.get_logger("a").info("no")
    logging.getLogger("b").info("no")
    assert stream.getvalue() == ""


def test_exceptions_are_one_json_line_with_the_traceback_inside() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, stream)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger("a").exception("failed")
    (line,) = lines(stream)
    assert "ValueError: boom" in str(line["exception"])


def test_console_lines_are_for_people() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.CONSOLE, stream)
    structlog.get_logger("a").info("vm_started", vm_id="v1")
    assert "vm_started" in stream.getvalue()
    assert "vm_id=v1" in stream.getvalue()


def test_unknown_level_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        configure_logging("loud", LogFormat.JSON)


def test_hostile_text_begins_no_line_of_its_own_on_the_console() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.CONSOLE, stream)
    structlog.get_logger("a").warning("refused", name="x\n2026 forged\x1b[2J")
    logging.getLogger("b").warning("refused %s", "x\n2026 forged\x1b[2J")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()


def test_facts_that_are_secret_by_name_and_messages_are_not_written() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, stream)
    facts = {"vnc_password": "hush", "token": "hush", "request": Duration(seconds=4711), "headers": {"Cookie": "hush"}}
    structlog.get_logger("a").info("asked", user="ann", fence_token=7, **facts)
    logging.getLogger("b").info("asked", extra={"user_data": "hush"})
    assert "hush" not in stream.getvalue()
    assert "4711" not in stream.getvalue()
    first, _ = lines(stream)
    assert (first["user"], first["token"], first["request"]) == ("ann", "[secret]", "<google.protobuf.Duration>")
    assert first["fence_token"] == 7, "a number is no secret"


def test_traceback_for_people_has_no_values_of_variables() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.CONSOLE, stream)

    def fail(secret: str) -> None:
        raise ValueError(len(secret))

    try:
        fail("hush" + "-hush")
    except ValueError:
        structlog.get_logger("a").exception("failed")
    assert "ValueError: 9" in stream.getvalue()
    assert "hush-hush" not in stream.getvalue()
