"""Every reader of other people's bytes gets bytes that nobody should write: none may crash, hang or take ages.

Inputs are sound ones with parts replaced, repeated, cut out and moved, and bytes at random; a few hundred for each
reader. `make fuzz` goes on for minutes, guided by what the inputs reach: see `coverage_guided.py`.
"""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.fuzz_targets import TARGETS, Target

SLOWEST_S = 5.0
"""Of processor time: what else the machine does is not the reader's fault."""
INPUTS = 150
FOUND = (b"?", b"[" * 5_000, b"a: 2020-13-45", b"{" * 5_000, b"1: 2")
"""What fuzzing found once, in one reader or another."""
_ODD = (
    b"\0",
    b"\xff",
    b"\0" * 8,
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"null",
    b'"',
    b"{",
    b"[" * 200,
    b"\xed\xa0\x80",
    b"&a",
    b"*a",
    b"!!",
)


def _spoiled(seed: bytes, number: int) -> bytes:
    """Change a sound input in one to four places."""
    chance, data = random.Random(number), bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), 600) + 1) if chance.random() < 0.8 else chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + chance.randint(0, 8)] = chance.choice(_ODD)
            case 2:
                del data[at : at + chance.randint(1, 16)]
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 64)] * chance.randint(1, 50)
            case _:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reader_survives_sound_input_that_was_spoiled(target: Target) -> None:
    for number in range(INPUTS):
        data = _spoiled(target.seeds[number % len(target.seeds)], number)
        began_s = time.process_time()
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{target.name} fails with {error!r} on {data[:2000]!r}") from error
        assert time.process_time() - began_s < SLOWEST_S, data[:2000]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reader_survives_any_bytes(target: Target) -> None:
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
    @example(b"")
    @settings(max_examples=40, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def attempt(data: bytes) -> None:
        target.run(data)

    attempt()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reader_survives_what_was_found_before(target: Target) -> None:
    for seed in (*target.seeds, *FOUND):
        target.run(seed)
