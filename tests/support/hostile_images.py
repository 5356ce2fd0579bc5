"""Image files that somebody made to read the host's files or to fill its disks, and sound ones beside them.

Written byte by byte, so that no tool has to agree to make them. Each says what our inspector must answer; where that is
stricter, or laxer, than what an independent inspector answers, `differs` says why.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nodedaemon.image_inspector import SourceFormat

CLUSTER = 65_536
MIB = 2**20
SECTOR = 512
_L1_AT, _L2_AT, _DATA_AT = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER
_COPIED = 1 << 63
_COMPRESSED = 1 << 62


@dataclass(frozen=True, slots=True)
class Case:
    """One file: how it is written, what it is stated to be, whether it may be used."""

    name: str
    stated: SourceFormat
    write: Callable[[Path], object]
    is_sound: bool = False
    differs: str = ""

    def make(self, directory: Path) -> Path:
        """Write the file, below a name that fits its stated format."""
        path = directory / f"{self.name.replace(' ', '-')}.{self.stated.value}"
        self.write(path)
        return path


# -- qcow2


def qcow2(
    *,
    version: int = 3,
    backing: bytes = b"",
    backing_at: int | None = None,
    cluster_bits: int = 16,
    size: int = 16 * MIB,
    encryption: int = 0,
    l1_count: int = 1,
    l1_at: int = _L1_AT,
    l1: tuple[int, ...] = (_L2_AT | _COPIED,),
    l2: tuple[int, ...] = (_DATA_AT | _COPIED,),
    features: int = 0,
    extensions: bytes = b"",
    header_bytes: int = 104,
    refcounts_at: int = CLUSTER,
) -> bytes:
    """Make an image with one cluster of data; each argument spoils one thing."""
    name_at = (104 + len(extensions) + 8 if backing else 0) if backing_at is None else backing_at
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", version, name_at, len(backing), cluster_bits, size, encryption, l1_count, l1_at),
        *(refcounts_at, 1, 0, 0, features, 0, 0, 4, header_bytes),
    )
    image = bytearray(6 * CLUSTER)
    start = header + extensions + b"\0" * 8 + backing
    image[: len(start)] = start
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">6H", image, 2 * CLUSTER, *[1] * 6)
    struct.pack_into(f">{len(l1)}Q", image, _L1_AT, *l1)
    struct.pack_into(f">{len(l2)}Q", image, _L2_AT, *l2)
    image[_DATA_AT:] = b"x" * CLUSTER
    return bytes(image)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


_DEEPER = "the other one reads nothing beyond the header"


def _qcow2_cases() -> Iterator[Case]:
    def case(name: str, differs: str = "", *, is_sound: bool = False, cut: int | None = None, **fields: object) -> Case:
        data = qcow2(**fields)[:cut]  # type: ignore[arg-type]
        return Case(f"qcow2 {name}", SourceFormat.QCOW2, lambda path: path.write_bytes(data), is_sound, differs)

    yield case("sound", is_sound=True)
    yield case("sound version 2", is_sound=True, version=2)
    yield case("sound dirty", is_sound=True, features=1)
    yield case("sound zstd", is_sound=True, features=8)
    yield case("backing file of the host", backing=b"/etc/passwd")
    yield case("backing file in json", backing=b'json:{"driver":"file","filename":"/etc/passwd"}')
    yield case("backing file over the network", backing=b"nbd://192.0.2.1/x")
    yield case("backing file that is itself", backing=b"qcow2-backing-file-that-is-itself.qcow2")
    yield case("backing file without a name", backing_at=1)
    yield case("backing file of version 2", version=2, backing=b"/etc/passwd")
    yield case("data file", features=4)
    yield case("data file without its bit", _DEEPER, extensions=_extension(0x44415441, b"/etc/shadow"), backing_at=0)
    yield case("corrupt", "damage is the owner's to repair, not to import", features=2)
    yield case("extended tables", features=16)
    yield case("feature from far away", features=1 << 40)
    yield case("version 1", version=1)
    yield case("version 4", version=4)
    yield case("encrypted", "nobody could read it", encryption=1)
    yield case("huge first table", _DEEPER, l1_count=2**31)
    yield case("first table that wraps around", _DEEPER, l1_at=2**64 - 8)
    yield case("first table in the header", _DEEPER, l1_at=0)
    yield case("first table beyond the end", _DEEPER, l1_at=2**40)
    yield case("first table too short for its disk", _DEEPER, size=2**40)
    yield case("disk of exbibytes", _DEEPER, size=2**63)
    yield case("disk of nothing", _DEEPER, size=0)
    yield case("second table that is the first", _DEEPER, l1=(_L1_AT | _COPIED,), l2=())
    yield case("second table off its place", _DEEPER, l1=(_L2_AT + 512,))
    yield case("second table beyond the end", _DEEPER, l1=(2**50,))
    yield case("data beyond the end", _DEEPER, l2=(2**50,))
    yield case("tiny clusters", _DEEPER, cluster_bits=8)
    yield case("giant clusters", _DEEPER, cluster_bits=63)
    yield case("header that is longer than it", _DEEPER, header_bytes=2**32 - 1)
    yield case("extensions without end", _DEEPER, extensions=_extension(0x12345678, b"") * 100, backing_at=0)
    yield case("without reference counts", _DEEPER, refcounts_at=2**60)
    yield case(
        "one table for all",
        _DEEPER,
        size=512 * 2**40 // 1024,
        l1_count=1024,
        l1=(_L2_AT,) * 1024,
        l2=(_DATA_AT,) * 8192,
    )
    yield case(
        "one compressed cluster for all",
        _DEEPER,
        size=2**39,
        l1_count=1024,
        l1=(_L2_AT,) * 1024,
        l2=(_COMPRESSED | _DATA_AT,) * 8192,
    )
    yield case("cut in its tables", _DEEPER, cut=_L2_AT + 100)
    yield case("cut in its header", cut=60)
    yield case("cut after its magic", cut=4)


# -- vmdk

_DESCRIPTION = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 2048 SPARSE "disk.vmdk"

ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def vmdk(
    *,
    description: str = _DESCRIPTION,
    version: int = 1,
    capacity: int = 2_048,
    grain: int = 128,
    table_count: int = 512,
    directory_at: int = 26,
    description_at: int = 1,
    description_count: int = 20,
    grains: tuple[int, ...] = (128,),
) -> bytes:
    """Make a monolithicSparse image with one grain of data; each argument spoils one thing."""
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(b"KDMV", version, 3, capacity, grain, description_at, description_count, table_count, 21, directory_at),
        *(128, 0, b"\n \r\n", 0),
    )
    image = bytearray(256 * SECTOR)
    image[: len(header)] = header
    text = description.encode()
    image[SECTOR : SECTOR + len(text)] = text
    struct.pack_into("<I", image, 26 * SECTOR, 27)
    struct.pack_into(f"<{len(grains)}I", image, 27 * SECTOR, *grains)
    image[128 * SECTOR :] = b"x" * (128 * SECTOR)
    return bytes(image)


def _described(old: str, new: str) -> str:
    assert old in _DESCRIPTION
    return _DESCRIPTION.replace(old, new)


def _vmdk_cases() -> Iterator[Case]:
    def case(name: str, differs: str = "", *, is_sound: bool = False, cut: int | None = None, **fields: object) -> Case:
        data = vmdk(**fields)[:cut]  # type: ignore[arg-type]
        return Case(f"vmdk {name}", SourceFormat.VMDK, lambda path: path.write_bytes(data), is_sound, differs)

    def text(name: str, words: str) -> Case:
        return Case(f"vmdk {name}", SourceFormat.VMDK, lambda path: path.write_text(words))

    extent = 'RW 2048 SPARSE "disk.vmdk"'
    kind = '"monolithicSparse"'
    yield case("sound", is_sound=True)
    yield case("sound in capitals", is_sound=True, description=_described(kind, '"MONOLITHICSPARSE"'))
    yield case("extent of the host", description=_described(extent, 'RW 2048 FLAT "/etc/passwd" 0'))
    yield case("sparse extent of the host", description=_described(extent, 'RW 2048 SPARSE "/etc/passwd"'))
    yield case("two extents", "the second one is a file", description=_described(extent, f"{extent}\n{extent}"))
    yield case("extent after a tab", description=_described(extent, 'RW\t2048\tFLAT\t"/etc/passwd" 0'))
    yield case("flat kind", description=_described(kind, '"monolithicFlat"'))
    yield case("device kind", description=_described(kind, '"fullDevice"'))
    yield case("custom kind", description=_described(kind, '"custom"'))
    yield case("without a kind", description=_described(f"createType={kind}", ""))
    yield case("kind without end", description=_described(kind, '"' + "x" * 5_000))
    yield case("words that nobody knows", description=_described("CID=12345678", "please read /etc/passwd"))
    yield case("description in binary", description=_described("CID=12345678", "CID=\u00ff\u0100"))
    yield case("parent", "QEMU would open it", description=_described("ffffffff", "12345678"))
    yield case(
        "parent by name",
        "QEMU would open it",
        description=_described("parentCID=ffffffff", 'parentCID=ffffffff\nparentFileNameHint="/etc/passwd"'),
    )
    yield case("description elsewhere", description_at=2)
    yield case("without a description", description_count=0)
    yield case("without a capacity", "QEMU would believe the description alone", capacity=0)
    yield case("version 9", version=9)
    yield case("grains of nothing", _DEEPER, grain=0)
    yield case("directory beyond the end", _DEEPER, directory_at=2**40)
    yield case("table of nothing", _DEEPER, table_count=0)
    yield case("data beyond the end", _DEEPER, grains=(2**31,))
    yield case("disk of exbibytes", _DEEPER, capacity=2**60)
    yield case("directory at the end that is not there", directory_at=2**64 - 1)
    yield case("cut in its tables", _DEEPER, cut=27 * SECTOR + 100)
    yield case("cut in its header", cut=40)
    yield text("text that names a file", _described(extent, 'RW 1 FLAT "/etc/passwd" 0').replace("Sparse", "Flat"))
    yield text("text with other words first", '\n#x\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n')


# -- others that call themselves raw


def _boot_sector(*, is_sound: bool) -> bytes:
    sector = bytearray(SECTOR)
    flag = 0x80 if is_sound else 0x13
    struct.pack_into("<B3sB3sII", sector, 446, flag, b"\0\2\0", 0x83, b"\xff\xff\xff", 2048, 4096)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def _gpt() -> bytes:
    sector = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", sector, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, 2**32 - 1)
    sector[510:] = b"\x55\xaa"
    return bytes(sector) + b"EFI PART" + b"\0" * 504


def _raw_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, differs: str = "", *, is_sound: bool = False, padding: bytes = b"\0") -> Case:
        padded = data + padding * (MIB - len(data) % MIB)
        return Case(f"raw {name}", SourceFormat.RAW, lambda path: path.write_bytes(padded), is_sound, differs)

    yield case("sound empty", b"", is_sound=True)
    yield case("sound with partitions", _boot_sector(is_sound=True), is_sound=True)
    yield case("sound with a GPT", _gpt(), is_sound=True)
    yield case("that is qcow2", qcow2())
    yield case("that is qcow2 with a backing file", qcow2(backing=b"/etc/passwd"))
    yield case("that is VMDK", vmdk())
    yield case("that is a VMDK description", _DESCRIPTION.encode(), padding=b"\n")
    yield case("that is a VMDK description with a blank line first", b"\n" + _DESCRIPTION.encode(), padding=b"\n")
    yield case("that is VHD", b"conectix" + struct.pack(">IIQ", 2, 0x10000, 2**64 - 1))
    yield case("that is VHDX", b"vhdxfile" + b"\0" * 512)
    yield case("that is VDI", b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(0x40, b"\0") + b"\x7f\x10\xda\xbe")
    yield case("that is QED", b"QED\0" + b"\0" * 64)
    yield case("that is LUKS", b"LUKS\xba\xbe\0\1" + b"\0" * 600)
    yield case(
        "sound with code where partitions stand",
        _boot_sector(is_sound=False),
        "laxer: nothing of the host reads partitions, and a boot loader may fill its sector",
        is_sound=True,
    )


def corpus() -> list[Case]:
    """All cases."""
    return [*_qcow2_cases(), *_vmdk_cases(), *_raw_cases()]
