"""Snapshots inside of qcow2 images, on all disks of a VM at one point in time. Runs in worker threads.

While the VM runs, its QEMU takes them, in one transaction: each disk is held from when its own snapshot is taken until
all are, so no write is in one of them that depends on a write missing in another. While it is off, qemu-img does. Both
ways are ours, and not libvirt's, because libvirt 9.0 saves the memory with every internal snapshot of a running domain,
and does not delete those of a domain with UEFI, whose flash stands in its way, without saying so.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from hypervisor.errors import Refused, SnapshotUnsupported, Unavailable
from hypervisor.libvirt.qcow2_snapshots import UnreadableImage, read_snapshots
from hypervisor.libvirt.snapshot_xml import SnapshotDisk

QEMU_IMG_DEADLINE_S: Final = 120.0
"""A snapshot writes tables of the image only, but deleting one may have to give back every cluster of a large disk."""


class DiskSnapshots:
    """Takes, deletes and goes back to snapshots of images."""

    def __init__(self, qemu_img: str = "qemu-img") -> None:
        self._qemu_img = qemu_img

    def take(self, domain: Any, disks: Sequence[SnapshotDisk], name: str, *, runs: bool) -> None:
        """Take a snapshot of every disk that is written, or of none.

        Raises:
            Refused: QEMU's or qemu-img's words.
        """
        saved = [disk for disk in disks if disk.is_saved]
        if runs:
            nodes = _nodes(domain)
            actions = [
                {"type": "blockdev-snapshot-internal-sync", "data": {"device": _node_of(disk, nodes), "name": name}}
                for disk in saved
            ]
            _ask(domain, "transaction", {"actions": actions})
            return
        done: list[SnapshotDisk] = []
        try:
            for disk in saved:
                self._image_command("-c", name, _path_of(disk))
                done.append(disk)
        except BaseException:
            for disk in done:
                with contextlib.suppress(Refused, Unavailable):
                    self._image_command("-d", name, _path_of(disk))
            raise

    def remove(self, domain: Any, disks: Iterable[SnapshotDisk], name: str, *, runs: bool) -> None:
        """Delete a snapshot from every image that holds it; images that are gone, or do not, are fine.

        Args:
            disks: may also name disks that the VM no longer has.
        """
        paths = {disk.path for disk in disks if disk.is_saved and disk.path is not None and disk.format == "qcow2"}
        if runs:
            for node in _nodes(domain).values():
                if node.drives_image(paths):
                    paths.discard(node.path)
                    if name in node.snapshot_names:
                        _ask(domain, "blockdev-snapshot-delete-internal-sync", {"device": node.name, "name": name})
        for path in sorted(paths):
            if path.exists() and name in _names_in(path):
                self._image_command("-d", name, path)

    def go_back(self, disks: Sequence[SnapshotDisk], name: str) -> None:
        """Put the images of a VM that is off back to a snapshot."""
        for disk in disks:
            if disk.is_saved:
                self._image_command("-a", name, _path_of(disk))

    def require_held(self, vm_id: str, disks: Sequence[SnapshotDisk], name: str) -> None:
        """Check that every disk still holds a snapshot.

        Raises:
            SnapshotUnsupported: one does not.
        """
        for disk in disks:
            if not disk.is_saved:
                continue
            path = _path_of(disk)
            which = f"disk {disk.target} of VM {vm_id}, image {path.name},"
            if not path.exists():
                raise SnapshotUnsupported(f"{which} is gone; nothing was changed")
            if name not in _names_in(path):
                raise SnapshotUnsupported(f"{which} does not hold this snapshot; nothing was changed")

    def _image_command(self, option: str, name: str, path: Path) -> None:
        command = [self._qemu_img, "snapshot", "-q", option, name, str(path)]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", timeout=QEMU_IMG_DEADLINE_S
            )
        except subprocess.TimeoutExpired as error:
            late = f"qemu-img did not finish with image {path.name} in {QEMU_IMG_DEADLINE_S:g} s"
            raise Unavailable(late) from error
        except OSError as error:
            raise Unavailable(f"qemu-img cannot be run: {error}") from error
        if done.returncode != 0:
            raise Refused(f"qemu-img refused image {path.name}: {done.stderr.strip()[:500]}")


class _Node:
    """One disk of a running QEMU: its root node, and what its image holds."""

    def __init__(self, inserted: dict[str, Any]) -> None:
        self.name = str(inserted.get("node-name", ""))
        self.path = Path(str(inserted.get("file", "")))
        self.format = str(inserted.get("drv", ""))
        held = inserted.get("image", {}).get("snapshots", [])
        self.snapshot_names = {str(each.get("name", "")) for each in held}

    def drives_image(self, paths: Iterable[Path]) -> bool:
        """Whether it is one of these images, in the format that holds snapshots."""
        return self.format == "qcow2" and self.path in paths


def _nodes(domain: Any) -> dict[str, _Node]:
    """Ask QEMU for its disks, by the words of the place where their device is."""
    found: dict[str, _Node] = {}
    for block in _ask(domain, "query-block", {}):
        if inserted := block.get("inserted"):
            found[str(block.get("qdev", ""))] = _Node(inserted)
    return found


def _node_of(disk: SnapshotDisk, nodes: dict[str, _Node]) -> str:
    """Find a disk's root node by its device, or else by its image."""
    for place, node in nodes.items():
        if disk.alias and disk.alias in place.split("/"):
            return node.name
    for node in nodes.values():
        if node.path == disk.path:
            return node.name
    raise Refused(f"QEMU does not know disk {disk.target}")


def _ask(domain: Any, command: str, arguments: dict[str, Any]) -> Any:
    """Give QEMU a command of its own."""
    import libvirt_qemu  # noqa: PLC0415 - an optional dependency, as libvirt itself

    answer = json.loads(
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 0)
    )
    if "error" in answer:
        raise Refused(f"QEMU refused {command}: {answer['error'].get('desc', answer['error'])}")
    return answer.get("return")


def _path_of(disk: SnapshotDisk) -> Path:
    if disk.path is None:
        raise SnapshotUnsupported(f"disk {disk.target} is no file of this host")
    return disk.path


def _names_in(path: Path) -> set[str]:
    try:
        return set(read_snapshots(path))
    except UnreadableImage as error:
        raise SnapshotUnsupported(str(error)) from error
