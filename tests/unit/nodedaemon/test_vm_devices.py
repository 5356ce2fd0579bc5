"""Devices as the control plane asks the daemon for them, on the mock, with real images where qemu-img is installed."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.devices import VmDevices
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.types import DiskBus, IoLimits, NicBandwidth
from limiquantix.errors import ApiError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts

MIB, GIB = 2**20, 2**30

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts


def new_id() -> str:
    return str(uuid.uuid4())


async def devices_of(daemon: NodeDaemonParts, vm_id: str) -> VmDevices:
    return await daemon.hypervisor.devices.list(vm_id)  # type: ignore[union-attr]


async def attach(daemon: NodeDaemonParts, vm_id: str, **disk: Any) -> str:
    disk_id = disk.pop("id", None) or new_id()
    spec = pb.DiskSpec(id=disk_id, **disk)
    await daemon.servicer.AttachDisk(pb.AttachDiskRequest(vm_id=vm_id, disk=spec), None)
    return disk_id


def images_of(daemon: NodeDaemonParts, vm_id: str) -> set[str]:
    return {path.name for path in daemon.paths.vm_dir(vm_id).glob("*")}


def virtual_size(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(32)[24:32])


async def violations(call: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        await call
    return {violation.field: violation.description for violation in caught.value.violations}


async def test_attached_disk_has_an_image_that_outlives_its_detachment_and_is_attached_again(
    daemon: NodeDaemonParts,
) -> None:
    vm_id = await daemon.create(disk_count=1)
    await daemon.start(vm_id)
    limits = {"read_iops": 100, "burst_iops": 200}
    disk_id = await attach(daemon, vm_id, size_gib=1, bus=pb.DISK_BUS_SCSI, io_limits=limits)
    attached = [disk for disk in (await devices_of(daemon, vm_id)).disks if disk.disk_id == disk_id]
    assert [(disk.bus, disk.limits) for disk in attached] == [
        (DiskBus.SCSI, IoLimits(read_iops=100, burst_iops=200, burst_duration_s=1))
    ]
    await daemon.servicer.DetachDisk(pb.DetachDiskRequest(vm_id=vm_id, disk_id=disk_id), None)
    await daemon.servicer.DetachDisk(pb.DetachDiskRequest(vm_id=vm_id, disk_id=disk_id), None)
    assert f"{disk_id}.qcow2" in images_of(daemon, vm_id)
    await attach(daemon, vm_id, id=disk_id, size_gib=1)
    assert disk_id in {disk.disk_id for disk in (await devices_of(daemon, vm_id)).disks}
    request = pb.DetachDiskRequest(vm_id=vm_id, disk_id=disk_id, delete_image=True)
    await daemon.servicer.DetachDisk(request, None)
    assert f"{disk_id}.qcow2" not in images_of(daemon, vm_id)


@pytest.mark.parametrize(("failure", "stays"), [(Failure.REFUSED, False), (Failure.ANSWER_LOST, True)])
async def test_image_made_for_an_attach_that_failed_goes_unless_it_may_be_attached(
    daemon: NodeDaemonParts, failure: Failure, stays: bool
) -> None:
    vm_id = await daemon.create()
    daemon.hypervisor.set_faults(MockFaults((Fault(Operation.ATTACH_DISK, failure),)))
    disk_id = new_id()
    with pytest.raises(ApiError):
        await attach(daemon, vm_id, id=disk_id, size_gib=1)
    assert (f"{disk_id}.qcow2" in images_of(daemon, vm_id)) is stays


async def test_attach_to_an_absent_vm_makes_no_image(daemon: NodeDaemonParts) -> None:
    vm_id = new_id()
    with pytest.raises(NotFound):
        await attach(daemon, vm_id, size_gib=1)
    assert images_of(daemon, vm_id) == set()


async def test_disk_is_grown_running_or_not_and_never_made_smaller(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create(disk_count=1)
    disk = (await devices_of(daemon, vm_id)).disks[0]
    request = pb.ResizeDiskRequest(vm_id=vm_id, disk_id=disk.disk_id, size_gib=2)
    await daemon.servicer.ResizeDisk(request, None)
    await daemon.servicer.ResizeDisk(request, None)
    assert virtual_size(disk.path) == 2 * GIB
    await daemon.start(vm_id)
    await daemon.servicer.ResizeDisk(pb.ResizeDiskRequest(vm_id=vm_id, disk_id=disk.disk_id, size_gib=3), None)
    assert virtual_size(disk.path) == 3 * GIB
    assert "smaller" in (await violations(daemon.servicer.ResizeDisk(request, None)))["size_gib"]
    assert virtual_size(disk.path) == 3 * GIB
    absent = pb.ResizeDiskRequest(vm_id=vm_id, disk_id=new_id(), size_gib=4)
    with pytest.raises(NotFound) as caught:
        await daemon.servicer.ResizeDisk(absent, None)
    assert caught.value.reason == "DEVICE_NOT_FOUND"


async def test_guest_that_does_not_let_go_is_told_as_such(tmp_path: Path) -> None:
    async def no_sleep(_: float) -> None:
        return None

    async with node_daemon_parts(tmp_path, sleep=no_sleep) as daemon:
        vm_id = await daemon.create(disk_count=1)
        await daemon.start(vm_id)
        disk_id = await attach(daemon, vm_id, size_gib=1)
        daemon.hypervisor.set_faults(MockFaults(all_guests_deaf=True))
        with pytest.raises(FailedPrecondition) as caught:
            await daemon.servicer.DetachDisk(
                pb.DetachDiskRequest(vm_id=vm_id, disk_id=disk_id, delete_image=True), None
            )
        assert caught.value.reason == "GUEST_DID_NOT_RELEASE"
        assert f"{disk_id}.qcow2" in images_of(daemon, vm_id)


async def test_faults_of_an_attached_disk_are_named_at_once(daemon: NodeDaemonParts) -> None:
    vm_id, other_id = await daemon.create(), await daemon.create(disk_count=1)
    other = (await devices_of(daemon, other_id)).disks[0].path
    faults = await violations(
        attach(
            daemon,
            vm_id,
            size_gib=1,
            boot_index=2,
            pool_id=new_id(),
            iops_limit=5,
            io_limits={"read_iops": 10, "burst_iops": 5, "burst_bytes": 7},
            source_file=f"{other_id}/{other.name}",
            source_format=pb.SOURCE_FORMAT_QCOW2,
        )
    )
    assert faults.keys() == {
        "disk.boot_index",
        "disk.pool_id",
        "disk.iops_limit",
        "disk.io_limits.burst_iops",
        "disk.io_limits.burst_bytes",
        "disk.source_file",
    }
    assert "another VM" in faults["disk.source_file"]


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "templates/../../x.raw", "none.raw", "a\0b.raw"]
)
async def test_fault_19_source_outside_the_storage_path_is_refused(daemon: NodeDaemonParts, name: str) -> None:
    vm_id = await daemon.create()
    faults = await violations(attach(daemon, vm_id, source_file=name, source_format=pb.SOURCE_FORMAT_RAW))
    assert faults.keys() == {"disk.source_file"}
    assert images_of(daemon, vm_id) == set()


@pytest.mark.parametrize(
    ("kind", "stated"),
    [("qcow2", pb.SOURCE_FORMAT_QCOW2), ("raw", pb.SOURCE_FORMAT_RAW), ("vmdk", pb.SOURCE_FORMAT_VMDK)],
)
async def test_disk_imported_from_a_file_has_its_contents_and_the_wanted_size(
    daemon: NodeDaemonParts, tmp_path: Path, kind: str, stated: pb.SourceFormat.ValueType
) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"limiquantix" * 100_000)
    source = tmp_path / f"source.{kind}"
    run("qemu-img", "convert", "-f", "raw", "-O", kind, content, source)
    vm_id = await daemon.create()
    disk_id = await attach(daemon, vm_id, size_gib=1, source_file=source.name, source_format=stated)
    source.unlink()
    await attach(daemon, vm_id, id=disk_id, size_gib=1, source_file=source.name, source_format=stated)
    path = daemon.paths.vm_dir(vm_id) / f"{disk_id}.qcow2"
    assert virtual_size(path) == GIB
    back = tmp_path / "back"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, back)
    with back.open("rb") as file:
        assert file.read(1_100_000) == content.read_bytes()


async def test_source_of_an_unstated_or_other_format_is_refused(daemon: NodeDaemonParts, tmp_path: Path) -> None:
    vm_id = await daemon.create()
    run("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "2T")
    shutil.copy(tmp_path / "a.qcow2", tmp_path / "a.img")
    unstated = await violations(attach(daemon, vm_id, source_file="a.qcow2"))
    other = await violations(attach(daemon, vm_id, source_file="a.img", source_format=pb.SOURCE_FORMAT_RAW))
    large = await violations(attach(daemon, vm_id, source_file="a.qcow2", source_format=pb.SOURCE_FORMAT_QCOW2))
    small = await violations(
        attach(daemon, vm_id, source_file="a.qcow2", source_format=pb.SOURCE_FORMAT_QCOW2, size_gib=5)
    )
    assert (set(unstated), set(other)) == ({"disk.source_format"}, {"disk.source_file"})
    assert (set(large), set(small)) == ({"disk.size_gib"}, {"disk.size_gib"})
    assert images_of(daemon, vm_id) == set()


async def test_fault_19_medium_outside_the_storage_path_is_refused_and_drives_and_cards_come_and_go(
    daemon: NodeDaemonParts, tmp_path: Path
) -> None:
    vm_id, cdrom_id, nic_id = await daemon.create(), new_id(), new_id()
    (tmp_path / "a.iso").write_bytes(b"x" * 2048)
    servicer = daemon.servicer
    await servicer.AttachCDROM(pb.AttachCDROMRequest(vm_id=vm_id, cdrom=pb.CdromSpec(id=cdrom_id)), None)
    await daemon.start(vm_id)
    change = pb.ChangeMediaRequest(vm_id=vm_id, device=cdrom_id, iso_path="a.iso")
    await servicer.ChangeMedia(change, None)
    assert (await devices_of(daemon, vm_id)).cdroms[0].iso_path == tmp_path / "a.iso"
    change.iso_path = "../a.iso"
    assert (await violations(servicer.ChangeMedia(change, None))).keys() == {"iso_path"}
    change.iso_path = ""
    await servicer.ChangeMedia(change, None)
    assert (await devices_of(daemon, vm_id)).cdroms[0].iso_path is None

    nic = pb.NicSpec(id=nic_id, bridge="br0", bandwidth=pb.NicBandwidth(to_guest_kbps=8, burst_kib=1), link_down=True)
    await servicer.AttachNIC(pb.AttachNICRequest(vm_id=vm_id, nic=nic), None)
    card = (await devices_of(daemon, vm_id)).nics[0]
    assert (card.config.is_link_up, card.config.bandwidth) == (False, NicBandwidth(1000, 0, 1024))
    await servicer.UpdateNIC(pb.UpdateNICRequest(vm_id=vm_id, nic=pb.NicSpec(id=nic_id)), None)
    card = (await devices_of(daemon, vm_id)).nics[0]
    assert (card.config.is_link_up, card.config.bandwidth) == (True, NicBandwidth())
    await servicer.DetachNIC(pb.DetachNICRequest(vm_id=vm_id, nic_id=nic_id), None)
    assert (await devices_of(daemon, vm_id)).nics == ()
    unshaped = pb.NicSpec(id=nic_id, bandwidth_mbps=5)
    assert (
        "user-mode"
        in (await violations(servicer.AttachNIC(pb.AttachNICRequest(vm_id=vm_id, nic=unshaped), None)))[
            "nic.bandwidth_mbps"
        ]
    )


async def test_lost_answer_is_unavailable_and_the_repeated_command_finds_its_work_done(
    daemon: NodeDaemonParts,
) -> None:
    vm_id, nic_id = await daemon.create(), new_id()
    daemon.hypervisor.set_faults(MockFaults((Fault(Operation.ATTACH_NIC, Failure.ANSWER_LOST, times=1),)))
    request = pb.AttachNICRequest(vm_id=vm_id, nic=pb.NicSpec(id=nic_id))
    with pytest.raises(Unavailable):
        await daemon.servicer.AttachNIC(request, None)
    await daemon.servicer.AttachNIC(request, None)
    assert len((await devices_of(daemon, vm_id)).nics) == 1


def run(program: str, *words: str | Path) -> None:
    found = shutil.which(program)
    assert found is not None
    subprocess.run([found, *words], check=True, timeout=60)


async def test_settled_vm_has_the_devices_that_are_recorded_and_no_others(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create(disk_count=2)
    boot, data = (await devices_of(daemon, vm_id)).disks
    await daemon.start(vm_id)
    unwanted = await attach(daemon, vm_id, size_gib=1)
    lost_nic, kept_nic = new_id(), new_id()
    for nic_id in (lost_nic, kept_nic):
        await daemon.servicer.AttachNIC(pb.AttachNICRequest(vm_id=vm_id, nic=pb.NicSpec(id=nic_id, bridge="br0")), None)
    await daemon.servicer.DetachDisk(pb.DetachDiskRequest(vm_id=vm_id, disk_id=data.disk_id), None)
    request = pb.SettleDevicesRequest(
        vm_id=vm_id,
        disks=[
            pb.DiskSpec(id=boot.disk_id, size_gib=1, io_limits=pb.DiskIoLimits(read_iops=5)),
            pb.DiskSpec(id=data.disk_id, size_gib=9),
        ],
        nics=[pb.NicSpec(id=kept_nic, bridge="br0", link_down=True)],
        unwanted_disk_ids=[unwanted, boot.disk_id],
    )
    for _ in range(2):
        await daemon.servicer.SettleDevices(request, None)
        found = await devices_of(daemon, vm_id)
        assert {disk.disk_id: disk.limits.read_iops for disk in found.disks} == {boot.disk_id: 5, data.disk_id: 0}
        assert [(nic.config.nic_id, nic.config.is_link_up) for nic in found.nics] == [(kept_nic, False)]
        assert images_of(daemon, vm_id) == {boot.path.name, data.path.name}
    assert virtual_size(data.path) == GIB, "a settlement neither makes nor grows images"
