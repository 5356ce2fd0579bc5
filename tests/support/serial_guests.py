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
