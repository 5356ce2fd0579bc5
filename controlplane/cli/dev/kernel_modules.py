"""Find the kernel modules a guest needs, in the order in which they load.

A kernel package that was only unpacked has no modules.dep: depmod makes it at installation. Each module names those
it depends on itself, in its .modinfo section, so that is what is read.
"""

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst")
# .modinfo is a list of "name=value" strings, each ended by a zero byte.
_DEPENDS: Final = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


class KernelModuleError(Exception):
    """A module is missing or cannot be read; the text names it."""


@dataclass(frozen=True, slots=True)
class KernelModule:
    """One module, unpacked: what `insmod` takes."""

    name: str
    data: bytes


def load_order(directory: Path, wanted: Iterable[str]) -> list[KernelModule]:
    """Return the modules `wanted` and all they depend on, each after what it needs, without those built in.

    directory: /lib/modules/VERSION, wherever it was unpacked. Names may be written with - or _.
    Raises `KernelModuleError` when this kernel has one neither as module nor built in.
    """
    files = {
        _plain(path.name): path for path in sorted((directory / "kernel").rglob("*")) if path.name.endswith(_SUFFIXES)
    }
    builtin = _builtin(directory)
    ordered: dict[str, KernelModule] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in ordered or name in builtin:
            return
        if name in above:
            raise KernelModuleError(f"kernel modules depend on each other: {' -> '.join((*above, name))}")
        if name not in files:
            raise KernelModuleError(f"the kernel in {directory} has no module {name}")
        data = _read(files[name])
        for needed in _depends(data):
            add(needed, (*above, name))
        ordered[name] = KernelModule(name, data)

    for name in wanted:
        add(_plain(name), ())
    return list(ordered.values())


def _plain(name: str) -> str:
    """Return the name the kernel uses: without suffix, and with _ for -."""
    return name.partition(".ko")[0].replace("-", "_")


def _builtin(directory: Path) -> set[str]:
    try:
        lines = (directory / "modules.builtin").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {_plain(line.rpartition("/")[2]) for line in lines}


def _depends(data: bytes) -> list[str]:
    match = _DEPENDS.search(data)
    names = match.group(1).decode(errors="replace") if match else ""
    return [_plain(name) for name in names.split(",") if name]


def _read(path: Path) -> bytes:
    """Return the module unpacked: the guest's insmod knows no compression."""
    if path.name.endswith(".xz"):
        return lzma.decompress(path.read_bytes())
    if not path.name.endswith(".zst"):
        return path.read_bytes()
    zstd = shutil.which("zstd")
    if zstd is None:
        raise KernelModuleError(f"{path.name} is compressed with zstd, which is not installed (package zstd)")
    unpacked = subprocess.run([zstd, "-dcq", str(path)], check=False, capture_output=True, timeout=30)
    if unpacked.returncode != 0:
        raise KernelModuleError(f"zstd cannot unpack {path}: {unpacked.stderr.decode(errors='replace').strip()}")
    return unpacked.stdout
