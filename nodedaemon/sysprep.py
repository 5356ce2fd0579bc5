"""Windows answer files: what a caller left out is filled in, in a tree and never in a text.

Source of elements and names: learn.microsoft.com, "Unattended Windows Setup Reference".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

MAX_COMPUTER_NAME_LENGTH: Final = 15
"""Of a NetBIOS name."""
_NAMESPACE: Final = "urn:schemas-microsoft-com:unattend"
_COMPONENT: Final = {
    "processorArchitecture": "amd64",
    "publicKeyToken": "31bf3856ad364e35",
    "language": "neutral",
    "versionScope": "nonSxS",
}
_SPECIALIZE: Final = "specialize"
_SHELL: Final = "Microsoft-Windows-Shell-Setup"
_JOIN: Final = "Microsoft-Windows-UnattendedJoin"
_CREDENTIALS: Final = ("Identification", "Credentials")


class BadAnswerFile(Exception):
    """The answers cannot be written; `field` names the setting, and the message says why without its contents."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Answers:
    """What is filled in where the file has nothing; "" fills in nothing."""

    computer_name: str
    product_key: str = field(default="", repr=False)
    domain: str = ""
    domain_user: str = ""
    domain_password: str = field(default="", repr=False)


def answer_file(text: str, answers: Answers) -> bytes:
    """Write an answer file: the caller's, or a new one, with what it leaves out filled in.

    Raises:
        BadAnswerFile: it is no answer file, or an answer cannot be written in XML.
    """
    if (answers.domain_user or answers.domain_password) and not answers.domain:
        raise BadAnswerFile("domain", "is required with a user or a password of a domain")
    root = _parsed(text) if text.strip() else _new()
    settings = (
        ("unattend_xml", _SHELL, ("ComputerName",), answers.computer_name),
        ("product_key", _SHELL, ("ProductKey",), answers.product_key),
        ("domain", _JOIN, ("Identification", "JoinDomain"), answers.domain),
        ("domain", _JOIN, (*_CREDENTIALS, "Domain"), answers.domain if answers.domain_user else ""),
        ("domain_user", _JOIN, (*_CREDENTIALS, "Username"), answers.domain_user),
        ("domain_password", _JOIN, (*_CREDENTIALS, "Password"), answers.domain_password),
    )
    for name, component, path, value in settings:
        if not value:
            continue
        try:
            _fill_in(root, component, path, value)
        except ValueError:  # characters that XML has no way to write
            raise BadAnswerFile(name, "holds a character that XML cannot hold") from None
    return etree.tostring(root, xml_declaration=True, encoding="utf-8", pretty_print=True)


def _new() -> etree._Element:
    return etree.fromstring(f'<unattend xmlns="{_NAMESPACE}"/>')


def _parsed(text: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        raise BadAnswerFile("unattend_xml", "is not sound XML") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise BadAnswerFile("unattend_xml", "must have no document type")
    if root.tag != _tag("unattend"):
        raise BadAnswerFile("unattend_xml", f"must be an <unattend> of the namespace {_NAMESPACE}")
    return root


def _fill_in(root: etree._Element, component: str, path: Sequence[str], value: str) -> None:
    """Set a setting of the pass `specialize` unless it is there already."""
    settings = next((each for each in root.findall(_tag("settings")) if each.get("pass") == _SPECIALIZE), None)
    if settings is None:
        settings = etree.SubElement(root, _tag("settings"), {"pass": _SPECIALIZE})
    found = next((each for each in settings.findall(_tag("component")) if each.get("name") == component), None)
    if found is None:
        found = etree.SubElement(settings, _tag("component"), {"name": component, **_COMPONENT})
    for name in path[:-1]:
        inner = found.find(_tag(name))
        found = etree.SubElement(found, _tag(name)) if inner is None else inner
    if found.find(_tag(path[-1])) is None:
        etree.SubElement(found, _tag(path[-1])).text = value


def _tag(name: str) -> str:
    return f"{{{_NAMESPACE}}}{name}"
