from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.sizes import (
    GIB,
    MIB,
    format_age,
    format_bytes,
    format_took,
    parse_age_s,
    parse_bytes,
    parse_gib,
    parse_mib,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 * MIB),
        ("2GiB", 2 * GIB),
        (" 1.5 gib ", 3 * GIB // 2),
        ("2G", 2 * GIB),
        ("64k", 64 * 1024),
        ("1TiB", 1024 * GIB),
        ("7B", 7),
    ],
)
def test_parse_bytes_size_with_unit_is_read(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("512", "write 512MiB or 512GiB"),
        ("2GB", "write GiB"),
        ("2XiB", "units are KiB, MiB"),
        ("-1GiB", "is not a size"),
        ("", "is not a size"),
        ("1e3MiB", "is not a size"),
        ("\u0661MiB", "is not a size"),
        ("0.3B", "whole number of bytes"),
        ("9" * 400 + "GiB", "is not a size"),
    ],
)
def test_parse_bytes_anything_else_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_bytes(text)


def test_parse_mib_fraction_of_a_mib_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of MiB"):
        parse_mib("1023KiB")


def test_parse_gib_fraction_of_a_gib_is_refused() -> None:
    assert parse_gib("1TiB") == 1024
    with pytest.raises(ValueError, match="whole number of GiB"):
        parse_gib("512MiB")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (MIB * 512, "512 MiB"),
        (GIB - 1, "1 GiB"),
        (GIB * 3 // 2, "1.5 GiB"),
        (GIB * 1024, "1 TiB"),
    ],
)
def test_format_bytes_uses_the_largest_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**60))
def test_format_bytes_read_back_is_within_its_rounding(size_bytes: int) -> None:
    number, unit = format_bytes(size_bytes).split()
    assert float(number) < 1024 or unit == "PiB"
    assert abs(parse_bytes(f"1{unit}") * float(number) - size_bytes) <= parse_bytes(f"1{unit}") * 0.0501


@pytest.mark.parametrize(
    ("age_s", "text"),
    [(-5, "0s"), (59.9, "59s"), (60, "1m"), (3600, "1h"), (7500, "2h5m"), (86400, "1d"), (360000, "4d4h")],
)
def test_format_age_uses_the_two_largest_units(age_s: float, text: str) -> None:
    assert format_age(age_s) == text


@pytest.mark.parametrize(
    ("text", "age_s"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800), ("1D1S", 86_401), (" 0s ", 0)]
)
def test_parse_age_reads_what_people_write(text: str, age_s: int) -> None:
    assert parse_age_s(text) == age_s


@pytest.mark.parametrize("text", ["", "5", "h", "1h 5m", "5m1h", "-1h", "1.5h", "\u0661h"])
def test_parse_age_of_anything_else_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        parse_age_s(text)


@pytest.mark.parametrize(
    ("took_s", "text"), [(0.033, "33ms"), (-1, "0ms"), (1.24, "1.2s"), (10, "10s"), (3900, "1h5m")]
)
def test_format_took_writes_short_times_exactly(took_s: float, text: str) -> None:
    assert format_took(took_s) == text
