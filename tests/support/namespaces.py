"""Networks of Linux, and what lives in them. Uses the standard library only: programs of other environments use it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress


def run_tool(program: str, *words: str) -> str:
    """Run a program of iproute2; returns what it printed."""
    found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") or program
    done = subprocess.run([found, *words], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def processes_in(namespace: str) -> list[int]:
    """Return the processes that live in a network."""
    return [int(word) for word in run_tool("ip", "netns", "pids", namespace).split()]


def kill_all_in(namespace: str) -> None:
    """End everything in a network at once, as losing the power does."""
    while pids := processes_in(namespace):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.01)
