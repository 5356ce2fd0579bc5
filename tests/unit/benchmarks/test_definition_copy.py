"""The copy of a domain definition that libvirt is given directly."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from benchmarks.libvirt_host import copy_of_definition

STORED = """
<domain type='qemu'>
  <name>hello-0123</name>
  <uuid>11111111-1111-4111-8111-111111111111</uuid>
  <title>hello</title>
  <metadata><mark xmlns='urn:test'>ours</mark></metadata>
  <memory unit='KiB'>131072</memory>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='usb' index='0' model='none'/>
    <serial type='pty'><log file='/data/console/hello.log' append='on'/><target port='0'/></serial>
    <disk type='file'><address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>
    <rng model='virtio'><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></rng>
  </devices>
</domain>
"""


@pytest.fixture
def copied() -> etree._Element:
    return etree.fromstring(copy_of_definition(STORED, "direct-1", Path("/tmp/direct.log")).encode())


def test_copy_has_its_own_name_and_no_identity_of_the_original(copied: etree._Element) -> None:
    assert copied.findtext("name") == "direct-1"
    assert [copied.find(tag) for tag in ("uuid", "title", "metadata")] == [None, None, None]


def test_copy_leaves_pci_to_libvirt_and_keeps_all_else(copied: etree._Element) -> None:
    assert copied.findall(".//address[@type='pci']") == []
    assert [item.get("type") for item in copied.findall("devices/controller")] == ["usb"]
    assert copied.find("devices/disk/address[@type='drive']") is not None
    assert copied.find("devices/rng") is not None
    assert copied.findtext("memory") == "131072"


def test_copy_writes_its_console_elsewhere(copied: etree._Element) -> None:
    log = copied.find("devices/serial/log")
    assert log is not None
    assert log.get("file") == "/tmp/direct.log"


def test_copy_of_a_definition_without_name_is_refused() -> None:
    with pytest.raises(ValueError, match="without a name"):
        copy_of_definition("<domain/>", "direct-1", Path("/tmp/direct.log"))
