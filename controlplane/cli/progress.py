"""Shows that something is being waited for, and for how long; only to a person at a terminal."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from controlplane.cli.failures import Interrupted
from controlplane.cli.sizes import format_age
from controlplane.cli.terminal_text import one_line

QUIET_S = 0.4
"""Nothing is shown for what takes no longer: a line that flashes up tells nobody anything."""
_FRAME_S = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"
_CLEAR_LINE = "\r\x1b[2K"
_MAX_TEXT_CHARS = 60
"""A longer line would wrap on a narrow terminal, and a wrapped line cannot be redrawn."""


@contextmanager
def waiting(what: str, *, hint: str = "") -> Iterator[None]:
    """Show a spinner and the elapsed time on standard error around a call that takes its time.

    Args:
        what: such as "starting web-1".
        hint: how to find out what became of it if the wait is cut short with Ctrl-C; "" for what changes nothing.

    Raises:
        Interrupted: on Ctrl-C. The server goes on with what it has begun.
    """
    shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    try:
        with spinner(one_line(what), sys.stderr) if shown else _nothing():
            yield
    except KeyboardInterrupt:
        outlook = "; the server goes on with it" if hint else ""
        raise Interrupted(f"interrupted while {what}{outlook}", hint=hint) from None


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def spinner(text: str, stream: TextIO, now_s: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Redraw one line of a terminal until the block ends, then leave nothing of it."""
    done = threading.Event()
    thread = threading.Thread(target=_draw, args=(text, stream, done, now_s), name="spinner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _draw(text: str, stream: TextIO, done: threading.Event, now_s: Callable[[], float]) -> None:
    began_s = now_s()
    if done.wait(QUIET_S):
        return
    is_unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    for frame in itertools.cycle(_FRAMES if is_unicode else _ASCII_FRAMES):
        stream.write(f"{_CLEAR_LINE}{frame} {text[:_MAX_TEXT_CHARS]}  {format_age(now_s() - began_s)}")
        stream.flush()
        if done.wait(_FRAME_S):
            break
    stream.write(_CLEAR_LINE)
    stream.flush()
