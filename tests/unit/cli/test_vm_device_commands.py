"""`limiquantix vm disk`, `vm nic` and `vm cdrom`."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_http_api import Document, FakeApi, Run

VM_ID = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
DISK_ID, OTHER_ID, NIC_ID, DRIVE_ID = (f"{n}f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11" for n in (1, 2, 3, 4))
VM: Document = {
    "id": VM_ID,
    "name": "web-1",
    "spec": {
        "disks": [
            {"id": DISK_ID, "sizeGib": "20", "bus": "VIRTIO_SCSI", "ioLimits": {"readIops": "9"}, "readonly": True},
            {"id": OTHER_ID, "sizeGib": "1"},
        ],
        "nics": [{"id": NIC_ID, "macAddress": "52:54:00:00:00:01", "bridge": "br0", "linkDown": True}],
        "cdroms": [{"id": DRIVE_ID, "isoPath": "iso/a.iso"}],
    },
}


@pytest.fixture(autouse=True)
def answers(api: FakeApi) -> None:
    methods = ("GetVM", "AttachDisk", "DetachDisk", "ResizeDisk", "UpdateDisk", "AttachNIC", "DetachNIC", "UpdateNIC")
    for method in (*methods, "AttachCDROM", "DetachCDROM", "MountISO", "EjectISO"):
        api.answers[method] = lambda _: VM


def sent(api: FakeApi, method: str) -> Document:
    return next(document for name, document in reversed(api.requests) if name == method)


def test_lists_show_devices_for_people_and_for_programs(run: Run) -> None:
    disks = run("vm", "disk", "list", VM_ID)
    assert all(word in disks.stdout for word in (DISK_ID, "GiB", "virtio-scsi", "r 9/s", "read-only", "qcow2"))
    assert "down" in run("vm", "nic", "list", VM_ID).stdout
    assert "iso/a.iso" in run("vm", "cdrom", "list", VM_ID).stdout
    document = json.loads(run("-o", "json", "vm", "disk", "list", VM_ID).stdout)
    assert [disk["id"] for disk in document["disks"]] == [DISK_ID, OTHER_ID]


def test_disk_attach_sends_the_disk_and_names_it(run: Run, api: FakeApi) -> None:
    words = "source=import/a.vmdk,source-format=vmdk,bus=virtio-scsi,discard"
    result = run("vm", "disk", "attach", VM_ID, words)
    assert sent(api, "AttachDisk")["disk"] == {
        "sourceFile": "import/a.vmdk",
        "sourceFormat": "SOURCE_FORMAT_VMDK",
        "bus": "VIRTIO_SCSI",
        "discardEnabled": True,
    }
    assert f"disk {OTHER_ID} is attached to VM web-1" in result.stdout


def test_disk_detach_says_that_the_image_stays_and_how_to_have_it_back(run: Run, api: FakeApi) -> None:
    result = run("vm", "disk", "detach", VM_ID, DISK_ID[:8], "--force")
    request = sent(api, "DetachDisk")
    assert (request["vmId"], request["diskId"], request["force"]) == (VM_ID, DISK_ID, True)
    assert "its image stays until the VM is deleted" in result.stdout
    assert f"id={DISK_ID}" in result.stdout


def test_disk_is_resized_and_limited(run: Run, api: FakeApi) -> None:
    assert "40 GiB" in run("vm", "disk", "resize", VM_ID, DISK_ID, "40GiB").stdout
    assert sent(api, "ResizeDisk")["newSizeGib"] == 40
    run("vm", "disk", "limit", VM_ID, DISK_ID, "--write-rate", "50MiB", "--read-iops", "7")
    limits = sent(api, "UpdateDisk")["ioLimits"]
    assert (limits["writeBytesSec"], limits["readIops"], limits["burstIops"]) == (50 * 2**20, 7, 0)


def test_network_card_is_attached_limited_unplugged_and_detached(run: Run, api: FakeApi) -> None:
    assert "52:54:00:00:00:01" in run("vm", "nic", "attach", VM_ID, "bridge=br0,model=e1000e").stdout
    assert sent(api, "AttachNIC")["nic"] == {"bridge": "br0", "model": "E1000E"}
    run("vm", "nic", "link", VM_ID, NIC_ID, "down")
    assert sent(api, "UpdateNIC")["linkDown"] is True
    run("vm", "nic", "limit", VM_ID, NIC_ID, "--in", "100")
    assert sent(api, "UpdateNIC")["qos"] == {"ingressRateMbps": 100, "egressRateMbps": 0, "burstKb": 0}
    assert "is detached" in run("vm", "nic", "detach", VM_ID, NIC_ID).stdout


def test_drive_is_added_filled_emptied_and_removed(run: Run, api: FakeApi) -> None:
    run("vm", "cdrom", "attach", VM_ID, "--bus", "virtio-scsi")
    assert sent(api, "AttachCDROM")["bus"] == "VIRTIO_SCSI"
    run("vm", "cdrom", "mount", VM_ID, DRIVE_ID, "iso/b.iso")
    assert (sent(api, "MountISO")["cdromId"], sent(api, "MountISO")["isoPath"]) == (DRIVE_ID, "iso/b.iso")
    assert "is empty" in run("vm", "cdrom", "eject", VM_ID, DRIVE_ID).stdout
    assert "is removed" in run("vm", "cdrom", "detach", VM_ID, DRIVE_ID).stdout


@pytest.mark.parametrize("word", ["9f7c1a52", "1f7", "../x"])
def test_device_that_is_not_there_is_told_and_nothing_is_asked_for(run: Run, api: FakeApi, word: str) -> None:
    result = run("vm", "disk", "detach", VM_ID, word)
    assert result.exit_code != 0
    assert "has no disk" in result.stderr
    assert "DetachDisk" not in {name for name, _ in api.requests}


def test_beginning_of_two_ids_is_refused_with_both(run: Run, api: FakeApi) -> None:
    twins = [{"id": f"abcd000{n}-0b3e-4d0c-9a56-2f1f0c9e4b11"} for n in (1, 2)]
    api.answers["GetVM"] = lambda _: {**VM, "spec": {"disks": twins}}
    result = run("vm", "disk", "detach", VM_ID, "abcd")
    assert result.exit_code != 0
    assert "write more of the id" in result.stderr
