"""Seal what must be kept secret before it is stored, and open it again.

Source: NIST SP 800-38D (AES-GCM); a nonce of 96 random bits is good for 2**32 values a key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_FORMAT: Final = b"\x01"
_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_FORMAT) + _ID_BYTES + _NONCE_BYTES


class SecretUnreadable(Exception):
    """A sealed value cannot be opened: it was altered, belongs elsewhere, or its key is not here."""


class SecretBox:
    """Seals with the first key, opens with whichever key sealed.

    Args:
        keys: of 32 bytes each, newest first, at least one.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers: Mapping[bytes, AESGCM] = {}
        self._newest_id = b""
        self.use(keys)

    @classmethod
    def locked(cls) -> SecretBox:
        """Make a box that seals and opens nothing until `use` gives it keys."""
        box = cls.__new__(cls)
        box._ciphers, box._newest_id = {}, b""
        return box

    def use(self, keys: Sequence[bytes]) -> None:
        """Go on with these keys; other threads may be sealing and opening meanwhile."""
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"needs at least one key, of {KEY_BYTES} bytes each")
        self._ciphers = {_id_of(key): AESGCM(key) for key in reversed(keys)}
        self._newest_id = _id_of(keys[0])  # last: what seals with it finds its cipher

    def seal(self, plain: bytes, purpose: str, owner_id: str) -> bytes:
        """Return the sealed value; sealing the same value again gives another one.

        Args:
            purpose: what it is, e.g. "authority.key".
            owner_id: of the row that it is stored with; it opens for this purpose and owner alone.

        Raises:
            SecretUnreadable: there are no keys yet.
        """
        newest_id, nonce = self._newest_id, os.urandom(_NONCE_BYTES)
        cipher = self._ciphers.get(newest_id)
        if cipher is None:
            raise SecretUnreadable(f"{purpose} of {owner_id} cannot be sealed: the keys are not open yet")
        head = _FORMAT + newest_id + nonce
        return head + cipher.encrypt(nonce, plain, _bound_to(purpose, owner_id))

    def open(self, sealed: bytes, purpose: str, owner_id: str) -> bytes:
        """Return what was sealed.

        Raises:
            SecretUnreadable: it was not sealed for this purpose and owner with one of the keys.
        """
        cipher = self._ciphers.get(sealed[1 : 1 + _ID_BYTES]) if sealed.startswith(_FORMAT) else None
        if cipher is None:
            raise SecretUnreadable(f"{purpose} of {owner_id} was sealed with a key that is not here")
        try:
            return cipher.decrypt(
                sealed[1 + _ID_BYTES : _HEAD_BYTES], sealed[_HEAD_BYTES:], _bound_to(purpose, owner_id)
            )
        except (InvalidTag, ValueError) as error:
            raise SecretUnreadable(f"{purpose} of {owner_id} was altered, or belongs to something else") from error

    def is_current(self, sealed: bytes) -> bool:
        """Whether a value was sealed with the newest key; others are sealed anew when keys are rotated."""
        return sealed[1 : 1 + _ID_BYTES] == self._newest_id


def _id_of(key: bytes) -> bytes:
    """Name a key without telling anything of it."""
    return hashlib.sha256(b"limiquantix secret key\0" + key).digest()[:_ID_BYTES]


def _bound_to(purpose: str, owner_id: str) -> bytes:
    return f"{purpose}\0{owner_id}".encode()
