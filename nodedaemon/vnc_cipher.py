"""The cipher of VNC authentication: DES, with each byte of the password mirrored.

VNC viewers know no other way to present a password, and nothing else here uses DES, which the standard library lacks.
It guards nothing by its strength: the password is random, good for one minute and one connection, and the challenge is
seen on the host's loopback interface only. Speed does not matter at two blocks a connection, so this follows the
standard's tables bit by bit. Source: FIPS 46-3; RFC 6143, 7.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PASSWORD_LENGTH: Final = 8
"""All that VNC authentication looks at."""
CHALLENGE_BYTES: Final = 16
_BLOCK_BYTES: Final = 8

# fmt: off
_INITIAL: Final = tuple(column - 8 * row for column in (58, 60, 62, 64, 57, 59, 61, 63) for row in range(8))
_FINAL: Final = tuple(column - row for row in range(8) for column in (40, 8, 48, 16, 56, 24, 64, 32))
_EXPANSION: Final = tuple((4 * row + column - 1) % 32 + 1 for row in range(8) for column in range(6))
_ROUND_PERMUTATION: Final = (
    16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10,
    2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25,
)
_KEY_CHOICE_1: Final = (
    57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36,
    63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4,
)
_KEY_CHOICE_2: Final = (
    14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2,
    41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
)
_SHIFTS: Final = (1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1)
_BOXES: Final = tuple(
    tuple(int(digit, 16) for digit in box)
    for box in (
        "e4d12fb83a6c5907" "0f74e2d1a6cb9538" "41e8d62bfc973a50" "fc8249175b3ea06d",
        "f18e6b34972dc05a" "3d47f28ec01a69b5" "0e7ba4d158c6932f" "d8a13f42b67c05e9",
        "a09e63f51dc7b428" "d709346a285ecbf1" "d6498f30b12c5ae7" "1ad069874fe3b52c",
        "7de3069a1285bc4f" "d8b56f03472c1ae9" "a690cb7df13e5284" "3f06a1d8945bc72e",
        "2c417ab6853fd0e9" "eb2c47d150fa3986" "421bad78f9c5630e" "b8c71e2d6f09a453",
        "c1af92680d34e75b" "af427c9561de0b38" "9ef528c3704a1db6" "432c95fabe17608d",
        "4b2ef08d3c975a61" "d0b7491ae35c2f86" "14bdc37eaf680592" "6bd814a7950fe23c",
        "d2846fb1a93e50c7" "1fd8a374c56b0e92" "7b419ce206adf358" "21e74a8dfc90356b",
    )
)
# fmt: on

_Bits = tuple[int, ...]


def answer_to(challenge: bytes, password: str) -> bytes:
    """Encrypt a challenge as a viewer does that was told `password`, of which the first 8 bytes in Latin-1 count."""
    key = password.encode("latin-1", "replace")[:PASSWORD_LENGTH].ljust(_BLOCK_BYTES, b"\0")
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    blocks = (challenge[at : at + _BLOCK_BYTES] for at in range(0, len(challenge), _BLOCK_BYTES))
    return b"".join(encrypt_block(mirrored, block) for block in blocks)


def encrypt_block(key: bytes, block: bytes) -> bytes:
    """Encrypt 8 bytes by DES; the lowest bit of each byte of the key does not count."""
    bits = _chosen(_bits_of(block), _INITIAL)
    left, right = bits[:32], bits[32:]
    for round_key in _round_keys(key):
        left, right = right, _mixed(left, _round(right, round_key))
    encrypted = _chosen(right + left, _FINAL)
    return int("".join(map(str, encrypted)), 2).to_bytes(_BLOCK_BYTES)


def _bits_of(data: bytes) -> _Bits:
    return tuple(int(bit) for byte in data for bit in f"{byte:08b}")


def _chosen(bits: _Bits, table: Sequence[int]) -> _Bits:
    return tuple(bits[place - 1] for place in table)


def _mixed(first: _Bits, second: _Bits) -> _Bits:
    return tuple(one ^ other for one, other in zip(first, second, strict=True))


def _round_keys(key: bytes) -> list[_Bits]:
    halves = _chosen(_bits_of(key), _KEY_CHOICE_1)
    left, right = halves[:28], halves[28:]
    keys = []
    for shift in _SHIFTS:
        left, right = left[shift:] + left[:shift], right[shift:] + right[:shift]
        keys.append(_chosen(left + right, _KEY_CHOICE_2))
    return keys


def _round(half: _Bits, round_key: _Bits) -> _Bits:
    bits = _mixed(_chosen(half, _EXPANSION), round_key)
    replaced: list[int] = []
    for number, box in enumerate(_BOXES):
        first, *middle, last = bits[6 * number : 6 * number + 6]
        column = int("".join(map(str, middle)), 2)
        replaced += (int(bit) for bit in f"{box[16 * (2 * first + last) + column]:04b}")
    return _chosen(tuple(replaced), _ROUND_PERMUTATION)
