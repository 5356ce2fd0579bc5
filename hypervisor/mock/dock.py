"""Where VMs of other simulated hosts of this machine arrive: a directory beside a host's state file.

Every step is one rename, so that two processes agree on it whatever becomes of either:

* `VM.open`: the target lets this VM in; a source takes the file by renaming it to
* `VM.arriving`, which from then on holds what is coming;
* `VM.JOURNEY.vm`: the whole VM. Once it is there, it is the target's; until then, it is the source's;
* `VM.JOURNEY.taken`: the target has it in its own state; the source removes the file.

A host that is open holds a lock in its dock, which tells a source that it is there. All methods block, briefly.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from hypervisor.mock.store import write_private

SCHEME: Final = "mock://"
_LOCK: Final = "host.lock"


class Dock:
    """The dock of one host, seen by itself or by another one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: int | None = None

    # the host's own side

    def occupy(self) -> None:
        """Make the dock if there is none, and show that the host is there. Idempotent."""
        if self._lock is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError):  # a source that looks at this very moment
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def leave(self) -> None:
        """Show that the host is not there any more."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def open_door(self, vm_id: str) -> None:
        """Let a VM in once."""
        (self.directory / f"{vm_id}.open").touch()

    def shut_door(self, vm_id: str) -> None:
        """Let it in no more, also if it is on its way."""
        for suffix in ("open", "arriving"):
            (self.directory / f"{vm_id}.{suffix}").unlink(missing_ok=True)

    def arriving(self) -> dict[str, str]:
        """What is coming, by VM id; "" of one of which nothing is known yet."""
        return {path.stem: _text(path) for path in self.directory.glob("*.arriving")}

    def landed(self) -> list[Path]:
        """VMs that are this host's and not in its state yet."""
        return sorted(self.directory.glob("*.vm"))

    def is_waiting(self) -> bool:
        """Tell whether anything may come."""
        return any(path.suffix in (".open", ".arriving", ".vm") for path in self.directory.glob("*"))

    def take(self, landed: Path) -> None:
        """Note that a VM is in this host's state."""
        landed.replace(landed.with_suffix(".taken"))
        (self.directory / f"{landed.name.partition('.')[0]}.arriving").unlink(missing_ok=True)

    # the other side

    def is_occupied(self) -> bool:
        """Tell whether the host is there."""
        try:
            descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def enter(self, vm_id: str, text: str) -> bool:
        """Use the door; returns whether it was open."""
        arriving = self.directory / f"{vm_id}.arriving"
        try:
            (self.directory / f"{vm_id}.open").rename(arriving)
        except FileNotFoundError:
            return False
        _replace(arriving, text)
        return True

    def is_expected(self, vm_id: str) -> bool:
        """Tell whether a VM that used the door is still awaited."""
        return (self.directory / f"{vm_id}.arriving").exists()

    def land(self, vm_id: str, journey: str, text: str) -> None:
        """Hand a VM over: from when this returns, it is the host's."""
        _replace(self.directory / f"{vm_id}.{journey}.vm", text)

    def has_landed(self, vm_id: str, journey: str) -> bool:
        """Tell whether the VM was handed over."""
        return (self.directory / f"{vm_id}.{journey}.vm").exists() or self.was_taken(vm_id, journey)

    def was_taken(self, vm_id: str, journey: str) -> bool:
        """Tell whether the host has it in its state."""
        return (self.directory / f"{vm_id}.{journey}.taken").exists()

    def tidy(self, vm_id: str, journey: str) -> None:
        """Remove what a journey that is over left."""
        (self.directory / f"{vm_id}.{journey}.taken").unlink(missing_ok=True)


def dock_beside(state_path: Path) -> Path:
    """Where the dock of the host with that state file is."""
    return state_path.with_name(f"{state_path.name}.dock")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    write_private(partial, text)
    partial.replace(path)
