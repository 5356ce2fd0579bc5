"""Connections to the consoles of running domains: QEMU's displays, and the serial line through libvirt's stream."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from lxml import etree

from hypervisor.console_turns import in_turn
from hypervisor.errors import ConsoleAbsent, ConsoleInUse
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.serial_stream import SerialStream
from hypervisor.libvirt.visits import Visits
from hypervisor.types import ConsoleKind

OPEN_DEADLINE_S: Final = 10.0
"""QEMU takes a connection within milliseconds; somebody looks at a window that stays empty meanwhile."""

_DISPLAYS: Final[Mapping[str, ConsoleKind]] = {"vnc": ConsoleKind.VNC, "spice": ConsoleKind.SPICE}
_LINES: Final = frozenset({"pty", "unix"})
"""The kinds of character devices of which libvirt makes a stream."""


class DomainConsoles:
    """Finds and opens consoles.

    Displays are asked for by their place in the definition and opened inside QEMU, so that it does not matter where
    they listen, if anywhere: domains of another tool, and ours of before, listen on TCP ports.
    """

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._library = visits.connection.library

    async def kinds(self, vm_id: str) -> tuple[ConsoleKind, ...]:
        """See `Hypervisor.console_kinds`."""
        return await self._visits.look(vm_id, lambda domain: tuple(self._places(vm_id, domain)))

    async def open(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        """See `Hypervisor.open_console`."""
        work = partial(self._open, vm_id, kind)
        return await in_turn(lambda: self._visits.change(vm_id, work, deadline_s=OPEN_DEADLINE_S))

    async def set_password(self, vm_id: str, password: str, valid_s: float) -> None:
        """See `Hypervisor.set_console_password`."""
        until = datetime.now(UTC) + timedelta(seconds=valid_s)
        work = partial(self._set_password, vm_id, password, until)
        await self._visits.change(vm_id, work, deadline_s=OPEN_DEADLINE_S)

    # in worker threads

    def _set_password(self, vm_id: str, password: str, until: datetime, connection: Any) -> None:
        domain = self._visits.operations.find(connection, vm_id)
        tree = domain_xml.parse(domain.XMLDesc(self._library.VIR_DOMAIN_XML_SECURE))
        display = tree.find("devices/graphics[@type='spice']")
        if display is None or tree.get("id") is None:
            raise ConsoleAbsent(f"VM {vm_id} has no spice console, or does not run")
        display.set("passwd", password)
        display.set("passwdValidTo", until.strftime("%Y-%m-%dT%H:%M:%S"))  # in UTC
        domain.updateDeviceFlags(domain_xml.to_text(display), self._library.VIR_DOMAIN_AFFECT_LIVE)

    def _places(self, vm_id: str, domain: Any) -> dict[ConsoleKind, int]:
        tree = domain_xml.parse(domain.XMLDesc())
        if tree.get("id") is None:  # libvirt numbers what runs
            raise ConsoleAbsent(f"VM {vm_id} does not run; its consoles are there while it runs")
        return console_places(tree)

    def _open(self, vm_id: str, kind: ConsoleKind, connection: Any) -> socket.socket:
        domain = self._visits.operations.find(connection, vm_id)
        place = self._places(vm_id, domain).get(kind)
        if place is None:
            raise ConsoleAbsent(f"VM {vm_id} has no {kind.value} console")
        try:
            if kind is ConsoleKind.SERIAL:
                # A connection of its own: a stream lives long, and must not wait behind a call that hangs.
                return SerialStream(self._library, self._visits.connection.dial(), vm_id).open()
            # SPICE keeps its password: each of its channels is a connection, and asks for it.
            flags = self._library.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH if kind is ConsoleKind.VNC else 0
            return socket.socket(fileno=domain.openGraphicsFD(place, flags))
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.OPERATION_INVALID):  # it stopped just now
                raise ConsoleAbsent(f"VM {vm_id} does not run any more") from error
            if kind is ConsoleKind.SERIAL and has_code(error, ErrorCode.OPERATION_FAILED):  # "Active console session"
                raise ConsoleInUse(vm_id) from error
            raise


def console_places(tree: etree._Element) -> dict[ConsoleKind, int]:
    """Find the consoles in a definition; a display's place is its number among all displays, as libvirt counts."""
    places: dict[ConsoleKind, int] = {}
    for number, graphics in enumerate(tree.findall("devices/graphics")):
        kind = _DISPLAYS.get(graphics.get("type", ""))
        if kind is not None:
            places.setdefault(kind, number)
    ordered: dict[ConsoleKind, int] = {
        kind: places[kind] for kind in (ConsoleKind.VNC, ConsoleKind.SPICE) if kind in places
    }
    lines = (*tree.findall("devices/console"), *tree.findall("devices/serial"))
    if any(line.get("type") in _LINES for line in lines):
        ordered[ConsoleKind.SERIAL] = 0
    return ordered
