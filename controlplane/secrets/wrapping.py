"""What opens the keys that lie in the database: a file on this machine, or a command of the operator's (KMS)."""

from __future__ import annotations

from typing import Protocol


class KeysUnusable(Exception):
    """The secrets' keys cannot be opened or made; the message says what to do."""


class KeyWrapper(Protocol):
    """Seals data keys, which in turn seal everything else."""

    async def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key.

        Raises:
            KeysUnusable: it cannot be done now.
        """
        ...

    async def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open a data key.

        Raises:
            KeysUnusable: it was sealed by something else, or it cannot be done now.
        """
        ...

    def is_current(self, wrapped: bytes) -> bool:
        """Whether `wrap` would seal with the same key; others are wrapped anew."""
        ...
