"""What surveys of image formats share: refusing, reading tables within the file, and counting what they refer to."""

from __future__ import annotations

import sys
from array import array
from typing import BinaryIO, Final, Literal

GIB: Final = 2**30
MAX_RATIO: Final = 100
"""Contents over file. Compression gains less on anything but zeros, which formats need not store at all."""
_MAX_TABLE_BYTES: Final = 32 * 2**20
"""QEMU's own bound of a qcow2 image's first table."""


class ImageRefused(Exception):
    """The image may not be used; the message is for the caller and follows the field's name."""


class Expansion:
    """Counts the contents that an image's tables refer to, and stops at what a file of its size cannot mean."""

    def __init__(self, file_bytes: int) -> None:
        self.max_bytes = max(GIB, MAX_RATIO * file_bytes)
        self._data_bytes = 0

    def add(self, data_bytes: int) -> None:
        """Count.

        Raises:
            ImageRefused: that is too much.
        """
        self._data_bytes += data_bytes
        if self._data_bytes > self.max_bytes:
            raise ImageRefused(f"expands to more than {self.max_bytes} bytes, too much for its size")


def read_table(file: BinaryIO, file_bytes: int, at: int, count: int, kind: Literal["be64", "le32"]) -> array[int]:
    """Read a table of numbers.

    Raises:
        ImageRefused: it is not all there, or too long.
    """
    table = array("Q" if kind == "be64" else "I")
    length = count * table.itemsize
    if length > _MAX_TABLE_BYTES:
        raise ImageRefused("has a damaged header: a table is too long")
    if at <= 0 or at + length > file_bytes:
        raise ImageRefused("is damaged or cut off: a table lies beyond its end")
    file.seek(at)
    table.frombytes(file.read(length))
    if len(table) != count:
        raise ImageRefused("is cut off")
    if (sys.byteorder == "little") == (kind == "be64"):
        table.byteswap()
    return table


def require_inside(at: int, file_bytes: int) -> None:
    """Require that contents begin inside the file; QEMU reads zeros where they are missing, and says nothing."""
    if at >= file_bytes:
        raise ImageRefused("is cut off: contents lie beyond its end")
