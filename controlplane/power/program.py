"""Running a program that talks to a power controller: by absolute path, without a shell, ended with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from controlplane.power.agent import AgentFailed

MAX_OUTPUT_BYTES = 64 * 1024
END_LIMIT_S = 0.5
MAX_TOLD_CHARS = 200
"""So much of what a program said goes into messages."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and the lines it printed, without the password and without empty ones."""

    exit_code: int
    lines: tuple[str, ...]

    @property
    def said(self) -> str:
        """What it printed, short, in one line."""
        return "; ".join(self.lines)[:MAX_TOLD_CHARS] or "said nothing"


async def run_program(
    executable: Path, arguments: list[str], *, limit_s: float, secret: str, stdin: str = "", variable: str = ""
) -> Outcome:
    """Run a program to its end. Cancelled or out of time, it is killed with its process group.

    Args:
        secret: is struck out of what the program said.
        variable: environment variable to give the secret in; "" for none. Arguments can be read by everybody.

    Raises:
        AgentFailed: it cannot be started, took too long, or printed more than `MAX_OUTPUT_BYTES`.
    """
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    if variable:
        environment[variable] = secret
    try:
        process = await asyncio.create_subprocess_exec(
            executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise AgentFailed(f"{executable} cannot be started: {error.strerror}", is_final=True) from error
    try:
        async with asyncio.timeout(limit_s):
            output = await _converse(process, stdin.encode())
            exit_code = await process.wait()
    except TimeoutError:
        raise AgentFailed(f"{executable.name} did not end within {limit_s:g} s") from None
    finally:
        await _end(process)
    return Outcome(exit_code, _lines(output, secret))


async def _converse(process: asyncio.subprocess.Process, text: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the program was started without pipes")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read what it is given
        process.stdin.write(text)
        await process.stdin.drain()
    process.stdin.close()
    output = b""
    while chunk := await process.stdout.read(4096):
        output += chunk
        if len(output) > MAX_OUTPUT_BYTES:
            raise AgentFailed(f"the program printed more than {MAX_OUTPUT_BYTES} bytes")
    return output


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the program's process group, and collect it.

    What it printed has to be read to the end for that: asyncio takes a process for ended only when its pipes are. One
    that left the group and keeps a pipe open is waited for no longer than `END_LIMIT_S`.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_LIMIT_S):
            while process.stdout is not None and await process.stdout.read(MAX_OUTPUT_BYTES):
                pass
            await process.wait()


def _lines(output: bytes, secret: str) -> tuple[str, ...]:
    text = output.decode(errors="replace")
    if secret:
        text = text.replace(secret, "***")
    lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
    return tuple(line for line in lines if line)
