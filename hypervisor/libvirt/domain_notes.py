"""Notes of whoever manages this host, in a domain's definition: an element of a namespace of its own.

They stand in the definition of a running domain as well as in the one of its next start, so that the former takes them
along when it moves to another host.
"""

from __future__ import annotations

from typing import Any, Final

from lxml import etree

from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.types import NO_NOTES, VmNotes

NAMESPACE: Final = "urn:limiquantix:libvirt:notes:1"
PREFIX: Final = "limiquantix-notes"
_PATH: Final = f"metadata/{{{NAMESPACE}}}notes"
_YES: Final = "yes"


def read_notes(domain: etree._Element) -> VmNotes:
    """Read a definition's notes; those of another VM, as a tool that clones copies them, are none."""
    notes = domain.find(_PATH)
    if notes is None or notes.get("id") != domain.findtext("uuid"):
        return NO_NOTES
    return VmNotes(notes.get("protected") == _YES, notes.get("start", ""))


def carry_notes(before: etree._Element, domain: etree._Element) -> None:
    """Give a definition the notes of the one that it is to replace, and no others."""
    for element in domain.findall(_PATH):
        element.getparent().remove(element)  # type: ignore[union-attr]
    notes = read_notes(before)
    if notes == NO_NOTES:
        return
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(domain, "metadata")
    metadata.append(_element(f"{{{NAMESPACE}}}notes", domain.findtext("uuid", ""), notes))


def write_notes(library: Any, domain: Any, notes: VmNotes) -> None:
    """Replace a domain's notes, wherever it has a definition; a domain that ends meanwhile has one place less."""
    element = _element("notes", domain.UUIDString(), notes)
    text = None if notes == NO_NOTES else etree.tostring(element, encoding="unicode")
    places = [library.VIR_DOMAIN_AFFECT_CONFIG] if domain.isPersistent() else []
    if domain.isActive():
        places.append(library.VIR_DOMAIN_AFFECT_LIVE)
    for place in places:
        try:
            domain.setMetadata(library.VIR_DOMAIN_METADATA_ELEMENT, text, PREFIX, NAMESPACE, place)
        except library.libvirtError as error:
            has_ended = place == library.VIR_DOMAIN_AFFECT_LIVE and has_code(error, ErrorCode.OPERATION_INVALID)
            had_none = text is None and has_code(error, ErrorCode.NO_DOMAIN_METADATA)
            if not has_ended and not had_none:
                raise


def _element(tag: str, vm_id: str, notes: VmNotes) -> etree._Element:
    nsmap = {PREFIX: NAMESPACE} if tag.startswith("{") else None
    element = etree.Element(tag, {"id": vm_id}, nsmap=nsmap)
    if notes.is_protected:
        element.set("protected", _YES)
    if notes.start_order:
        element.set("start", notes.start_order)
    return element
