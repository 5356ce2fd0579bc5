"""Whether this machine can run what is measured on libvirt, and libvirt called directly, as the reference."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lxml import etree

from controlplane.cli.dev.libvirt_choice import LibvirtKind, find_libvirt

_XML_INACTIVE = 2
"""libvirt's VIR_DOMAIN_XML_INACTIVE: the stored definition, not what runs."""
_IDENTITY = ("uuid", "metadata", "title")
"""Parts of a definition that name one VM; a copy does without."""


async def why_no_libvirt() -> str:
    """Say why libvirt cannot be measured here; "" if it can."""
    if importlib.util.find_spec("libvirt") is None:
        return "libvirt-python is not installed; pip install 'limiquantix[libvirt]'"
    choice = await find_libvirt(Path(tempfile.gettempdir()))
    return choice.reason if choice.kind is LibvirtKind.NONE else ""


class DirectLibvirt:
    """A connection of the benchmark's own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def read_definition(self, vm_id: str) -> str:
        """Return the stored definition of a VM that the product made."""

        def read() -> str:
            return str(self._connection.lookupByUUIDString(vm_id).XMLDesc(_XML_INACTIVE))

        return await asyncio.to_thread(read)

    def define(self, definition: str) -> Any:
        """Define a VM; returns libvirt's domain. Blocks, as all its calls do."""
        return self._connection.defineXMLFlags(definition, 0)


@asynccontextmanager
async def direct_libvirt(uri: str) -> AsyncIterator[DirectLibvirt]:
    """Connect to a daemon, beside the product's own connection."""
    import libvirt  # noqa: PLC0415 - an optional dependency, asked for by `why_no_libvirt` before

    connection = await asyncio.to_thread(libvirt.open, uri)
    try:
        yield DirectLibvirt(connection)
    finally:
        await asyncio.to_thread(connection.close)


def copy_of_definition(definition: str, name: str, console_log: Path) -> str:
    """Make, of a definition as libvirt stores it, one for another VM of the same shape.

    What libvirt itself added (PCI addresses and controllers) is taken out, so that it has the same work again.
    """
    domain = copy.deepcopy(etree.fromstring(definition.encode()))
    for tag in _IDENTITY:
        for element in domain.findall(tag):
            domain.remove(element)
    name_element = domain.find("name")
    if name_element is None:
        raise ValueError("libvirt returned a domain without a name")
    name_element.text = name
    devices = domain.find("devices")
    if devices is not None:
        for controller in devices.findall("controller[@type='pci']"):
            devices.remove(controller)
        for address in devices.findall("*/address[@type='pci']"):
            parent = address.getparent()
            if parent is not None:
                parent.remove(address)
        for log in devices.findall("*/log"):
            log.set("file", str(console_log))
    return etree.tostring(domain, encoding="unicode")
