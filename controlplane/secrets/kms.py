"""Data keys wrapped by a command of the operator's, which asks a key management service.

The command gets "wrap" or "unwrap" and the key's id as its last arguments, base64 on its standard input, and answers
with base64 on its standard output. No shell looks at it; what it prints goes nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import signal
from collections.abc import Sequence
from typing import Final

from controlplane.secrets.wrapping import KeysUnusable

_FIRST_BYTE: Final = b"\x02"
"""Tells what a command wrapped from what a key file did."""
_MAX_BYTES: Final = 64 * 2**10
_END_S: Final = 2.0


class KmsKeys:
    """Wraps and unwraps by a command.

    Args:
        command: the program, with its path, and its first arguments.
        limit_s: for one run of it.
    """

    def __init__(self, command: Sequence[str], limit_s: float) -> None:
        self._command = tuple(command)
        self._limit_s = limit_s

    async def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key; see the interface."""
        return _FIRST_BYTE + await self._run("wrap", key_id, data_key)

    async def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open a data key; see the interface."""
        if not self.is_current(wrapped):
            raise KeysUnusable(
                "the database's secrets were sealed with a key file; start once with it in place (secrets.key_file), "
                "so that they are wrapped anew"
            )
        return await self._run("unwrap", key_id, wrapped[1:])

    def is_current(self, wrapped: bytes) -> bool:
        """Whether a command wrapped it; which of its keys it takes is the service's own affair."""
        return wrapped[:1] == _FIRST_BYTE

    async def _run(self, action: str, key_id: str, given: bytes) -> bytes:
        what = f"key command {self._command[0]} {action}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                action,
                key_id,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # may hold the key, for all we know
                start_new_session=True,
            )
        except OSError as error:
            raise KeysUnusable(f"{what} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._limit_s):
                printed, _ = await process.communicate(base64.b64encode(given) + b"\n")
        except TimeoutError as error:
            raise KeysUnusable(f"{what} did not end within {self._limit_s:g} s") from error
        finally:
            await _end(process)
        if process.returncode != 0:
            raise KeysUnusable(f"{what} failed with status {process.returncode}; run it by hand to see why")
        try:
            answer = base64.b64decode(printed.strip(), validate=True)
        except binascii.Error as error:
            raise KeysUnusable(f"{what} did not print base64") from error
        if not answer or len(printed) > _MAX_BYTES:
            raise KeysUnusable(f"{what} printed nothing, or more than {_MAX_BYTES} bytes")
        return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a command that has not ended, with all that it started."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    async with asyncio.timeout(_END_S):
        await process.wait()
