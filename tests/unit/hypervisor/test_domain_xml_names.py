"""Names and marks in definitions: whatever a VM is called, libvirt's document holds it and gives it back."""

from __future__ import annotations

import dataclasses
import re
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import NAMESPACE, fingerprint, read_mark
from hypervisor.types import CpuTopology, Firmware, VmConfig, VncConsole
from tests.unit.hypervisor.test_domain_xml import CONFIGS, MINIMAL, TCG, one, schema

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)
"""Also control characters, halves of surrogate pairs and non-characters."""


def through_libvirt(config: VmConfig) -> etree._Element:
    return domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, TCG)))


@given(name=ANY_TEXT)
def test_fault_12_name_of_any_characters_comes_back_from_the_definition(name: str) -> None:
    config = dataclasses.replace(MINIMAL, name=name)
    tree = through_libvirt(config)
    mark = read_mark(tree)
    assert (mark.vm_name, mark.fingerprint, mark.is_managed) == (name, fingerprint(config), True)
    schema().assertValid(tree)


@given(name=ANY_TEXT, vm_id=st.uuids(version=4))
def test_domain_name_is_plain_short_and_ends_in_the_id(name: str, vm_id: uuid.UUID) -> None:
    made = domain_xml.make_domain_name(dataclasses.replace(MINIMAL, name=name, vm_id=str(vm_id)))
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-[0-9a-f]{12}", made)
    assert len(made) <= domain_xml.MAX_DOMAIN_NAME_LENGTH
    assert made.endswith(vm_id.hex[:12])


@given(name=st.text(string.ascii_letters + string.digits, min_size=1, max_size=27))
def test_domain_name_of_a_plain_name_begins_with_it(name: str) -> None:
    assert domain_xml.make_domain_name(dataclasses.replace(MINIMAL, name=name)).startswith(f"{name}-")


def test_title_holds_the_name_for_other_tools() -> None:
    assert through_libvirt(dataclasses.replace(MINIMAL, name="Büro '><&\" 1\n2")).findtext("title") == "Büro '><&\" 1 2"


def test_mark_copied_to_another_domain_does_not_make_it_ours() -> None:
    tree = through_libvirt(MINIMAL)
    one(tree, "uuid").text = str(uuid.uuid4())
    mark = read_mark(tree)
    assert (mark.vm_name, mark.is_managed) == ("web-1", False)


def test_domain_of_another_tool_goes_by_its_title_or_else_its_name() -> None:
    foreign = "<domain><name>n</name><uuid>u</uuid>{}</domain>"
    assert read_mark(domain_xml.parse(foreign.format("<title>t</title>"))).vm_name == "t"
    assert read_mark(domain_xml.parse(foreign.format(""))).vm_name == "n"


@pytest.mark.parametrize(
    "content", ["<name>not json</name><fingerprint>f</fingerprint>", '<name>"n"</name>', "<name>3</name>", ""]
)
def test_damaged_mark_is_no_mark(content: str) -> None:
    document = (
        "<domain><name>n</name><uuid>u</uuid><metadata>"
        f'<vm xmlns="{NAMESPACE}" id="u">{content}</vm></metadata></domain>'
    )
    assert not read_mark(domain_xml.parse(document)).is_managed


def test_fingerprints_of_different_configurations_differ() -> None:
    assert len({fingerprint(config) for config in CONFIGS.values()}) == len(CONFIGS)
    assert fingerprint(dataclasses.replace(MINIMAL, vnc=VncConsole())) != fingerprint(MINIMAL)


def test_fingerprint_of_equal_configurations_is_the_same_in_every_process() -> None:
    again = VmConfig(MINIMAL.vm_id, "web-1", CpuTopology(1, 1, 1), 512, firmware=Firmware.BIOS)
    assert fingerprint(again) == fingerprint(MINIMAL)
    # Domains defined by earlier versions carry this; if it changes, `create` no longer knows them.
    assert fingerprint(MINIMAL) == "2180f5ea2101aa9711c99ee663344bfbcde6c875caca8f0514fb561e93a13373"
