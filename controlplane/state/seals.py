"""Seals what rows hold of secrets, on the way into the database and out of it.

A document whose secret fields (see `limiquantix.rpc.redaction`) are empty is stored as it is, so that most VMs cost
nothing. Others are sealed as a whole, and what operations have to know from their requests always is.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from google.protobuf.message import Message
from sqlalchemy import Connection, Engine

from controlplane.secrets.box import SecretBox
from limiquantix.rpc.redaction import holds_secrets

SEALED_FIRST_BYTE: Final = b"\x01"
"""Of every sealed value, and of no serialized message: there it would be the tag of a field numbered 0."""

_SEALED_KEY: Final = "$sealed"
_SEALED_TEXT: Final = "$sealed:"
_OPTION: Final = "limiquantix_seals"

Json = dict[str, Any]
"""A JSON object; `Any` because JSON has no schema of its own."""


class Seals:
    """What a store seals with. Used in the threads of transactions.

    Args:
        box: may get its keys later, since they lie in the store too, sealed.
    """

    def __init__(self, box: SecretBox) -> None:
        self.box = box

    def document(self, message: Message, purpose: str, owner_id: str) -> bytes:
        """Serialize a message, sealed if it holds secrets."""
        plain = message.SerializeToString()
        return self.box.seal(plain, purpose, owner_id) if holds_secrets(message) else plain

    def opened(self, stored: bytes, purpose: str, owner_id: str) -> bytes:
        """Return what `document` serialized.

        Raises:
            SecretUnreadable: it was sealed with another key, or for something else.
        """
        return self.box.open(stored, purpose, owner_id) if is_sealed(stored) else stored

    def json(self, value: Json, purpose: str, owner_id: str) -> Json:
        """Seal a JSON object that is not empty."""
        if not value:
            return value
        sealed = self.box.seal(json.dumps(value).encode(), purpose, owner_id)
        return {_SEALED_KEY: base64.b64encode(sealed).decode()}

    def opened_json(self, stored: Json, purpose: str, owner_id: str) -> Json:
        """Return what `json` sealed. Raises as `opened`."""
        if not is_sealed_json(stored):
            return stored
        value: Json = json.loads(self.box.open(_sealed_in(stored), purpose, owner_id))
        return value

    def text(self, value: str, purpose: str, owner_id: str) -> str:
        """Seal a text."""
        return _SEALED_TEXT + base64.b64encode(self.box.seal(value.encode(), purpose, owner_id)).decode()

    def opened_text(self, stored: str, purpose: str, owner_id: str) -> str:
        """Return what `text` sealed. Raises as `opened`."""
        return self.box.open(_sealed_text(stored), purpose, owner_id).decode() if is_sealed_text(stored) else stored

    def is_current_text(self, stored: str) -> bool:
        """Whether a sealed text was sealed with the newest key."""
        return self.box.is_current(_sealed_text(stored))

    def is_current(self, stored: bytes) -> bool:
        """Whether a sealed value was sealed with the newest key."""
        return self.box.is_current(stored)

    def is_current_json(self, stored: Json) -> bool:
        """Whether a JSON object was sealed with the newest key."""
        return self.box.is_current(_sealed_in(stored))


class NoSeals(Seals):
    """Of a store that was made without keys: stores everything as it is, and opens nothing."""

    def __init__(self) -> None:
        super().__init__(SecretBox.locked())

    def document(self, message: Message, purpose: str, owner_id: str) -> bytes:
        """Serialize a message."""
        return message.SerializeToString()

    def json(self, value: Json, purpose: str, owner_id: str) -> Json:
        """Return the value."""
        return value

    def text(self, value: str, purpose: str, owner_id: str) -> str:
        """Return the value."""
        return value


def is_sealed(stored: bytes) -> bool:
    """Tell a sealed value from a serialized message."""
    return stored[:1] == SEALED_FIRST_BYTE


def is_sealed_json(stored: Json) -> bool:
    """Tell a sealed JSON object from others."""
    return len(stored) == 1 and _SEALED_KEY in stored


def is_sealed_text(stored: str) -> bool:
    """Tell a sealed text from others."""
    return stored.startswith(_SEALED_TEXT)


def sealing_with(engine: Engine, seals: Seals) -> Engine:
    """Have every connection of an engine know what to seal with."""
    engine.update_execution_options(**{_OPTION: seals})
    return engine


def seals_of(connection: Connection) -> Seals:
    """Return what a connection seals with; one that was not told seals nothing."""
    seals: Seals = connection.get_execution_options().get(_OPTION, NO_SEALS)
    return seals


def _sealed_text(stored: str) -> bytes:
    return base64.b64decode(stored.removeprefix(_SEALED_TEXT))


def _sealed_in(stored: Json) -> bytes:
    return base64.b64decode(stored[_SEALED_KEY])


NO_SEALS: Final = NoSeals()
