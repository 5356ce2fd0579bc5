"""Python inside the small Linux guest: what some of this project's modules need, as one more archive for its kernel.

The kernel unpacks one archive after the other, so the guest's own stays as it is. Only files of modules that an import
really loads come along, and the libraries those are linked with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from controlplane.cli.dev.cpio import Archive
from controlplane.cli.dev.guest_image import linked_libraries

ROOT = Path(__file__).resolve().parents[2]
HOME = "/python"
LIBRARY = f"{HOME}/lib/python{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = f"PYTHONHOME={HOME} PYTHONPATH={HOME}/app {HOME}/bin/python -S"
"""What starts it in the guest's shell; without `site`, which would import more."""
_ALWAYS = ("encodings.utf_8", "encodings.ascii", "encodings.latin_1", "encodings.idna", "runpy")

_LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def python_archive(modules: Sequence[str]) -> Archive:
    """Make an archive with the interpreter, these modules, and all they import."""
    interpreter = Path(os.path.realpath(sys.executable))
    archive = Archive()
    archive.add_file(f"{HOME}/bin/python", interpreter.read_bytes(), 0o755)
    archive.add_directory(f"{LIBRARY}/lib-dynload")
    linked = [interpreter]
    for path in _loaded(interpreter, modules):
        archive.add_file(_place(path), path.read_bytes(), 0o755)
        if path.suffix == ".so":
            linked.append(path)
    for library in linked_libraries(linked):
        archive.add_file(str(library), library.read_bytes(), 0o755)
    return archive


def _loaded(interpreter: Path, modules: Sequence[str]) -> list[Path]:
    """Find the files of all that importing them loads."""
    done = subprocess.run(
        [str(interpreter), "-S", "-c", _LOADED, *_ALWAYS, *modules],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in done.stdout.splitlines()]


def _place(path: Path) -> str:
    """Say where a module's file goes in the guest."""
    if path.is_relative_to(ROOT):
        return f"{HOME}/app/{path.relative_to(ROOT)}"
    library = Path(os.path.realpath(os.__file__)).parent
    return f"{LIBRARY}/{path.resolve().relative_to(library)}"
