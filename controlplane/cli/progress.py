"""Shows that something is being waited for, for how long and how far it is; only to a person at a terminal."""

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
LOOK_INTERVAL_S = 1.0
"""Between looks at how far it is, and before the first one: most of what is waited for does not take as long."""
_FRAME_S = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"
_CLEAR_LINE = "\r\x1b[2K"
_USUAL_COLUMNS = 80
_BESIDE_TEXT_CHARS = 12
"""For the spinner before the text and the time behind it."""

Look = Callable[[], str]
"""Says how far it is, such as "50 %, define"; "" if that is not known."""


@contextmanager
def waiting(what: str, *, hint: str = "", look: Look | None = None) -> Iterator[None]:
    """Show a spinner and the elapsed time on standard error around a call that takes its time.

    Args:
        what: such as "starting web-1".
        hint: how to find out what became of it if the wait is cut short with Ctrl-C; "" for what changes nothing.
        look: called now and then by a thread of its own, after a second for the first time.

    Raises:
        Interrupted: on Ctrl-C. The server goes on with what it has begun.
    """
    shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    try:
        with spinner(one_line(what), sys.stderr, look=look) if shown else _nothing():
            yield
    except KeyboardInterrupt:
        outlook = "; the server goes on with it" if hint else ""
        raise Interrupted(f"interrupted while {what}{outlook}", hint=hint) from None


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def spinner(
    text: str, stream: TextIO, now_s: Callable[[], float] = time.monotonic, look: Look | None = None
) -> Iterator[None]:
    """Redraw one line of a terminal until the block ends, then leave nothing of it."""
    line = _Line(text, stream, now_s)
    if look is not None:
        # Not waited for at the end: it may be in the middle of a call that nobody answers.
        threading.Thread(target=line.look_again_and_again, args=(look,), name="progress", daemon=True).start()
    thread = threading.Thread(target=line.draw, name="spinner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        line.done.set()
        thread.join()


class _Line:
    """The line that is redrawn, and how far it is, which another thread finds out."""

    def __init__(self, text: str, stream: TextIO, now_s: Callable[[], float]) -> None:
        self._text = text
        self._stream = stream
        self._now_s = now_s
        self._progress = ""
        self.done = threading.Event()

    def look_again_and_again(self, look: Look) -> None:
        while not self.done.wait(LOOK_INTERVAL_S):
            self._progress = one_line(look())

    def draw(self) -> None:
        began_s = self._now_s()
        if self.done.wait(QUIET_S):
            return
        is_unicode = (self._stream.encoding or "").lower().replace("-", "") == "utf8"
        for frame in itertools.cycle(_FRAMES if is_unicode else _ASCII_FRAMES):
            full_text = f"{self._text}: {self._progress}" if self._progress else self._text
            text = _fitting(full_text, self._stream, _BESIDE_TEXT_CHARS)
            self._stream.write(f"{_CLEAR_LINE}{frame} {text}  {format_age(self._now_s() - began_s)}")
            self._stream.flush()
            if self.done.wait(_FRAME_S):
                break
        self._stream.write(_CLEAR_LINE)
        self._stream.flush()


def redraw(text: str, stream: TextIO) -> None:
    """Show a text in place of the terminal line that is there."""
    stream.write(f"{_CLEAR_LINE}{_fitting(one_line(text), stream)}")
    stream.flush()


def _fitting(text: str, stream: TextIO, beside_chars: int = 1) -> str:
    """Cut a text to what fits on one line of the terminal: a wrapped line cannot be redrawn."""
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        columns = _USUAL_COLUMNS
    return text[: max(columns - beside_chars, 1)]
