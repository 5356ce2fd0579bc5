"""How long a call may take and how large its request may be, by method; both transports keep to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from limiquantix.errors import Reason, ResourceExhausted

MAX_MESSAGE_BYTES = 16 * 2**20
"""Bound of any message: a full page of 1,000 VMs with large specs is about 4 MiB."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """What one method gets.

    `deadline_s` bounds calls whose callers set none, or a later one; it does not end streams, which last as long as
    they are listened to. `request_bytes` counts what arrives, before anything is made of it.
    """

    deadline_s: float | None
    request_bytes: int

    def refusal(self, method: str) -> ResourceExhausted:
        """Say that a request is too large."""
        return ResourceExhausted(
            Reason.REQUEST_TOO_LARGE, f"a request of {method} has at most {self.request_bytes} bytes"
        )


class CallLimits(Protocol):
    """Knows every method's limit."""

    def of(self, method: str) -> CallLimit:
        """Look up "/package.Service/Method"."""
        ...


UNLIMITED = CallLimit(None, MAX_MESSAGE_BYTES)


class NoLimits:
    """For servers that only programs of ours call: no deadline, and any message that the transport takes."""

    def of(self, method: str) -> CallLimit:
        """Give the same for all methods."""
        return UNLIMITED


class TableOfLimits:
    """Limits by method; a method that is not in the table gets `usual`."""

    def __init__(self, usual: CallLimit, table: Mapping[str, CallLimit]) -> None:
        self._usual = usual
        self._table = dict(table)

    def of(self, method: str) -> CallLimit:
        """Look the method up."""
        return self._table.get(method, self._usual)
