"""Boot sectors that do one thing for ever: repeat the serial line, fill it, keep the processor busy, or sleep.

Like `power_button_guest`, they are up 0.1 s after power-on and need no memory to speak of. None knows the power button.
"""

from __future__ import annotations

from pathlib import Path

_DISK_BYTES = 2**20
_CLEAR = bytes.fromhex("fc 31c0 8ed8 8ec0")  # cld; xor ax,ax; mov ds,ax; mov es,ax
_READY = bytes.fromhex("ba f803 b0 52 ee b0 0a ee")  # mov dx,0x3f8; "R", newline to it

ECHO = (
    _CLEAR
    + _READY
    + bytes.fromhex(
        "ba fd03 ec a801 74f8"  # wait: line status; no data yet: wait
        "ba f803 ec ee ebf1"  # read the byte, write it back, wait
    )
)
"""Repeats every byte; says "R" and a newline first."""

CHATTERBOX = _CLEAR + bytes.fromhex(
    "31db"  # xor bx,bx
    "ba fd03 ec a820 74f8"  # wait until the transmitter is empty
    "ba f803 88d8 247f ee 43 ebef"  # write the counter's low 7 bits, count, again
)
"""Writes bytes 0 to 127 over and over, as fast as the line takes them."""

BUSY = _CLEAR + _READY + bytes.fromhex("ebfe")
"""Jumps to where it is."""

IDLE = _CLEAR + _READY + bytes.fromhex("fb f4 ebfd")
"""Sleeps."""


_COUNT = bytes.fromhex(
    "8ed0 bc007c 31db"  # mov ss,ax; mov sp,0x7c00; xor bx,bx
    "b90400 89de"  # line: four digits of bx
    "c1c604 89f0 240f 3c0a 7202 0407 0430 e80c00 e2ec"  # digit: the next one, in hexadecimal
    "b00a e80500"  # newline
    "43 fb f4 ebdd"  # count, sleep until the next tick of the clock, 55 ms, line
    "88c4 ba fd03 ec a820 74fb 88e0 ba f803 ee c3"  # write al once the transmitter is empty
)
_FILL = bytes.fromhex(
    "66bf00001000 66b900003000"  # mov edi,1 MiB; mov ecx,12 MiB / 4
    "66b8efbeadde 6766f3ab"  # mov eax,0xdeadbeef; rep stosd
)
_TOUCH = bytes.fromhex(
    "66bf00001000"  # mov edi,1 MiB
    "670f013f 67891f 6681c700100000"  # page: invlpg [edi]; [edi] = bx; add edi,4 KiB
    "6681ff00002000 72e9"  # below 2 MiB: page
)
"""Without invlpg an emulator before QEMU 9.0 misses most of what is written while it migrates; 9.0's "physmem: Fix
migration dirty bitmap coherency with TCG memory access" mended that."""

COUNTER = _CLEAR + _COUNT
"""Counts, one line of four hexadecimal digits every 55 ms."""


def _counting(*, busy: bytes = b"", between: bytes = b"") -> bytes:
    """Make a counter that does something else between two lines, and with `busy` that in place of sleeping."""
    tail = between + b"\x43" + (busy or b"\xfb\xf4")
    moved = len(tail) - 3  # of the function that writes, and of the way back
    return (
        _CLEAR
        + _COUNT[:27]
        + bytes([0xE8, 0x0C + moved, 0])
        + _COUNT[30:34]
        + bytes([0xE8, 0x05 + moved, 0])
        + tail
        + bytes([0xEB, 0xDD - moved])
        + _COUNT[42:]
    )


HEAVY_COUNTER = _CLEAR + _FILL + _counting(between=_TOUCH)
"""Counts too, has 12 MiB of memory that cannot be sent as nothing, and writes to 1 MiB of it between two lines.

So its migration at a few MiB/s, with hardly any downtime, does not end by itself; `MigrationHost.hurry_migration` ends
it. Emulated only: no segment reaches so far.
"""


_WRITE = bytes.fromhex(
    "c7060006 1000 c7060206 0100 c7060406 0008 c7060606 0000"  # packet at 0x600: 16 bytes, 1 sector, from 0:0x800
    "c7060a06 0000 c7060c06 0000 c7060e06 0000"  # upper words of its sector number
    "891e0008 89d8 25ff03 40 a30806"  # [0x800] = bx; sector 1 + bx modulo 1024
    "be0006 b280 b80043 cd13"  # write to the first disk
)
_SPIN = bytes.fromhex("ba4000 31c9 e2fe 4a 75f9")  # mov dx,64; 65,536 rounds; dec dx; jnz rounds

WRITING_COUNTER = _counting(between=_WRITE)
"""Counts too, and writes each number to a sector of the first disk: that of number n is n modulo 1,024, from 1."""

_COUNT_ON_DISK = bytes.fromhex(
    "c7060006 1000 c7060206 0100 c7060406 0008 c7060606 0000"  # packet at 0x600: 16 bytes, 1 sector, to 0:0x800
    "c7060806 0100 c7060a06 0000 c7060c06 0000 c7060e06 0000"  # sector 1
    "be0006 b280 b80042 cd13"  # read it from the first disk
    "8b1e0008 ff060008"  # bx = [0x800]; count there
    "be0006 b280 b80043 cd13"  # write it back
)

DISK_COUNTER = _counting(between=_COUNT_ON_DISK)
"""Says 0000 when it boots; then counts in the first two bytes of sector 1, and says each number once it is written.

So whoever runs next on the same disk goes on where the last one was. Two that run at once say numbers twice.
"""

BUSY_COUNTER = _counting(busy=_SPIN)
"""Counts too, and never sleeps."""


def second_disk_writer(sector_count: int) -> bytes:
    """Write that many times 64 sectors (32 KiB) to the second disk through the BIOS, say "W", and sleep."""
    return (
        _CLEAR
        + bytes.fromhex("bd")
        + sector_count.to_bytes(2, "little")  # mov bp,count
        + bytes.fromhex(
            "b84003 bb0010 b90100 ba8100 cd13"  # again: ax=0x0340 write 64 sectors from 0:0x1000, CHS 0/0/1, disk 0x81
            "4d 75ef"  # dec bp; jnz again
            "ba f803 b0 57 ee"  # "W"
            "fb f4 ebfd"
        )
    )


def write_disk(path: Path, code: bytes) -> Path:
    """Write a raw disk image that boots this code."""
    sector = code.ljust(510, b"\0") + b"\x55\xaa"
    path.write_bytes(sector.ljust(_DISK_BYTES, b"\0"))
    return path
