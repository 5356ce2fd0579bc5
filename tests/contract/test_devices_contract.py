"""The rules of `hypervisor.devices`, checked on every backend; what a guest makes of its devices is seen elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from hypervisor.base import Hypervisor
from hypervisor.devices import Devices, VmDevices
from hypervisor.errors import (
    DeviceExists,
    DeviceNotFound,
    GuestDidNotRelease,
    Refused,
    VmExists,
    VmNotFound,
    WrongState,
)
from hypervisor.types import (
    CdromConfig,
    DiskBus,
    DiskCache,
    DiskConfig,
    DiskFormat,
    IoLimits,
    NicBandwidth,
    NicConfig,
    NicModel,
    VmConfig,
)
from tests.contract.conftest import BackendHost

ABSENT = str(uuid.uuid4())
DISK_BYTES = 2**20


@pytest.fixture
def devices(backend: Hypervisor) -> Devices:
    """The backend's power over devices."""
    assert backend.devices is not None
    return backend.devices


@pytest.fixture
async def off(backend: Hypervisor, host: BackendHost) -> VmConfig:
    """A VM that is off."""
    config = host.config()
    await backend.create(config)
    return config


@pytest.fixture
async def deaf(backend: Hypervisor, host: BackendHost) -> VmConfig:
    """A VM that runs, whose guest lets go of nothing."""
    config = host.config(deaf=True)
    await backend.create(config)
    await backend.start(config.vm_id)
    return config


def new_disk(directory: Path, bus: DiskBus = DiskBus.VIRTIO, size_bytes: int = DISK_BYTES) -> DiskConfig:
    disk_id = str(uuid.uuid4())
    path = directory / f"{disk_id}.raw"
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return DiskConfig(disk_id, path, DiskFormat.RAW, bus, DiskCache.WRITEBACK)


def new_nic(model: NicModel = NicModel.VIRTIO) -> NicConfig:
    tail = ":".join(f"{byte:02x}" for byte in uuid.uuid4().bytes[:3])
    return NicConfig(str(uuid.uuid4()), f"52:54:00:{tail}", model)


def disk_of(found: VmDevices, disk_id: str) -> DiskConfig | None:
    return next((disk for disk in found.disks if disk.disk_id == disk_id), None)


async def test_devices_given_at_creation_are_listed_as_they_were_given(
    backend: Hypervisor, host: BackendHost, devices: Devices, tmp_path: Path
) -> None:
    disks = (
        replace(new_disk(tmp_path), limits=IoLimits(write_bytes_s=2**20, burst_bytes_s=2**21, burst_duration_s=3)),
        replace(new_disk(tmp_path, DiskBus.SCSI), readonly=True, discard=True, cache=DiskCache.WRITETHROUGH),
    )
    cdroms = (CdromConfig(str(uuid.uuid4()), disks[0].path), CdromConfig(str(uuid.uuid4()), bus=DiskBus.SCSI))
    nics = (
        replace(new_nic(NicModel.E1000), is_link_up=False),
        replace(new_nic(), bridge="br0", bandwidth=NicBandwidth(1_000, 0, 65_536)),
    )
    config = replace(host.config(), disks=disks, cdroms=cdroms, nics=nics)
    await backend.create(config)
    found = await devices.list(config.vm_id)
    assert ({*found.disks}, {*found.cdroms}) == ({*disks}, {*cdroms})
    assert {nic.config for nic in found.nics} == {*nics}
    await devices.update_nic(config.vm_id, replace(nics[0], is_link_up=True))
    found = await devices.list(config.vm_id)
    assert {nic.config for nic in found.nics} == {replace(nics[0], is_link_up=True), nics[1]}


