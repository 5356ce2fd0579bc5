"""Compares and keeps passwords: argon2id, in a few threads of their own, and as long for nobody as for somebody.

Sources: OWASP Password Storage Cheat Sheet (argon2id with 19 MiB, 2 passes, 1 lane), NIST SP 800-63B 5.1.1.2 (length
counts, not kinds of characters; normalised before it is hashed).
"""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from controlplane.domain import identity_errors
from limiquantix.errors import FieldViolation, InvalidArgument

MIN_LENGTH: Final = 12
MAX_BYTES: Final = 1024
"""A hash must not be made to work through megabytes."""
_MADE_BYTES: Final = 18
"""Of randomness in a password that is made: 24 characters."""

_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
_LANES: Final = 1
_THREAD_COUNT: Final = 2
_MAX_WAITING: Final = 64
"""With some 50 ms each in two threads, who would be the next waits for less than two seconds."""
_BUSY_WAIT_S: Final = 2.0

ResultT = TypeVar("ResultT")


def hasher_of_owasp() -> PasswordHasher:
    """Make a hasher with today's parameters; hashes that were made with others are made anew at their next login."""
    return PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES, type=Type.ID)


def made_password() -> str:
    """Return a new password that nobody could guess."""
    return secrets.token_urlsafe(_MADE_BYTES)


def require_fit(password: str, user_name: str, field: str = "password") -> None:
    """Refuse what is no good as a password.

    Raises:
        InvalidArgument: names the field, never what is in it.
    """
    fault = ""
    if len(password) < MIN_LENGTH:
        fault = f"must have at least {MIN_LENGTH} characters"
    elif len(password.encode("utf-8", "replace")) > MAX_BYTES:
        fault = f"must have at most {MAX_BYTES} bytes"
    elif password.casefold() in (user_name.casefold() * 8, user_name.casefold()) or len(set(password)) < 4:
        fault = "is too easy to guess"
    if fault:
        raise InvalidArgument.from_violations([FieldViolation(field, fault)])


class Passwords:
    """Hashes and compares, never on the event loop. Used from the loop's thread; `close` lets go of the threads."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or hasher_of_owasp()
        self._threads = ThreadPoolExecutor(_THREAD_COUNT, thread_name_prefix="passwords")
        self._waiting_count = 0
        # Compared when there is nothing to compare with, so that this takes as long.
        self._of_nobody = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """Return what to store.

        Raises:
            ResourceExhausted: too many wait for it.
        """
        return await self._in_thread(lambda: self._hasher.hash(_normal(password)))

    async def matches(self, password: str, stored: str) -> bool:
        """Whether it is the password of a stored hash; takes as long if `stored` is "", which nothing matches.

        Raises:
            ResourceExhausted: too many wait for it.
        """
        is_right = await self._in_thread(lambda: self._matches(password, stored or self._of_nobody))
        return is_right and bool(stored)

    def is_outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Let go of the threads, without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _matches(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, _normal(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        if self._waiting_count >= _MAX_WAITING:
            raise identity_errors.passwords_busy(_BUSY_WAIT_S)
        self._waiting_count += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting_count -= 1


def _normal(password: str) -> bytes:
    """The same bytes for what looks the same, whatever keyboard it was typed on."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "replace")
