from __future__ import annotations

import struct

import pytest

from controlplane.cli.connect_stream import (
    MAX_ENVELOPE_BYTES,
    StreamCut,
    StreamMakesNoSense,
    envelope,
    read_envelopes,
)

END = struct.pack(">BI", 2, 2) + b"{}"


@pytest.mark.parametrize("piece_bytes", [1, 2, 5, 7, 1000])
def test_stream_cut_anywhere_gives_every_message_and_its_end(piece_bytes: int) -> None:
    body = envelope({"a": 1}) + envelope({}) + envelope({"b": "ü" * 300}) + END + b"more"
    pieces = (body[at : at + piece_bytes] for at in range(0, len(body), piece_bytes))
    assert list(read_envelopes(pieces)) == [(False, {"a": 1}), (False, {}), (False, {"b": "ü" * 300}), (True, {})]


@pytest.mark.parametrize("body", [b"", envelope({"a": 1}), envelope({"a": 1}) + END[:4], END[:-1]])
def test_stream_without_its_end_is_cut(body: bytes) -> None:
    with pytest.raises(StreamCut):
        list(read_envelopes([body]))


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">BI", 1, 2) + b"{}",
        struct.pack(">BI", 0, MAX_ENVELOPE_BYTES + 1),
        struct.pack(">BI", 0, 1) + b"{",
        struct.pack(">BI", 0, 2) + b"[]",
        struct.pack(">BI", 0, 100_000) + b"[" * 100_000,
    ],
)
def test_stream_of_something_else_makes_no_sense(body: bytes) -> None:
    with pytest.raises(StreamMakesNoSense):
        list(read_envelopes([body]))