async def test_disk_attached_to_a_vm_that_is_off_is_listed_and_there_after_a_restart_of_the_daemon(
    backend: Hypervisor, host: BackendHost, devices: Devices, off: VmConfig, tmp_path: Path
) -> None:
    disks = [new_disk(tmp_path, bus) for bus in (DiskBus.VIRTIO, DiskBus.SCSI, DiskBus.SATA, DiskBus.SCSI)]
    for disk in disks:
        await devices.attach_disk(off.vm_id, disk)
    await backend.close()
    again = host.connect()
    await again.open()
    assert again.devices is not None
    found = await again.devices.list(off.vm_id)
    await again.close()
    await backend.open()
    assert [disk_of(found, disk.disk_id) for disk in disks] == disks
    assert len(found.disks) == len(off.disks) + len(disks)


async def test_disk_attached_while_running_is_listed_then_and_after_a_stop(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    disks = [new_disk(tmp_path), new_disk(tmp_path, DiskBus.SCSI), new_disk(tmp_path)]
    for disk in disks:
        await devices.attach_disk(deaf.vm_id, disk)
    running = await devices.list(deaf.vm_id)
    await backend.force_stop(deaf.vm_id)
    stopped = await devices.list(deaf.vm_id)
    await backend.start(deaf.vm_id)
    assert [disk_of(running, disk.disk_id) for disk in disks] == disks
    assert {disk.disk_id for disk in stopped.disks} == {disk.disk_id for disk in running.disks}


async def test_disk_attached_after_one_in_the_middle_was_detached_disturbs_no_other(
    devices: Devices, off: VmConfig, tmp_path: Path
) -> None:
    first, middle, last, new = (new_disk(tmp_path) for _ in range(4))
    for disk in (first, middle, last):
        await devices.attach_disk(off.vm_id, disk)
    await devices.detach_disk(off.vm_id, middle.disk_id)
    await devices.attach_disk(off.vm_id, new)
    found = await devices.list(off.vm_id)
    assert [disk_of(found, disk.disk_id) for disk in (first, middle, last, new)] == [first, None, last, new]


async def test_attach_and_detach_of_a_disk_may_be_repeated(devices: Devices, deaf: VmConfig, tmp_path: Path) -> None:
    disk = new_disk(tmp_path)
    await devices.attach_disk(deaf.vm_id, disk)
    await devices.attach_disk(deaf.vm_id, disk)
    assert len((await devices.list(deaf.vm_id)).disks) == len(deaf.disks) + 1
    await devices.detach_disk(deaf.vm_id, ABSENT)
    with pytest.raises(DeviceExists, match=disk.disk_id):
        await devices.attach_disk(deaf.vm_id, replace(disk, path=new_disk(tmp_path).path))


async def test_attaches_that_race_all_get_a_place_of_their_own(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    disks = [new_disk(tmp_path, bus) for bus in (DiskBus.VIRTIO, DiskBus.SCSI) * 3]
    await asyncio.gather(*(devices.attach_disk(deaf.vm_id, disk) for disk in disks))
    found = await devices.list(deaf.vm_id)
    assert {disk.disk_id for disk in found.disks} == {disk.disk_id for disk in (*deaf.disks, *disks)}
    await backend.force_stop(deaf.vm_id)
    await backend.start(deaf.vm_id)
    assert len((await devices.list(deaf.vm_id)).disks) == len(found.disks)


async def test_attach_of_a_sata_disk_to_a_running_vm_is_refused(
    devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    with pytest.raises(WrongState, match="SATA"):
        await devices.attach_disk(deaf.vm_id, new_disk(tmp_path, DiskBus.SATA))
    assert len((await devices.list(deaf.vm_id)).disks) == len(deaf.disks)


async def test_detach_from_a_guest_that_does_not_let_go_fails_and_leaves_the_device(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    disk, nic = new_disk(tmp_path), new_nic()
    await devices.attach_disk(deaf.vm_id, disk)
    await devices.attach_nic(deaf.vm_id, nic)
    with pytest.raises(GuestDidNotRelease):
        await devices.detach_disk(deaf.vm_id, disk.disk_id, timeout_s=0.2)
    with pytest.raises(GuestDidNotRelease):
        await devices.detach_disk(deaf.vm_id, disk.disk_id, timeout_s=0.2)
    with pytest.raises(GuestDidNotRelease):
        await devices.detach_nic(deaf.vm_id, nic.nic_id, timeout_s=0.2)
    await backend.force_stop(deaf.vm_id)
    found = await devices.list(deaf.vm_id)
    assert disk_of(found, disk.disk_id) == disk
    assert [card.config.nic_id for card in found.nics] == [nic.nic_id]


async def test_detach_by_force_takes_the_disk_out_of_the_definition(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    disk = new_disk(tmp_path)
    await devices.attach_disk(deaf.vm_id, disk)
    await devices.detach_disk(deaf.vm_id, disk.disk_id, timeout_s=0.2, force=True)
    await backend.force_stop(deaf.vm_id)
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) is None


async def test_detach_from_a_paused_vm_is_refused(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    disk = new_disk(tmp_path)
    await devices.attach_disk(deaf.vm_id, disk)
    await backend.pause(deaf.vm_id)
    with pytest.raises(WrongState, match="paused"):
        await devices.detach_disk(deaf.vm_id, disk.disk_id)
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) == disk


async def test_detach_of_the_boot_disk_of_a_running_vm_is_refused(
    backend: Hypervisor, host: BackendHost, devices: Devices, tmp_path: Path
) -> None:
    plain = host.config()
    config = replace(plain, disks=plain.disks or (new_disk(tmp_path),))
    await backend.create(config)
    await backend.start(config.vm_id)
    with pytest.raises(WrongState, match="boot disk"):
        await devices.detach_disk(config.vm_id, config.disks[0].disk_id)
    await backend.force_stop(config.vm_id)
    await devices.detach_disk(config.vm_id, config.disks[0].disk_id)
    assert (await devices.list(config.vm_id)).disks == ()


async def test_change_of_the_devices_of_a_saved_vm_is_refused(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    await backend.suspend(deaf.vm_id)
    with pytest.raises(WrongState, match="suspended"):
        await devices.attach_disk(deaf.vm_id, new_disk(tmp_path))
    with pytest.raises(WrongState, match="suspended"):
        await devices.attach_nic(deaf.vm_id, new_nic())


async def test_create_with_the_configuration_from_before_an_attach_is_refused(
    backend: Hypervisor, devices: Devices, off: VmConfig, tmp_path: Path
) -> None:
    await devices.attach_disk(off.vm_id, new_disk(tmp_path))
    with pytest.raises(VmExists):
        await backend.create(off)
    assert (await backend.status(off.vm_id)).is_managed


async def test_limits_of_a_disk_are_replaced_and_kept_over_a_restart(
    backend: Hypervisor, devices: Devices, deaf: VmConfig, tmp_path: Path
) -> None:
    limits = IoLimits(read_iops=100, write_iops=50, total_bytes_s=10 * 2**20, burst_iops=400, burst_duration_s=5)
    disk = dataclasses.replace(new_disk(tmp_path), limits=limits)
    await devices.attach_disk(deaf.vm_id, disk)
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) == disk
    others = IoLimits(total_iops=70, read_bytes_s=2**20)
    await devices.limit_disk(deaf.vm_id, disk.disk_id, others)
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) == replace(disk, limits=others)
    await backend.force_stop(deaf.vm_id)
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) == replace(disk, limits=others)
    await devices.limit_disk(deaf.vm_id, disk.disk_id, IoLimits())
    assert disk_of(await devices.list(deaf.vm_id), disk.disk_id) == replace(disk, limits=IoLimits())


async def test_resize_leaves_the_image_to_the_caller_where_no_process_uses_it(
    devices: Devices, off: VmConfig, tmp_path: Path
) -> None:
    disk = new_disk(tmp_path)
    await devices.attach_disk(off.vm_id, disk)
    assert not await devices.resize_disk(off.vm_id, disk.disk_id, 2 * DISK_BYTES)
    with pytest.raises(DeviceNotFound, match=ABSENT):
        await devices.resize_disk(off.vm_id, ABSENT, 2 * DISK_BYTES)


async def test_cdrom_drive_comes_goes_and_changes_its_medium(
    backend: Hypervisor, devices: Devices, off: VmConfig, tmp_path: Path
) -> None:
    iso = new_disk(tmp_path).path
    drive = CdromConfig(str(uuid.uuid4()))
    await devices.attach_cdrom(off.vm_id, drive)
    await devices.attach_cdrom(off.vm_id, drive)
    assert (await devices.list(off.vm_id)).cdroms == (drive,)
    await backend.start(off.vm_id)
    for medium in (iso, iso, None, None, iso):
        await devices.change_medium(off.vm_id, drive.cdrom_id, medium)
        assert (await devices.list(off.vm_id)).cdroms == (replace(drive, iso_path=medium),)
    with pytest.raises(WrongState, match="running"):
        await devices.detach_cdrom(off.vm_id, drive.cdrom_id)
    with pytest.raises(WrongState, match="running"):
        await devices.attach_cdrom(off.vm_id, CdromConfig(str(uuid.uuid4())))
    await backend.force_stop(off.vm_id)
    assert (await devices.list(off.vm_id)).cdroms == (replace(drive, iso_path=iso),)
    await devices.detach_cdrom(off.vm_id, drive.cdrom_id)
    await devices.detach_cdrom(off.vm_id, drive.cdrom_id)
    assert (await devices.list(off.vm_id)).cdroms == ()
    with pytest.raises(DeviceNotFound):
        await devices.change_medium(off.vm_id, drive.cdrom_id, iso)


async def test_network_card_is_attached_running_or_not_and_its_link_goes_down_and_up(
    backend: Hypervisor, devices: Devices, deaf: VmConfig
) -> None:
    nic = new_nic()
    await devices.attach_nic(deaf.vm_id, nic)
    await devices.attach_nic(deaf.vm_id, nic)
    for wanted in (replace(nic, is_link_up=False, bandwidth=NicBandwidth(1_000_000, 500_000, 65_536)), nic):
        await devices.update_nic(deaf.vm_id, wanted)
        assert [card.config for card in (await devices.list(deaf.vm_id)).nics] == [wanted]
    down = replace(nic, is_link_up=False)
    await devices.update_nic(deaf.vm_id, down)
    await backend.force_stop(deaf.vm_id)
    assert [card.config for card in (await devices.list(deaf.vm_id)).nics] == [down]
    await devices.detach_nic(deaf.vm_id, nic.nic_id)
    await devices.detach_nic(deaf.vm_id, nic.nic_id)
    assert (await devices.list(deaf.vm_id)).nics == ()


async def test_network_card_that_does_not_fit_is_refused(devices: Devices, deaf: VmConfig) -> None:
    nic = new_nic()
    await devices.attach_nic(deaf.vm_id, nic)
    with pytest.raises(DeviceExists, match=nic.mac_address):
        await devices.attach_nic(deaf.vm_id, replace(new_nic(), mac_address=nic.mac_address))
    with pytest.raises(DeviceExists, match=nic.nic_id):
        await devices.attach_nic(deaf.vm_id, replace(new_nic(), nic_id=nic.nic_id))
    with pytest.raises(WrongState, match="RTL8139"):
        await devices.attach_nic(deaf.vm_id, new_nic(NicModel.RTL8139))
    with pytest.raises(Refused, match="both a bridge and a network"):
        await devices.attach_nic(deaf.vm_id, replace(new_nic(), bridge="br0", network="default"))
    assert len((await devices.list(deaf.vm_id)).nics) == 1


async def test_devices_of_an_absent_vm_are_not_found(devices: Devices, tmp_path: Path) -> None:
    with pytest.raises(VmNotFound):
        await devices.list(ABSENT)
    with pytest.raises(VmNotFound):
        await devices.attach_disk(ABSENT, new_disk(tmp_path))
    with pytest.raises(VmNotFound):
        await devices.detach_nic(ABSENT, ABSENT)


async def test_devices_of_a_vm_of_another_tool_are_attached_and_listed(
    devices: Devices, host: BackendHost, tmp_path: Path
) -> None:
    vm_id = await host.define_unmanaged()
    disk = new_disk(tmp_path)
    await devices.attach_disk(vm_id, disk)
    assert (await devices.list(vm_id)).disks == (disk,)
