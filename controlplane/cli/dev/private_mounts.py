"""Run one command with some directories replaced, visibly to it and its children only.

The paths libvirtd uses are compiled in. A mount namespace of its own, with directories of ours bound over those paths,
lets a second libvirtd run beside any other, and the mounts vanish with its last process: there is nothing to unmount.

Run as a file by an isolated interpreter, like the reaper, and for the same reason: standard library only. Needs root
(CAP_SYS_ADMIN). Exit status: that of CMD, 2 for wrong usage, 126 or 127 when CMD or a mount failed.
"""

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Source: unshare(2), mount(2)
CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18

_USAGE = "usage: private_mounts.py [--bind SOURCE TARGET]... -- CMD...\n"


def private_mounts_command(command: Sequence[str], binds: Mapping[Path, Path]) -> list[str]:
    """Return the words that run `command` with each key of `binds` (a target) showing its value (a source)."""
    words = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__)]
    for target, source in binds.items():
        words += ["--bind", str(source), str(target)]
    return [*words, "--", *command]


def main(arguments: Sequence[str]) -> int:
    """Replace this process by the command; return only when that failed."""
    words = list(arguments)
    binds: list[tuple[str, str]] = []
    while words[:1] == ["--bind"] and len(words) > 3:
        binds.append((words[1], words[2]))
        words = words[3:]
    if words[:1] != ["--"] or len(words) < 2:
        sys.stderr.write(_USAGE)
        return 2
    command = words[1:]
    try:
        _enter_namespace(binds)
        os.execvp(command[0], command)  # noqa: S606 - a list of words, and no shell is wanted
    except OSError as error:
        sys.stderr.write(f"private_mounts: cannot run {command[0]}: {error}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


def _enter_namespace(binds: Sequence[tuple[str, str]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWNS), "unshare the mount namespace")
    # Without this, the binds would spread to the rest of the machine where / is a shared mount, as under systemd.
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make the mounts private")
    for source, target in binds:
        os.makedirs(target, exist_ok=True)
        _check(libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None), f"bind {source} to {target}")


def _check(result: int, action: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {action}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
