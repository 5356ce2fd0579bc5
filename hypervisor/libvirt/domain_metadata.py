"""Our mark inside a domain's definition: whose VM it is, what it is called, and from which configuration it was made.

libvirt keeps one element per XML namespace for whoever owns the namespace, through restarts and through edits by other
tools. So it needs no database of ours to know after a restart which domains are ours, and whether `create` is repeated.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lxml import etree

from hypervisor.types import NicBandwidth, VmConfig

NAMESPACE: Final = "urn:limiquantix:libvirt:domain:1"
PREFIX: Final = "limiquantix"
_CHANGED: Final = "changed"
"""In place of a fingerprint, which no configuration has: devices were attached or detached since."""
_MAX_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class DomainMark:
    """What a definition says of a domain's owner; `fingerprint` is "" for a domain that is not ours."""

    vm_name: str
    fingerprint: str

    @property
    def is_managed(self) -> bool:
        """Whether LimiQuantix defined the domain."""
        return self.fingerprint != ""


def fingerprint(config: VmConfig) -> str:
    """Return a digest that two configurations share exactly if they are equal.

    Fields at their default are left out, so that a field added in a later version does not make every VM defined before
    look changed.
    """
    document = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()


def mark_element(config: VmConfig) -> etree._Element:
    """Make the element that goes into `<metadata>`.

    The id is part of it so that a domain cloned by another tool, which copies the element, is not taken for ours. The
    name is a JSON string: XML has no way to write control characters, and hands back some others changed.
    """
    mark = etree.Element(_tag("vm"), {"id": config.vm_id}, nsmap={PREFIX: NAMESPACE})
    etree.SubElement(mark, _tag("name")).text = json.dumps(config.name)
    etree.SubElement(mark, _tag("fingerprint")).text = fingerprint(config)
    for nic in config.nics:
        if nic.bandwidth != NicBandwidth():
            etree.SubElement(mark, _tag("nic"), {"id": nic.nic_id, **_bandwidth_words(nic.bandwidth)})
    return mark


def changed_mark(domain: etree._Element, bandwidths: Mapping[str, NicBandwidth]) -> etree._Element | None:
    """Copy a definition's mark for a VM whose devices are no longer those it was made with; None without a mark.

    Made for `virDomainSetMetadata`, which adds the namespace itself.

    Args:
        bandwidths: by id, those of network cards that are to be kept from now on; all others' stay.
    """
    if not read_mark(domain).is_managed or (old := domain.find(f"metadata/{_tag('vm')}")) is None:
        return None
    mark = etree.Element("vm", {"id": old.get("id", "")})
    etree.SubElement(mark, "name").text = old.findtext(_tag("name"), "")
    etree.SubElement(mark, "fingerprint").text = _CHANGED
    for nic_id, bandwidth in (read_bandwidths(domain) | dict(bandwidths)).items():
        if bandwidth != NicBandwidth():
            etree.SubElement(mark, "nic", {"id": nic_id, **_bandwidth_words(bandwidth)})
    return mark


def changed_mark_in_place(domain: etree._Element) -> None:
    """Say in a definition's mark that the VM is not what it was made from any more; does nothing without one."""
    digest = domain.find(f"metadata/{_tag('vm')}/{_tag('fingerprint')}")
    if digest is not None and digest.text:
        digest.text = _CHANGED


def read_bandwidths(domain: etree._Element) -> dict[str, NicBandwidth]:
    """Read the ceilings of network cards that a definition's mark keeps, by id."""
    found = {}
    for nic in domain.iterfind(f"metadata/{_tag('vm')}/{_tag('nic')}"):
        words = [nic.get(field.name, "0") for field in dataclasses.fields(NicBandwidth)]
        if all(word.isdecimal() and len(word) < _MAX_DIGITS for word in words):  # other tools may write there
            found[nic.get("id", "")] = NicBandwidth(*(int(word) for word in words))
    return found


def _bandwidth_words(bandwidth: NicBandwidth) -> dict[str, str]:
    return {field.name: str(getattr(bandwidth, field.name)) for field in dataclasses.fields(NicBandwidth)}


def read_mark(domain: etree._Element) -> DomainMark:
    """Read a definition's mark; a domain without a valid one is not ours and goes by its title, or else its name."""
    mark = domain.find(f"metadata/{_tag('vm')}")
    if mark is not None and mark.get("id") == domain.findtext("uuid"):
        try:
            name = json.loads(mark.findtext(_tag("name"), ""))
        except ValueError:
            name = None
        digest = mark.findtext(_tag("fingerprint"), "")
        if isinstance(name, str) and digest:
            return DomainMark(name, digest)
    return DomainMark(domain.findtext("title") or domain.findtext("name") or "", "")


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _plain(value: Any) -> Any:
    """Turn a record into what JSON has, without fields that are at their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.default is dataclasses.MISSING or getattr(value, field.name) != field.default
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
