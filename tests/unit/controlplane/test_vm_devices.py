"""Changes of a VM's devices: the spec says what the host has, whatever the host answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.message import Message

from controlplane.domain.event import EventFilter
from controlplane.domain.query import Page
from controlplane.domain.vm import Vm
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import (
    CdromDevice,
    CpuConfig,
    DiskDevice,
    IoLimits,
    MemoryConfig,
    NetworkInterface,
    NetworkQos,
    VirtualMachine,
    VmSpec,
)
from limiquantix.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
)
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id
from tests.support.control_plane_world import World, create_request
from tests.support.fake_daemons import PAUSED, SUSPENDED, unreachable

BOOT_ID, DATA_ID, DRIVE_ID, NIC_ID = (make_id() for _ in range(4))
MAC = "52:54:00:12:34:56"


@pytest.fixture
async def vm(world: World) -> Vm:
    """A VM with two disks, a drive and a card, which runs."""
    await world.add_node(vcpus=16)
    spec = VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=64),
        disks=[DiskDevice(id=BOOT_ID, size_gib=1), DiskDevice(id=DATA_ID, size_gib=2)],
        cdroms=[CdromDevice(id=DRIVE_ID)],
        nics=[NetworkInterface(id=NIC_ID, mac_address=MAC, bridge="br0")],
    )
    return await world.vms.create(create_request(spec=spec, start=True))


def on_host(world: World, vm: Vm) -> node_v1.VMSpec:
    return world.host_of(vm).vms[vm.id].spec


def ids(devices: Any) -> list[str]:
    return [device.id for device in devices]


async def ask(world: World, vm: Vm, method: str, request: type[Message], **fields: Any) -> VirtualMachine:
    answer = await getattr(world.devices, method)(request(vm_id=vm.id, **fields))
    assert isinstance(answer, VirtualMachine)
    return answer


async def attach_disk(world: World, vm: Vm, **disk: Any) -> VirtualMachine:
    return await ask(world, vm, "attach_disk", api.AttachDiskRequest, disk=DiskDevice(**disk))


async def detach_disk(world: World, vm: Vm, disk_id: str, *, force: bool = False) -> VirtualMachine:
    return await ask(world, vm, "detach_disk", api.DetachDiskRequest, disk_id=disk_id, force=force)


async def attach_nic(world: World, vm: Vm, **nic: Any) -> VirtualMachine:
    return await ask(world, vm, "attach_nic", api.AttachNICRequest, nic=NetworkInterface(**nic))


async def event_types(world: World, vm: Vm) -> list[str]:

    found = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 100))
    return [str(logged.event.type) for logged in found]


async def test_fault_14_disks_and_cards_come_and_go_on_the_host_and_in_the_spec_alike(world: World, vm: Vm) -> None:
    after = await attach_disk(world, vm, size_gib=5, bus=DiskDevice.VIRTIO_SCSI, io_limits=IoLimits(read_iops=10))
    disk = after.spec.disks[2]
    assert ids(on_host(world, vm).disks) == [BOOT_ID, DATA_ID, disk.id]
    assert on_host(world, vm).disks[2].io_limits.read_iops == 10

    after = await detach_disk(world, vm, DATA_ID)
    assert ids(after.spec.disks) == ids(on_host(world, vm).disks) == [BOOT_ID, disk.id]

    after = await attach_nic(world, vm, model=NetworkInterface.E1000E)
    nic = after.spec.nics[1]
    assert nic.mac_address.startswith("52:54:00:")
    assert on_host(world, vm).nics[1].mac_address == nic.mac_address
    after = await ask(world, vm, "detach_nic", api.DetachNICRequest, nic_id=NIC_ID)
    assert ids(after.spec.nics) == ids(on_host(world, vm).nics) == [nic.id]
    types = await event_types(world, vm)
    for each in ("vm.disk_attached", "vm.disk_detached", "vm.nic_attached", "vm.nic_detached"):
        assert each in types


async def test_fault_14_guest_that_keeps_a_disk_is_a_failure_and_the_spec_keeps_it_too(world: World, vm: Vm) -> None:
    kept = FailedPrecondition(Reason.GUEST_DID_NOT_RELEASE, "the guest still has it")
    world.host_of(vm).fail("detach_disk", kept)
    with pytest.raises(FailedPrecondition) as caught:
        await detach_disk(world, vm, DATA_ID)
    assert caught.value.reason == Reason.GUEST_DID_NOT_RELEASE
    after = await world.stored(vm.id)
    assert after is not None
    assert ids(after.spec.disks) == ids(on_host(world, vm).disks) == [BOOT_ID, DATA_ID]
    assert "still has it" in after.error_message


async def test_change_of_sizes_limits_links_and_media_reaches_host_and_spec(world: World, vm: Vm) -> None:
    await ask(world, vm, "resize_disk", api.ResizeDiskRequest, disk_id=DATA_ID, new_size_gib=7)
    await ask(world, vm, "update_disk", api.UpdateDiskRequest, disk_id=DATA_ID, io_limits=IoLimits(write_iops=3))
    qos = NetworkQos(ingress_rate_mbps=8, burst_kb=4)
    await ask(world, vm, "update_nic", api.UpdateNICRequest, nic_id=NIC_ID, link_down=True, qos=qos)
    after = await ask(world, vm, "mount_iso", api.MountISORequest, cdrom_id=DRIVE_ID, iso_path="iso/a.iso")
    host = on_host(world, vm)
    assert (after.spec.disks[1].size_gib, host.disks[1].size_gib) == (7, 7)
    assert (after.spec.disks[1].io_limits.write_iops, host.disks[1].io_limits.write_iops) == (3, 3)
    assert (after.spec.nics[0].link_down, host.nics[0].link_down) == (True, True)
    assert (after.spec.nics[0].qos, host.nics[0].bandwidth.to_guest_kbps) == (qos, 8000)
    assert (after.spec.cdroms[0].iso_path, host.cdroms[0].iso_path) == ("iso/a.iso", "iso/a.iso")

    await ask(world, vm, "update_nic", api.UpdateNICRequest, nic_id=NIC_ID, link_down=False)
    after = await ask(world, vm, "update_nic", api.UpdateNICRequest, nic_id=NIC_ID, qos=NetworkQos())
    assert not after.spec.nics[0].link_down
    assert not after.spec.nics[0].HasField("qos")
    after = await ask(world, vm, "eject_iso", api.EjectISORequest, cdrom_id=DRIVE_ID)
    assert (after.spec.cdroms[0].iso_path, host.cdroms[0].iso_path) == ("", "")


async def test_drives_come_and_go_while_the_vm_is_off(world: World, vm: Vm) -> None:
    for method, fields in (("attach_cdrom", {}), ("detach_cdrom", {"cdrom_id": DRIVE_ID})):
        request = api.AttachCDROMRequest if method == "attach_cdrom" else api.DetachCDROMRequest
        with pytest.raises(FailedPrecondition) as caught:
            await ask(world, vm, method, request, **fields)
        assert caught.value.reason == Reason.VM_STATE_FORBIDS
    await world.vms.stop(api.StopVMRequest(id=vm.id, force=True))
    after = await ask(world, vm, "attach_cdrom", api.AttachCDROMRequest, bus=CdromDevice.VIRTIO_SCSI)
    assert on_host(world, vm).cdroms[1].bus == node_v1.CDROM_BUS_SCSI
    after = await ask(world, vm, "detach_cdrom", api.DetachCDROMRequest, cdrom_id=DRIVE_ID)
    assert ids(after.spec.cdroms) == ids(on_host(world, vm).cdroms)
    assert len(after.spec.cdroms) == 1


@pytest.mark.parametrize("state", [SUSPENDED, PAUSED])
async def test_detach_while_the_guest_cannot_let_go_is_refused(world: World, vm: Vm, state: Any) -> None:
    if state == PAUSED:
        await world.vms.pause(vm.id)
    else:
        await world.vms.suspend(vm.id)
    with pytest.raises(FailedPrecondition) as caught:
        await detach_disk(world, vm, DATA_ID)
    assert caught.value.reason == Reason.VM_STATE_FORBIDS
    assert "detach_disk" not in world.host_of(vm).methods(vm.id)


async def test_what_does_not_fit_the_vm_is_refused_before_the_host_is_asked(world: World, vm: Vm) -> None:
    with pytest.raises(FailedPrecondition, match="SATA"):
        await attach_disk(world, vm, size_gib=1, bus=DiskDevice.SATA)
    with pytest.raises(AlreadyExists) as caught:
        await attach_disk(world, vm, id=DATA_ID, size_gib=1)
    assert caught.value.reason == Reason.DEVICE_EXISTS
    with pytest.raises(InvalidArgument, match="smaller"):
        await ask(world, vm, "resize_disk", api.ResizeDiskRequest, disk_id=DATA_ID, new_size_gib=1)
    with pytest.raises(FailedPrecondition, match="E1000"):
        await attach_nic(world, vm, model=NetworkInterface.E1000)
    for method, request, fields in (
        ("detach_disk", api.DetachDiskRequest, {"disk_id": make_id()}),
        ("resize_disk", api.ResizeDiskRequest, {"disk_id": make_id(), "new_size_gib": 9}),
        ("update_disk", api.UpdateDiskRequest, {"disk_id": make_id()}),
        ("detach_nic", api.DetachNICRequest, {"nic_id": make_id()}),
        ("update_nic", api.UpdateNICRequest, {"nic_id": make_id()}),
        ("eject_iso", api.EjectISORequest, {"cdrom_id": make_id()}),
    ):
        with pytest.raises(NotFound) as absent:
            await ask(world, vm, method, request, **fields)
        assert absent.value.reason == Reason.DEVICE_NOT_FOUND
    assert ids(on_host(world, vm).disks) == [BOOT_ID, DATA_ID]


async def test_bandwidth_of_a_card_behind_nat_is_refused_by_field(world: World, vm: Vm) -> None:
    nat = (await attach_nic(world, vm)).spec.nics[1]
    qos = NetworkQos(egress_rate_mbps=5)
    with pytest.raises(InvalidArgument) as caught:
        await ask(world, vm, "update_nic", api.UpdateNICRequest, nic_id=nat.id, qos=qos)
    assert [violation.field for violation in caught.value.violations] == ["qos"]


async def test_most_drives_are_counted(world: World, vm: Vm) -> None:
    await world.vms.stop(api.StopVMRequest(id=vm.id, force=True))
    for _ in range(3):
        await ask(world, vm, "attach_cdrom", api.AttachCDROMRequest)
    with pytest.raises(ResourceExhausted) as caught:
        await ask(world, vm, "attach_cdrom", api.AttachCDROMRequest)
    assert caught.value.reason == Reason.TOO_MANY_DEVICES


async def test_refused_attach_leaves_the_vm_as_it_was_and_names_the_callers_field(world: World, vm: Vm) -> None:

    refusal = InvalidArgument.from_violations([FieldViolation("disk.discard", "no")])
    world.host_of(vm).fail("attach_disk", refusal)
    with pytest.raises(InvalidArgument) as caught:
        await attach_disk(world, vm, size_gib=1)
    assert [violation.field for violation in caught.value.violations] == ["disk.discard_enabled"]
    after = await world.stored(vm.id)
    assert after is not None
    assert ids(after.spec.disks) == [BOOT_ID, DATA_ID]
    assert world.host_of(vm).methods(vm.id)[-1] == "detach_disk"


async def test_undone_attach_deletes_only_an_image_that_was_made_for_it(world: World, vm: Vm) -> None:
    seen: list[bool] = []
    host = world.host_of(vm)
    original = host.detach_disk

    async def note(request: node_v1.DetachDiskRequest) -> None:
        seen.append(request.delete_image)
        await original(request)

    host.detach_disk = note  # type: ignore[method-assign]
    host.fail("attach_disk", unreachable(), after_acting=True)
    for fields in ({}, {"id": make_id()}):
        with pytest.raises(Exception, match="cannot be reached"):
            await attach_disk(world, vm, size_gib=1, **fields)
    assert seen == [True, False]
    assert ids(on_host(world, vm).disks) == [BOOT_ID, DATA_ID]


async def test_host_that_is_gone_is_told_what_the_devices_are_when_it_reports_again(world: World, vm: Vm) -> None:
    host = world.host_of(vm)
    host.fail("attach_disk", unreachable(), after_acting=True)
    host.fail("detach_disk", unreachable())
    with pytest.raises(Exception, match="cannot be reached"):
        await attach_disk(world, vm, size_gib=1)
    doubted = await world.stored(vm.id)
    assert doubted is not None
    assert ids(doubted.spec.disks) == [BOOT_ID, DATA_ID]
    assert len(on_host(world, vm).disks) == 3
    assert list(doubted.details.devices_in_doubt) == list(doubted.details.unwanted_disks)
    host.heal()
    await world.report_everything(vm.node_id)
    await world.settle()
    settled = await world.stored(vm.id)
    assert settled is not None
    assert not settled.details.devices_in_doubt
    assert ids(on_host(world, vm).disks) == [BOOT_ID, DATA_ID]
    await world.report_everything(vm.node_id)
    await world.settle()
    assert host.methods(vm.id).count("settle_devices") == 1


async def test_mac_address_of_another_vm_is_refused_by_create_and_attach_and_free_after_a_detach(
    world: World, vm: Vm
) -> None:
    spec = VmSpec(
        cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=64), nics=[NetworkInterface(mac_address=MAC.upper())]
    )
    with pytest.raises(AlreadyExists) as caught:
        await world.vms.create(create_request("other", spec=spec))
    assert (caught.value.reason, caught.value.metadata["vm_id"]) == (Reason.MAC_TAKEN, vm.id)
    other = await world.vms.create(create_request("third"))
    with pytest.raises(AlreadyExists) as attached:
        await attach_nic(world, other, mac_address=MAC)
    assert attached.value.metadata["vm_id"] == vm.id
    await ask(world, vm, "detach_nic", api.DetachNICRequest, nic_id=NIC_ID)
    after = await attach_nic(world, other, mac_address=MAC)
    assert after.spec.nics[0].mac_address == MAC
    await world.vms.delete(api.DeleteVMRequest(id=other.id, force=True))
    assert (await attach_nic(world, vm, mac_address=MAC)).spec.nics[0].mac_address == MAC


async def test_one_mac_address_asked_for_by_many_at_once_goes_to_one(world: World) -> None:
    await world.add_node(vcpus=16)
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=64), nics=[NetworkInterface(mac_address=MAC)])
    asked = [world.vms.create(create_request(f"vm-{number}", spec=spec)) for number in range(6)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AlreadyExists)]
    made = [answer for answer in answers if isinstance(answer, Vm)]
    assert (len(made), len(refused)) == (1, 5)
    assert {error.reason for error in refused} == {Reason.MAC_TAKEN}
    page: Page[Vm] = await world.vms.list(api.ListVMsRequest())
    assert len(page.items) == 1
