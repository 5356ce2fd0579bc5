"""What is sealed opens for whom it was sealed, and for nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.secrets.box import SecretBox, SecretUnreadable

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


@given(st.binary(max_size=200))
def test_what_is_sealed_opens_and_is_not_to_be_seen(plain: bytes) -> None:
    box = SecretBox([OLD])
    sealed = box.seal(plain, "password", "row")
    assert box.open(sealed, "password", "row") == plain
    assert len(plain) < 4 or plain not in sealed
    assert box.seal(plain, "password", "row") != sealed


@pytest.mark.parametrize(("purpose", "owner_id"), [("password", "other row"), ("key", "row"), ("password\0r", "ow")])
def test_value_moved_to_another_place_does_not_open(purpose: str, owner_id: str) -> None:
    sealed = SecretBox([OLD]).seal(b"hush", "password", "row")
    with pytest.raises(SecretUnreadable, match="belongs to something else"):
        SecretBox([OLD]).open(sealed, purpose, owner_id)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_value_that_was_altered_anywhere_does_not_open(place: int, change: int) -> None:
    box = SecretBox([OLD])
    sealed = bytearray(box.seal(b"hush", "password", "row"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(SecretUnreadable):
        box.open(bytes(sealed), "password", "row")


@pytest.mark.parametrize("text", [b"", b"\x01", b"\x02" + bytes(60)])
def test_bytes_that_were_never_sealed_do_not_open(text: bytes) -> None:
    with pytest.raises(SecretUnreadable):
        SecretBox([OLD]).open(text, "password", "row")


def test_older_keys_open_and_the_newest_seals() -> None:
    sealed = SecretBox([OLD]).seal(b"hush", "password", "row")
    both = SecretBox([NEW, OLD])
    assert both.open(sealed, "password", "row") == b"hush"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(b"hush", "password", "row"))
    with pytest.raises(SecretUnreadable, match="a key that is not here"):
        SecretBox([NEW]).open(sealed, "password", "row")


def test_keys_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretBox([b"short"])
    with pytest.raises(ValueError, match="at least one"):
        SecretBox([])
