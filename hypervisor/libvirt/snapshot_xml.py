"""Documents of libvirt's snapshots: made for ours, read for everybody's.

libvirt's name of a snapshot is our id, and so is that of the data in the images: nothing a person wrote gets near a
file or a command line. What people wrote is kept as JSON in the description, which XML can always hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lxml import etree

from hypervisor.errors import SnapshotUnsupported
from hypervisor.libvirt import domain_xml
from hypervisor.snapshots import Snapshot, SnapshotRequest
from hypervisor.types import PowerState

_OURS: Final = "limiquantix-snapshot"
_FOREIGN_IDS: Final = uuid.UUID("5b0f6a52-6f6e-5d0b-9f0a-0a6c4f6b1d1e")
_STATES: Final = {
    "running": PowerState.RUNNING,
    "paused": PowerState.PAUSED,
    "shutoff": PowerState.STOPPED,
    "crashed": PowerState.CRASHED,
    "disk-snapshot": PowerState.RUNNING,
}
_TEXT_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk as a domain's definition has it; `alias` is libvirt's name of a running domain's device."""

    target: str
    path: Path | None
    format: str
    is_readonly: bool
    alias: str = ""

    @property
    def is_saved(self) -> bool:
        """Whether snapshots hold it; one that the guest cannot write needs none."""
        return not self.is_readonly


def read_disks(domain: etree._Element) -> list[SnapshotDisk]:
    """List the disks of a domain's definition, without drives for removable media."""
    found = []
    for disk in domain.findall("devices/disk"):
        if disk.get("device", "disk") != "disk":
            continue
        driver, source, target, alias = (disk.find(name) for name in ("driver", "source", "target", "alias"))
        place = (source.get("file") or source.get("dev")) if source is not None else None
        found.append(
            SnapshotDisk(
                target="" if target is None else target.get("dev", ""),
                path=Path(place) if place else None,
                format="" if driver is None else driver.get("type", ""),
                is_readonly=disk.find("readonly") is not None,
                alias="" if alias is None else alias.get("name", ""),
            )
        )
    return found


def require_savable(vm_id: str, disks: Sequence[SnapshotDisk]) -> None:
    """Check that every disk can hold snapshots.

    Raises:
        SnapshotUnsupported: names the disks that cannot, or says that there are none.
    """
    unfit = [disk for disk in disks if disk.is_saved and (disk.format != "qcow2" or disk.path is None)]
    if unfit:
        names = ", ".join(f"{disk.target} ({disk.format or 'unknown'})" for disk in unfit)
        raise SnapshotUnsupported(
            f"no snapshot of VM {vm_id} can be taken: only disks in qcow2 format hold snapshots, and these are not: "
            f"{names}; convert them to qcow2 or make them read-only"
        )
    if not any(disk.is_saved for disk in disks):
        raise SnapshotUnsupported(f"VM {vm_id} has no disk that could hold a snapshot")


def require_savable_memory(vm_id: str, domain: etree._Element) -> None:
    """Check that the memory can be saved too: QEMU keeps the variables of UEFI in a flash it cannot take back.

    Raises:
        SnapshotUnsupported: see above.
    """
    loader = domain.find("os/loader")
    has_flash = loader is not None and loader.get("type") == "pflash"
    if has_flash or domain.find("os[@firmware='efi']") is not None:
        raise SnapshotUnsupported(
            f"the memory of VM {vm_id} cannot be part of a snapshot, since it boots with UEFI, whose variables QEMU "
            "cannot put back; take the snapshot without memory"
        )


def memory_snapshot(request: SnapshotRequest, disks: Sequence[SnapshotDisk]) -> str:
    """Describe a snapshot that libvirt shall take, with memory and disks."""
    root = _begin(request, PowerState.RUNNING, 0)
    etree.SubElement(root, "memory", {"snapshot": "internal"})
    _add_disks(root, disks)
    return domain_xml.to_text(root)


