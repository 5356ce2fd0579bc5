"""DES as VNC uses it, by published test vectors."""

from __future__ import annotations

import pytest

from nodedaemon.vnc_cipher import answer_to, encrypt_block

# Source: NBS Special Publication 500-20, and the worked example of FIPS 46.
VECTORS = [
    ("133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"),
    ("0101010101010101", "8000000000000000", "95f8a5e5dd31d900"),
    ("0101010101010101", "0000000000000001", "166b40b44aba4bd6"),
    ("8001010101010101", "0000000000000000", "95a8d72813daa94d"),
    ("1046913489980131", "0000000000000000", "88d55e54f54c97b4"),
    ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
]


@pytest.mark.parametrize(("key", "plain", "encrypted"), VECTORS)
def test_block_is_encrypted_as_the_standard_says(key: str, plain: str, encrypted: str) -> None:
    assert encrypt_block(bytes.fromhex(key), bytes.fromhex(plain)).hex() == encrypted


def test_answer_is_of_eight_characters_and_two_blocks() -> None:
    challenge = bytes(range(16))
    assert len(answer_to(challenge, "abc")) == 16
    assert answer_to(challenge, "abcdefgh") == answer_to(challenge, "abcdefghi")
    assert answer_to(challenge, "abcdefgh") != answer_to(challenge, "abcdefgi")
    assert answer_to(challenge, "") == encrypt_block(bytes(8), challenge[:8]) + encrypt_block(bytes(8), challenge[8:])
