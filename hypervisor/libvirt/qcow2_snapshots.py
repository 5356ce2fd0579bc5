"""Read which snapshots a qcow2 image holds and what each takes, without a QEMU: also beside one that has it open.

What is counted for a snapshot are the clusters that nothing but it refers to, which is what deleting it would free; its
saved memory is among them. A QEMU that has the image open may hold back its newest changes for some seconds, so that
these are not seen; what is read is bounded and checked, never trusted.

Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_MAGIC: Final = 0x514649FB
_HEADER: Final = struct.Struct(">IIQIIQIIQQIIQ")
_ENTRY: Final = struct.Struct(">QIHHIIQII")
_OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
_COMPRESSED: Final = 1 << 62
_EXTENDED_L2: Final = 1 << 4
_MAX_SNAPSHOTS: Final = 65_536
"""As QEMU's own limit."""
_MAX_L1_BYTES: Final = 32 * 2**20
"""As QEMU's own limit."""
_MAX_TABLE_READS: Final = 1024
"""For one image; some seconds' work. Beyond, only the saved memory of a snapshot is counted."""


class UnreadableImage(Exception):
    """The file is no qcow2 image, is damaged, or cannot be read."""


@dataclass(frozen=True, slots=True)
class ImageSnapshot:
    """One snapshot of one image; `own_bytes` is what nothing else in the image shares with it."""

    name: str
    memory_bytes: int
    own_bytes: int


def read_snapshots(path: Path) -> dict[str, ImageSnapshot]:
    """Read all snapshots of an image, by name. Blocks.

    Raises:
        UnreadableImage: see there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _Image(descriptor).snapshots()
        finally:
            os.close(descriptor)
    except (OSError, struct.error, ValueError) as error:
        raise UnreadableImage(f"image {path.name} cannot be read: {error}") from error


@dataclass(slots=True)
class _Image:
    """One open image."""

    descriptor: int
    _cluster_bits: int = 0
    _refcount_bits: int = 16
    _l2_step: int = 1
    _refcount_table: array.array[int] = field(default_factory=lambda: array.array("Q"))
    _refcount_blocks: dict[int, bytes] = field(default_factory=dict)
    _reads_left: int = _MAX_TABLE_READS

    def snapshots(self) -> dict[str, ImageSnapshot]:
        magic, version, _, _, self._cluster_bits, _, _, _, _, table_at, table_clusters, count, at = _HEADER.unpack(
            self._read(0, _HEADER.size)
        )
        if magic != _MAGIC or version not in (2, 3) or not 9 <= self._cluster_bits <= 21:
            raise ValueError("it is not in qcow2 format")
        if count > _MAX_SNAPSHOTS:
            raise ValueError(f"it claims to hold {count} snapshots")
        if version == 3:
            incompatible, _, _, refcount_order = struct.unpack(">QQQI", self._read(72, 28))
            self._refcount_bits = 1 << refcount_order
            self._l2_step = 2 if incompatible & _EXTENDED_L2 else 1
        table_bytes = min(table_clusters << self._cluster_bits, _MAX_L1_BYTES)
        self._refcount_table = self._numbers(table_at, table_bytes) if count else self._refcount_table
        found: dict[str, ImageSnapshot] = {}
        for _ in range(count):
            snapshot, at = self._snapshot(at)
            found[snapshot.name] = snapshot
        return found

    def _snapshot(self, at: int) -> tuple[ImageSnapshot, int]:
        """Read the snapshot at a place in the file, and say where the next one is."""
        l1_at, l1_count, id_bytes, name_bytes, _, _, _, memory_bytes, extra_bytes = _ENTRY.unpack(
            self._read(at, _ENTRY.size)
        )
        if extra_bytes > 1024:
            raise ValueError("its table of snapshots is damaged")
        rest = self._read(at + _ENTRY.size, extra_bytes + id_bytes + name_bytes)
        if extra_bytes >= 8:
            memory_bytes = int.from_bytes(rest[:8]) or memory_bytes
        name = rest[extra_bytes + id_bytes :].decode(errors="replace")
        own_bytes = self._own_bytes(l1_at, l1_count)
        length = _ENTRY.size + len(rest)
        next_at = at + (length + 7) // 8 * 8
        return ImageSnapshot(name, memory_bytes, memory_bytes if own_bytes is None else own_bytes), next_at

    def _own_bytes(self, l1_at: int, l1_count: int) -> int | None:
        """Count the clusters that only this table leads to; None if that would take too many reads.

        A table of the second level that others share leads to nothing that is not shared.
        """
        if l1_count * 8 > _MAX_L1_BYTES:
            raise ValueError("one of its tables is too large")
        cluster_bytes, own_count = 1 << self._cluster_bits, 0
        for entry in self._numbers(l1_at, l1_count * 8):
            l2_at = entry & _OFFSET_MASK
            if not l2_at or self._refcount(l2_at) != 1:
                continue
            self._reads_left -= 1
            if self._reads_left < 0:
                return None
            own_count += 1
            for cluster in self._numbers(l2_at, cluster_bytes)[:: self._l2_step]:
                data_at = cluster & _OFFSET_MASK
                if data_at and not cluster & _COMPRESSED and self._refcount(data_at) == 1:
                    own_count += 1
        return own_count * cluster_bytes

    def _refcount(self, at: int) -> int:
        per_block = (8 << self._cluster_bits) // self._refcount_bits
        block_index, index = divmod(at >> self._cluster_bits, per_block)
        if block_index >= len(self._refcount_table):
            return 0
        block = self._refcount_blocks.get(block_index)
        if block is None:
            block_at = self._refcount_table[block_index] & ~0x1FF
            block = self._read(block_at, 1 << self._cluster_bits) if block_at else b""
            self._refcount_blocks[block_index] = block
        if self._refcount_bits < 8:
            per_byte = 8 // self._refcount_bits
            byte = block[index // per_byte] if block else 0
            return (byte >> (index % per_byte * self._refcount_bits)) & ((1 << self._refcount_bits) - 1)
        width = self._refcount_bits // 8
        return int.from_bytes(block[index * width : (index + 1) * width])

    def _numbers(self, at: int, length: int) -> array.array[int]:
        numbers = array.array("Q", self._read(at, length))
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def _read(self, at: int, length: int) -> bytes:
        data = os.pread(self.descriptor, length, at)
        if len(data) != length:
            raise ValueError("it is shorter than it says")
        return data