def disk_snapshot(
    request: SnapshotRequest,
    state: PowerState,
    frozen_count: int,
    created_at_s: int,
    parent_name: str,
    domain: etree._Element,
) -> str:
    """Describe a snapshot that the disks hold already, for libvirt to take note of.

    To libvirt it is one of a domain that was off, which is what going back to it makes.
    """
    root = _begin(request, state, frozen_count)
    etree.SubElement(root, "state").text = "shutoff"
    etree.SubElement(root, "creationTime").text = str(created_at_s)
    if parent_name:
        etree.SubElement(etree.SubElement(root, "parent"), "name").text = parent_name
    etree.SubElement(root, "memory", {"snapshot": "no"})
    _add_disks(root, read_disks(domain))
    root.append(domain)
    return domain_xml.to_text(root)


def _begin(request: SnapshotRequest, state: PowerState, frozen_count: int) -> etree._Element:
    root = etree.Element("domainsnapshot")
    etree.SubElement(root, "name").text = request.snapshot_id
    facts: dict[str, Any] = {
        "kind": _OURS,
        "name": request.name,
        "description": request.description,
        "state": state.value,
        "quiesced": request.quiesce,
        "frozen": frozen_count,
    }
    etree.SubElement(root, "description").text = json.dumps(facts)
    return root


def _add_disks(root: etree._Element, disks: Sequence[SnapshotDisk]) -> None:
    listed = etree.SubElement(root, "disks")
    for disk in disks:
        kind = "internal" if disk.is_saved else "no"
        etree.SubElement(listed, "disk", {"name": disk.target, "snapshot": kind})


@dataclass(frozen=True, slots=True)
class SnapshotDocument:
    """What libvirt keeps of a snapshot. `domain` is the definition at its time, None if libvirt does not have it."""

    libvirt_name: str
    snapshot: Snapshot
    is_ours: bool
    disks: tuple[SnapshotDisk, ...]
    domain: etree._Element | None


def snapshot_id_of(vm_id: str, libvirt_name: str) -> str:
    """Say which id a snapshot goes by: its name, if that is one; one made from the name for another tool's."""
    if domain_xml.is_uuid(libvirt_name) and libvirt_name == libvirt_name.lower():
        return libvirt_name
    return str(uuid.uuid5(_FOREIGN_IDS, f"{vm_id}/{libvirt_name}"))


def read_snapshot(vm_id: str, text: str, *, is_current: bool) -> SnapshotDocument:
    """Read what libvirt says of a snapshot; its size is found out elsewhere."""
    root = domain_xml.parse(text)
    name, description = root.findtext("name", ""), root.findtext("description", "")
    facts = _facts(description)
    memory, parent = root.find("memory"), root.findtext("parent/name", "")
    state = _STATES.get(root.findtext("state", ""), PowerState.UNKNOWN)
    has_memory = memory is not None and memory.get("snapshot", "no") != "no"
    if facts and not has_memory:
        state = PowerState(facts["state"])
    domain = root.find("domain")
    snapshot = Snapshot(
        snapshot_id=snapshot_id_of(vm_id, name),
        name=facts["name"] if facts else name,
        description=facts["description"] if facts else description[:_TEXT_LIMIT],
        parent_id=snapshot_id_of(vm_id, parent) if parent else "",
        created_at_s=float(root.findtext("creationTime", "0")),
        state=state,
        has_memory=has_memory,
        is_quiesced=bool(facts.get("quiesced")),
        frozen_filesystem_count=int(facts.get("frozen", 0)),
        size_bytes=0,
        is_current=is_current,
    )
    disks = () if domain is None else tuple(read_disks(domain))
    return SnapshotDocument(name, snapshot, bool(facts), disks, domain)


def _facts(description: str) -> dict[str, Any]:
    """Read what we wrote into the description; nothing if somebody else wrote it."""
    try:
        facts = json.loads(description)
    except ValueError:
        return {}
    if not isinstance(facts, dict) or facts.get("kind") != _OURS:
        return {}
    kinds = {"name": str, "description": str, "state": str, "quiesced": bool, "frozen": int}
    if not all(isinstance(facts.get(key), kind) for key, kind in kinds.items()):
        return {}
    return facts if facts["state"] in {state.value for state in PowerState} else {}
