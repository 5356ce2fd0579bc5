"""Connect's streams of JSON: messages in envelopes, and an envelope that says how the stream ended.

An envelope is a byte of flags, the length in four bytes, most significant first, and that many bytes.
Source: https://connectrpc.com/docs/protocol/#streaming-rpcs
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

STREAM_TYPE = "application/connect+json"

_HEAD = struct.Struct(">BI")
_COMPRESSED, _END = 1, 2
MAX_ENVELOPE_BYTES = 64 * 2**20
"""Longer than any message of the API; without a bound, four wrong bytes would fill the memory."""


class StreamMakesNoSense(Exception):
    """What came is no Connect stream."""


class StreamCut(Exception):
    """The stream stopped without saying that it is over."""


def envelope(document: Any) -> bytes:
    """Write one message, as the body of a request for a stream."""
    data = json.dumps(document).encode()
    return _HEAD.pack(0, len(data)) + data


def read_envelopes(pieces: Iterable[bytes]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yield every envelope's document, and whether it is the one that ends the stream.

    Args:
        pieces: the body, cut anywhere.

    Raises:
        StreamMakesNoSense: see there.
        StreamCut: see there.
    """
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _HEAD.size:
            flags, length = _HEAD.unpack_from(buffer)
            if flags & _COMPRESSED or length > MAX_ENVELOPE_BYTES:
                raise StreamMakesNoSense(f"an envelope with the flags {flags} and {length} bytes")
            if len(buffer) < _HEAD.size + length:
                break
            document = _document(bytes(buffer[_HEAD.size : _HEAD.size + length]))
            del buffer[: _HEAD.size + length]
            is_end = bool(flags & _END)
            yield is_end, document
            if is_end:
                return
    raise StreamCut("the stream stopped without its end")


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise StreamMakesNoSense("a message that is no JSON") from error
    if not isinstance(document, dict):
        raise StreamMakesNoSense("a message that is no JSON object")
    return document
