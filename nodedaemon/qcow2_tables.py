"""Survey a qcow2 image: its header, what it needs of other files, and all that its tables refer to.

Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from nodedaemon.image_tables import Expansion, ImageRefused, read_table, require_inside

_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES: Final = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION = 1, 2, 4, 8
_ACCEPTED: Final = _DIRTY | _COMPRESSION
_REFUSED: Final = {
    _CORRUPT: "is marked as corrupt; repair it with qemu-img check",
    _DATA_FILE: "has its contents in another file",
}
_DATA_FILE_EXTENSION: Final = 0x44415441
_MAX_EXTENSIONS: Final = 64
_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1


def survey_qcow2(file: BinaryIO, file_bytes: int, expansion: Expansion) -> int:
    """Check an image; returns the size of its disk.

    Raises:
        ImageRefused: it is damaged, needs another file, or has a feature that is not known here.
    """
    file.seek(0)
    head = file.read(112)
    if len(head) < _HEADER.size:
        raise ImageRefused("is cut off")
    (_, version, backing_at, _, cluster_bits, size_bytes, encryption, l1_count, l1_at, refcounts_at, *_) = (
        _HEADER.unpack_from(head)
    )
    if version not in (2, 3) or not 9 <= cluster_bits <= 21:
        raise ImageRefused("has a damaged or unknown qcow2 header")
    if backing_at:
        raise ImageRefused("has a backing file; flatten it with qemu-img convert first")
    if encryption:
        raise ImageRefused("is encrypted")
    if version == 3:
        _check_features(file, head, file_bytes)
    require_inside(refcounts_at, file_bytes)
    cluster_bytes = 1 << cluster_bits
    _survey_clusters(file, file_bytes, expansion, cluster_bits, l1_at, l1_count)
    if l1_count * (cluster_bytes // 8) * cluster_bytes < size_bytes:
        raise ImageRefused("has a damaged header: its tables are shorter than its disk")
    return int(size_bytes)


def _check_features(file: BinaryIO, head: bytes, file_bytes: int) -> None:
    if len(head) < 104:
        raise ImageRefused("is cut off")
    incompatible, _, _, _, header_bytes = _FEATURES.unpack_from(head, 72)
    for bit, words in _REFUSED.items():
        if incompatible & bit:
            raise ImageRefused(words)
    if incompatible & ~_ACCEPTED:
        raise ImageRefused(f"needs features that are not known here ({incompatible & ~_ACCEPTED:#x})")
    if not 104 <= header_bytes <= 1024:
        raise ImageRefused("has a damaged qcow2 header")
    at = header_bytes
    for _ in range(_MAX_EXTENSIONS):
        file.seek(at)
        extension = file.read(8)
        if len(extension) < 8 or at > file_bytes:
            return
        kind, length = struct.unpack(">II", extension)
        if kind == 0:
            return
        if kind == _DATA_FILE_EXTENSION:
            raise ImageRefused(_REFUSED[_DATA_FILE])
        at += 8 + (length + 7) // 8 * 8
    raise ImageRefused("has a damaged qcow2 header: too many extensions")


def _survey_clusters(
    file: BinaryIO, file_bytes: int, expansion: Expansion, cluster_bits: int, l1_at: int, l1_count: int
) -> None:
    """Walk both levels of tables. The same second table may be referred to again and again, and counts each time."""
    cluster_bytes, offset_bits = 1 << cluster_bits, 62 - (cluster_bits - 8)
    known: dict[int, int] = {}
    for entry in read_table(file, file_bytes, l1_at, l1_count, "be64") if l1_count else ():
        l2_at = entry & _OFFSET
        if not l2_at:
            continue
        if l2_at % cluster_bytes or l1_at - cluster_bytes < l2_at < l1_at + 8 * l1_count:
            raise ImageRefused("is damaged: a table is not where tables may be")
        if l2_at not in known:
            data_count = 0
            for cluster in read_table(file, file_bytes, l2_at, cluster_bytes // 8, "be64"):
                if not cluster or (cluster & _ZERO and not cluster & _COMPRESSED):
                    continue
                at = cluster & ((1 << offset_bits) - 1) if cluster & _COMPRESSED else cluster & _OFFSET
                if at:
                    require_inside(at, file_bytes)
                    data_count += 1
            known[l2_at] = data_count
        expansion.add(known[l2_at] * cluster_bytes)
