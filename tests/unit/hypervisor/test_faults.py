"""What the documented system's hypervisor layer does wrong, done right; see tests/unit/test_faults_covered.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.consoles import console_places
from hypervisor.libvirt.domain_inventory import Inventory
from hypervisor.libvirt.domain_operations import DomainOperations
from hypervisor.mock.backend import MockHypervisor
from hypervisor.types import (
    CdromConfig,
    ConsoleKind,
    CpuTopology,
    DirectBoot,
    DiskConfig,
    NicConfig,
    VmConfig,
    VncConsole,
)
from tests.unit.hypervisor.test_domain_xml import CONFIGS, KVM, MINIMAL, TCG, one, schema

# -- 11: consoles listen on no network


@pytest.mark.parametrize("host", [TCG, KVM], ids=["tcg", "kvm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fault_11_definition_opens_no_port_for_anything(name: str, host: domain_xml.HostTraits) -> None:
    config = dataclasses.replace(CONFIGS[name], vnc=VncConsole("0.0.0.0"))  # noqa: S104  # a password, not an address
    devices = one(domain_xml.build_domain(config, host), "devices")
    (graphics,) = devices.findall("graphics")
    assert {"port", "autoport", "websocket", "listen"}.isdisjoint(graphics.keys())
    assert [listen.get("type") for listen in graphics.findall("listen")] == ["socket"]
    streams = [device.get("type") for tag in ("serial", "console", "channel") for device in devices.findall(tag)]
    assert set(streams) <= {"pty", "unix"}


def test_fault_11_vnc_without_a_password_is_defined_with_one_of_its_own() -> None:
    connection = RecordingConnection()
    for number in (1, 2):
        vm_id = MINIMAL.vm_id[:-1] + str(number)
        operations().create(dataclasses.replace(MINIMAL, vm_id=vm_id, vnc=VncConsole()), connection)
    passwords = {one(domain_xml.parse(text), "devices/graphics").get("passwd") for text in connection.defined}
    assert len(passwords) == 2
    assert all(password and len(password) == 8 for password in passwords)


# -- 12: hostile words stay words

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("'><&\"\n\t]!/-"), max_size=60)
"""What XML can hold; what it cannot is refused, see test_domain_xml."""


def shape(element: etree._Element) -> tuple[Any, ...]:
    """Tell which elements and attributes there are, and not what they hold."""
    return (element.tag, sorted(element.keys()), [shape(child) for child in element])


def everything_called(word: str) -> VmConfig:
    """Configure a VM with a text in each place that takes one."""
    return dataclasses.replace(
        MINIMAL,
        name=word,
        cpu=CpuTopology(model=word),
        direct_boot=DirectBoot(Path("/srv") / word, Path("/srv") / word, word),
        disks=(DiskConfig("d1", Path("/srv") / word),),
        cdroms=(CdromConfig("c1", Path("/srv") / word),),
        nics=(NicConfig("n1", "52:54:00:00:00:01", bridge=word), NicConfig("n2", "52:54:00:00:00:02", network=word)),
        vnc=VncConsole(word),
    )


PLAIN_SHAPE = shape(domain_xml.build_domain(everything_called("word"), TCG))


@given(text=ANY_TEXT)
def test_fault_12_no_text_changes_the_structure_or_itself(text: str) -> None:
    config = everything_called(f"x{text}")
    tree = domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, TCG)))
    assert shape(tree) == PLAIN_SHAPE
    assert tree.findtext("os/cmdline") == f"x{text}"
    assert one(tree, "devices/graphics").get("passwd") == f"x{text}"
    assert one(tree, "devices/disk/source").get("file") == str(Path("/srv") / f"x{text}")


@pytest.mark.parametrize(
    "text",
    [
        "'><&\"",
        "a\nb",
        "</cmdline></os><devices><graphics type='vnc' listen='0.0.0.0'/></devices>",
        "]]><x/>",
        "<!-- ",
        "<?pi?>",
        "&amp;&#0;&xxe;",
        "<!DOCTYPE d [<!ENTITY xxe SYSTEM 'file:///etc/passwd'>]>",
        "%s {0} $x",
    ],
)
def test_fault_12_text_made_to_break_xml_is_a_name_and_a_kernel_command_line_like_any_other(text: str) -> None:
    config = dataclasses.replace(MINIMAL, name=text, direct_boot=DirectBoot(Path("/srv/k"), None, text))
    plain = dataclasses.replace(config, name="web", direct_boot=DirectBoot(Path("/srv/k"), None, "quiet"))
    tree = domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, TCG)))
    assert shape(tree) == shape(domain_xml.build_domain(plain, TCG))
    assert tree.findtext("os/cmdline") == text
    schema().assertValid(tree)


# -- 13: the display is found where it stands, and no port is read


class LibvirtError(Exception):
    """What libvirt raises for a domain that does not exist."""

    def get_error_code(self) -> int:
        return 42

    def get_error_domain(self) -> int:
        return 10


LIBRARY: Any = SimpleNamespace(
    VIR_DOMAIN_XML_SECURE=1, VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT=1, libvirtError=LibvirtError
)


class RecordingConnection:
    """A host without domains, which notes what is defined."""

    def __init__(self) -> None:
        self.defined: list[str] = []

    def lookupByUUIDString(self, vm_id: str) -> Any:
        raise LibvirtError(vm_id)

    def defineXML(self, text: str) -> None:
        self.defined.append(text)


def operations() -> DomainOperations:
    return DomainOperations(LIBRARY, Inventory(LIBRARY), TCG)


DECOY = "port='1234' <graphics type='vnc' port='1234'/>"


def test_fault_13_display_of_a_vm_full_of_decoys_is_found_where_it_stands() -> None:
    config = dataclasses.replace(
        MINIMAL,
        name=DECOY,
        vnc=VncConsole("right"),
        direct_boot=DirectBoot(Path("/srv/k port='1234'"), None, DECOY),
        disks=(DiskConfig("d1", Path("/srv/port='1234'")),),
    )
    tree = domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, TCG)))
    assert console_places(tree) == {ConsoleKind.VNC: 0, ConsoleKind.SERIAL: 0}


FOREIGN = """<domain type='qemu' id='7'>
  <name>port='1234'</name><title>port='1234'</title><!-- <graphics type='vnc' port='1234'/> -->
  <metadata><x:y xmlns:x='urn:x' port='1234'><graphics type='vnc' port='1234' passwd='wrong'/></x:y></metadata>
  <devices>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='1234'/><target port='1234'/></serial>
    <graphics type='egl-headless'/>{}
  </devices>
</domain>"""


@pytest.mark.parametrize(
    ("displays", "places"),
    [
        ("", {}),
        ("<graphics type='vnc' port='5908' listen='127.0.0.1'/>", {ConsoleKind.VNC: 1}),
        ("<graphics type='spice'/><graphics type='vnc' socket='/s'/>", {ConsoleKind.VNC: 2, ConsoleKind.SPICE: 1}),
        ("<graphics type='vnc'/><graphics type='vnc'/>", {ConsoleKind.VNC: 1}),
        ("<console type='pty'><target type='serial' port='1234'/></console>", {ConsoleKind.SERIAL: 0}),
    ],
)
def test_fault_13_display_of_a_domain_of_another_tool_is_found_by_its_place(
    displays: str, places: dict[ConsoleKind, int]
) -> None:
    found = console_places(domain_xml.parse(FOREIGN.format(displays)))
    assert found == places
    assert list(found) == list(places)


# -- 23: a simulation starts empty


async def test_fault_23_new_mock_host_has_no_vms() -> None:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    assert list(await hypervisor.list()) == []
