"""Documents of libvirt's snapshots: what people wrote comes back as it was, and other tools' are understood."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.errors import SnapshotUnsupported
from hypervisor.libvirt import snapshot_xml
from hypervisor.libvirt.snapshot_xml import SnapshotDisk, read_snapshot
from hypervisor.snapshots import Snapshot, SnapshotRequest, in_tree_order
from hypervisor.types import PowerState

VM_ID = str(uuid.uuid4())
SCHEMA = Path("/usr/share/libvirt/schemas/domainsnapshot.rng")
DOMAIN = f"""<domain type='qemu'><name>d</name><uuid>{VM_ID}</uuid><memory unit='KiB'>65536</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a.qcow2'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/b.raw'/>
<target dev='vdb' bus='virtio'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
</devices></domain>"""
HOSTILE = ["a'><&\"b", "]]><x/>", "../../etc", "\u2028\x85", 'quote " and \\ backslash', "{}", "é\U0001f600"]


def request(name: str = "n", description: str = "", **fields: bool) -> SnapshotRequest:
    return SnapshotRequest(str(uuid.uuid4()), name, description, **fields)


def disk_document(wanted: SnapshotRequest, parent: str = "") -> str:
    domain = etree.fromstring(DOMAIN)
    return snapshot_xml.disk_snapshot(wanted, PowerState.PAUSED, 3, 1_700_000_000, parent, domain)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_people_wrote_comes_back_and_names_nothing(text: str) -> None:
    wanted = request(text, text + "\n\t\x01", quiesce=True)
    document = disk_document(wanted)
    read = read_snapshot(VM_ID, document, is_current=True)
    assert (read.snapshot.name, read.snapshot.description) == (text, text + "\n\t\x01")
    assert read.libvirt_name == read.snapshot.snapshot_id == wanted.snapshot_id
    assert (read.snapshot.state, read.snapshot.frozen_filesystem_count, read.snapshot.is_quiesced) == (
        PowerState.PAUSED,
        3,
        True,
    )
    assert (read.snapshot.created_at_s, read.snapshot.has_memory, read.is_ours) == (1_700_000_000, False, True)


@pytest.mark.skipif(not SCHEMA.exists(), reason="libvirt's schemas are not installed")
def test_documents_are_valid_by_libvirts_own_schema() -> None:
    schema = etree.RelaxNG(file=str(SCHEMA))
    disks = snapshot_xml.read_disks(etree.fromstring(DOMAIN))
    for document in (disk_document(request(), str(uuid.uuid4())), snapshot_xml.memory_snapshot(request(), disks)):
        assert schema.validate(etree.fromstring(document)), schema.error_log


def test_disks_that_the_guest_cannot_write_are_left_out() -> None:
    disks = snapshot_xml.read_disks(etree.fromstring(DOMAIN))
    assert [(disk.target, disk.format, disk.is_saved) for disk in disks] == [
        ("vda", "qcow2", True),
        ("vdb", "raw", False),
    ]
    snapshot_xml.require_savable(VM_ID, disks)
    listed = etree.fromstring(snapshot_xml.memory_snapshot(request(), disks)).findall("disks/disk")
    assert [(disk.get("name"), disk.get("snapshot")) for disk in listed] == [("vda", "internal"), ("vdb", "no")]


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (SnapshotDisk("vda", Path("/x"), "raw", is_readonly=False), r"vda \(raw\)"),
        (SnapshotDisk("vda", None, "qcow2", is_readonly=False), r"vda \(qcow2\)"),
        (SnapshotDisk("vda", Path("/x"), "qcow2", is_readonly=True), "no disk"),
    ],
)
def test_disks_that_cannot_be_saved_are_named(disk: SnapshotDisk, words: str) -> None:
    with pytest.raises(SnapshotUnsupported, match=words):
        snapshot_xml.require_savable(VM_ID, [disk])


@pytest.mark.parametrize(
    "os_", ["<os firmware='efi'/>", "<os><loader type='pflash'>/x</loader></os>"], ids=["automatic", "by path"]
)
def test_memory_under_uefi_is_refused(os_: str) -> None:
    with pytest.raises(SnapshotUnsupported, match="UEFI"):
        snapshot_xml.require_savable_memory(VM_ID, etree.fromstring(f"<domain>{os_}</domain>"))


def test_snapshot_of_another_tool_is_shown_under_an_id_of_its_own() -> None:
    text = (
        '<domainsnapshot><name>../by hand</name><description>{"kind": 1}</description><state>running</state>'
        "<parent><name>first</name></parent><creationTime>12</creationTime><memory snapshot='internal'/>"
        "</domainsnapshot>"
    )
    read = read_snapshot(VM_ID, text, is_current=False)
    assert not read.is_ours
    assert (read.snapshot.name, read.snapshot.description) == ("../by hand", '{"kind": 1}')
    assert uuid.UUID(read.snapshot.snapshot_id)
    assert read.snapshot.parent_id == snapshot_xml.snapshot_id_of(VM_ID, "first")
    assert (read.snapshot.state, read.snapshot.has_memory, read.domain) == (PowerState.RUNNING, True, None)
    assert read_snapshot(str(uuid.uuid4()), text, is_current=False).snapshot.snapshot_id != read.snapshot.snapshot_id


def test_tree_order_puts_parents_first_and_keeps_what_has_lost_its_parent() -> None:
    def made(snapshot_id: str, parent_id: str, at_s: float) -> Snapshot:
        return Snapshot(
            snapshot_id, snapshot_id, "", parent_id, at_s, PowerState.STOPPED, False, False, 0, 0, is_current=False
        )

    tree = [made("c", "a", 1), made("b", "a", 2), made("a", "", 3), made("x", "gone", 4), made("d", "c", 5)]
    assert [each.snapshot_id for each in in_tree_order(tree)] == ["a", "c", "d", "b", "x"]
