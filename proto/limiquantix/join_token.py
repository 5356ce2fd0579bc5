"""The text by which a host joins: where the control planes are, who they must prove to be, and a secret good once.

It holds the authority's certificate itself, so that a host knows whom to believe before it says anything.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "lqj1."
"""Says what the text is, and in which form: it is seen in terminals and scripts, and secret scanners look for it."""
MAX_CHARS: Final = 8192
_FIELDS: Final = {"i", "s", "c", "a"}


class JoinTokenUnreadable(Exception):
    """The text is no join token; the message says what is wrong, and nothing of the secret."""


@dataclass(frozen=True, slots=True, repr=False)
class JoinTokenText:
    """What the text says.

    Attributes:
        secret: random, of at least 128 bits.
        authority_der: certificate of the cluster's authority.
        addresses: "host:port" of each control plane's gRPC port.
    """

    id: str
    secret: str
    authority_der: bytes
    addresses: tuple[str, ...]

    def __repr__(self) -> str:
        return f"JoinTokenText({self.id}, {', '.join(self.addresses)})"

    def encode(self) -> str:
        """Write it."""
        document = {
            "i": self.id,
            "s": self.secret,
            "c": base64.b64encode(self.authority_der).decode(),
            "a": list(self.addresses),
        }
        text = json.dumps(document, separators=(",", ":"))
        return PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str) -> JoinTokenText:
    """Read it; spaces and line breaks that came with copying are ignored.

    Raises:
        JoinTokenUnreadable: it is not whole, or something else.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX) or len(text) > MAX_CHARS:
        raise JoinTokenUnreadable(f"a join token begins with {PREFIX!r}; `limiquantix node token create` makes one")
    body = text[len(PREFIX) :]
    try:
        document = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
        authority_der = base64.b64decode(document["c"], validate=True)
        words = (document["i"], document["s"], *document["a"])
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JoinTokenUnreadable("the join token is not whole; copy all of it") from error
    is_sane = set(document) == _FIELDS and isinstance(document["a"], list) and len(words) > 2 and authority_der
    if not is_sane or not all(
        isinstance(word, str) and word.isascii() and word.isprintable() and word for word in words
    ):
        raise JoinTokenUnreadable("the join token is not whole; copy all of it")
    return JoinTokenText(words[0], words[1], authority_der, tuple(words[2:]))
