"""The smallest guest that can be tested with: one boot sector that says hello and knows the ACPI power button.

It prints a line on the first serial port 0.1 s after power-on, then sleeps until the power button is pressed and turns
the machine off. A deaf one sleeps for ever. It needs QEMU's q35 machine, whose firmware puts the ACPI power management
registers at port 0x600.
"""

from __future__ import annotations

from pathlib import Path

HELLO = b"BOOT SECTOR READY\r\n"
_ORIGIN = 0x7C00
_DISK_BYTES = 2**20

_PRINT = bytes.fromhex(
    "fc 31c0 8ed8"  # cld; xor ax,ax; mov ds,ax
    "be 0000"  # mov si,text (filled in below)
    "ba f803"  # mov dx,0x3f8: first serial port
    "ac 84c0 7403 ee ebf8"  # next: lodsb; test al,al; jz end; out dx,al; jmp next
)
_OFF_ON_BUTTON = bytes.fromhex(
    "ba 0206 b8 0001 ef"  # PM1 enable: power button
    "ba 0006 fb"  # mov dx,0x600: PM1 status; sti
    "f4 ed f6c401 74f9"  # sleep: hlt; in ax,dx; test ah,1 (power button); jz sleep
    "ba 0406 b8 0020 ef"  # PM1 control: enter S5, off
)
_SLEEP_FOR_EVER = bytes.fromhex("fb f4 ebfd")  # sti; again: hlt; jmp again


def write_disk(path: Path, *, deaf: bool = False) -> Path:
    """Write a raw disk image that boots this guest."""
    code = _PRINT + (b"" if deaf else _OFF_ON_BUTTON) + _SLEEP_FOR_EVER
    text_at = _ORIGIN + len(code)
    code = code.replace(b"\xbe\x00\x00", b"\xbe" + text_at.to_bytes(2, "little"), 1)
    sector = (code + HELLO + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    path.write_bytes(sector.ljust(_DISK_BYTES, b"\0"))
    return path
