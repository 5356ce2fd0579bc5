"""Digests of requests, by which one that is repeated is told from another one under the same id."""

from __future__ import annotations

import hashlib
from typing import Final

from google.protobuf.message import Message

from limiquantix.rpc.redaction import holds_secrets

_OF_SECRETS: Final = "secret:"
"""Before the digest of a request that holds secrets: a password can be guessed with it, so it is stored sealed."""


def digest_of(method: str, request: Message) -> str:
    """Make the digest of a method's name and its request."""
    digest = hashlib.sha256(method.encode() + b"\0" + request.SerializeToString(deterministic=True)).hexdigest()
    return f"{_OF_SECRETS}{digest}" if holds_secrets(request) else digest


def tells_secrets(digest: str) -> bool:
    """Whether a digest is of a request that holds secrets."""
    return digest.startswith(_OF_SECRETS)


def is_same_request(first: str, second: str) -> bool:
    """Whether two digests are of the same request; older versions did not say which are of secrets."""
    return first.removeprefix(_OF_SECRETS) == second.removeprefix(_OF_SECRETS)
