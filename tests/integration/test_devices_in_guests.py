"""What a real Linux guest makes of devices that come, change and go while it runs. One boot serves all tests."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from hypervisor.base import Hypervisor
from hypervisor.devices import Devices
from hypervisor.errors import GuestDidNotRelease, Refused
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.types import (
    Accelerator,
    CdromConfig,
    DiskBus,
    DiskCache,
    DiskConfig,
    DiskFormat,
    IoLimits,
    NicBandwidth,
    NicConfig,
    PowerState,
)
from nodedaemon.nic_bandwidth import NicBandwidths
from tests.support.linux_guest import LinuxGuest, linux_config
from tests.support.private_libvirt_host import eventually, leave_out, private_libvirt, skip_unless_private_libvirt

MIB = 2**20
SUBNET = f"10.231.{uuid.uuid4().int % 254 + 1}"
"""Another one each time: a run that was cut short may have left its bridge."""
DRIVE = CdromConfig(str(uuid.uuid4()), bus=DiskBus.SCSI)
"""On SCSI: the kernel of this guest is made for VMs and has no driver for SATA."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hypervisor]:
    directory = tmp_path_factory.mktemp("devices")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory / "libvirt") as libvirt:
        settings = HypervisorSettings(
            Backend.LIBVIRT,
            libvirt_uri=libvirt.uri,
            console_log_dir=directory / "console",
            accelerator=Accelerator.TCG,
        )
        backend = create_hypervisor(settings)
        await backend.open()
        yield backend
        for vm in await backend.list():
            await backend.force_stop(vm.vm_id)
            await backend.delete(vm.vm_id)
        await backend.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm_id(hypervisor: Hypervisor) -> str:
    config = replace(await linux_config(), cdroms=(DRIVE,))
    await hypervisor.create(config)
    return config.vm_id


@pytest_asyncio.fixture(loop_scope="module")
async def guest(hypervisor: Hypervisor, vm_id: str) -> LinuxGuest:
    """The guest, with nothing but its drive."""
    devices = devices_of(hypervisor)
    if (await hypervisor.status(vm_id)).state is not PowerState.RUNNING:
        await hypervisor.start(vm_id)
    guest = LinuxGuest(hypervisor, vm_id)
    await guest.wait_until_up()
    await guest.run("umount /mnt/* /mnt 2>/dev/null; load-more; echo on")
    found = await devices.list(vm_id)
    for disk in found.disks:
        await devices.detach_disk(vm_id, disk.disk_id)
    for nic in found.nics:
        await devices.detach_nic(vm_id, nic.config.nic_id)
    return guest


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge with the first address of `SUBNET`, of this test alone."""
    if shutil.which("tc") is None:
        leave_out("tc (package iproute2) is not installed")
    name = f"lqt{uuid.uuid4().hex[:8]}"
    run("ip", "link", "add", name, "type", "bridge")
    try:
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", name)
        run("ip", "link", "set", name, "up")
        yield name
    finally:
        run("ip", "link", "del", name)


def devices_of(hypervisor: Hypervisor) -> Devices:
    assert hypervisor.devices is not None
    return hypervisor.devices


def new_disk(directory: Path, bus: DiskBus) -> DiskConfig:
    disk_id = str(uuid.uuid4())
    path = directory / f"{disk_id}.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(64 * MIB))
    return DiskConfig(disk_id, path, DiskFormat.QCOW2, bus, DiskCache.WRITEBACK, discard=True)


def new_iso(directory: Path, number: int) -> Path:
    """Make a medium with one file that holds its number."""
    content, path = directory / f"content{number}", directory / f"{number}.iso"
    content.mkdir()
    (content / "hello.txt").write_text(f"medium {number}\n")
    run("genisoimage", "-quiet", "-o", path, content)
    return path


def run(program: str, *words: str | Path) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([found, *words], check=True, timeout=120)


def name_in_guest(disk: DiskConfig) -> str:
    """A shell word for the name that the guest gave a disk, found by its serial number."""
    serial = disk.disk_id.replace("-", "")[:20]
    if disk.bus is DiskBus.VIRTIO:
        return f"$(grep -l {serial} /sys/block/vd*/serial | cut -d/ -f4)"
    return f"$(grep -l {serial} /sys/block/sd*/device/vpd_pg80 | cut -d/ -f4)"


async def test_guest_uses_disks_that_come_grow_and_go(
    hypervisor: Hypervisor, guest: LinuxGuest, tmp_path: Path
) -> None:
    devices, vm_id = devices_of(hypervisor), guest.vm_id
    disks = [new_disk(tmp_path, bus) for bus in (DiskBus.VIRTIO, DiskBus.SCSI, DiskBus.VIRTIO)]
    for disk in disks:
        await devices.attach_disk(vm_id, disk)
        await guest.until(f'test -n "{name_in_guest(disk)}" -a -b /dev/{name_in_guest(disk)}', f"a {disk.bus} disk")
    for disk in disks[:2]:
        await guest.run(
            f"name={name_in_guest(disk)}; mke2fs -q /dev/$name && mkdir -p /mnt/$name && "
            f"mount -t ext4 /dev/$name /mnt/$name && echo {disk.disk_id} >/mnt/$name/data && sync"
        )

    for disk in disks[:2]:
        assert await devices.resize_disk(vm_id, disk.disk_id, 96 * MIB)
        assert await devices.resize_disk(vm_id, disk.disk_id, 96 * MIB)
        if disk.bus is DiskBus.SCSI:
            await guest.run(f"echo 1 >/sys/block/{name_in_guest(disk)}/device/rescan")
        sectors = 96 * MIB // 512
        await guest.until(f"test $(cat /sys/block/{name_in_guest(disk)}/size) = {sectors}", "the new size")

    middle = disks[0]
    gone_name = await guest.run(f"echo {name_in_guest(middle)}")
    await guest.run(f"umount /mnt/{gone_name}")
    await devices.detach_disk(vm_id, middle.disk_id)
    await guest.until(f"test ! -e /sys/block/{gone_name}", "the end of the detached disk")
    await devices.detach_disk(vm_id, middle.disk_id)
    assert {disk.disk_id for disk in (await devices.list(vm_id)).disks} == {disks[1].disk_id, disks[2].disk_id}
    assert await guest.run(f"cat /mnt/{name_in_guest(disks[1])}/data") == disks[1].disk_id

    await devices.attach_disk(vm_id, replace(middle, limits=IoLimits(write_bytes_s=MIB, write_iops=1000)))
    await guest.until(f"test -b /dev/{name_in_guest(middle)}", "the disk to be back")
    kept = await guest.run(f"mount -t ext4 /dev/{name_in_guest(middle)} /mnt/{gone_name} && cat /mnt/{gone_name}/data")
    assert kept == middle.disk_id
    # 6 MiB at 1 MiB/s, and what a bucket lets through at once.
    took_s = await guest.run(
        f"s=$(cut -d. -f1 /proc/uptime); dd if=/dev/zero of=/dev/{name_in_guest(middle)} bs=1M seek=64 count=6 "
        "oflag=direct conv=notrunc 2>/dev/null; e=$(cut -d. -f1 /proc/uptime); echo $((e - s))"
    )
    assert int(took_s) >= 4
    assert len((await devices.list(vm_id)).disks) == 3


async def test_guest_sees_cards_links_and_media_come_and_go(
    hypervisor: Hypervisor, guest: LinuxGuest, tmp_path: Path
) -> None:
    devices, vm_id = devices_of(hypervisor), guest.vm_id
    nic = NicConfig(str(uuid.uuid4()), "52:54:00:aa:bb:01")
    await devices.attach_nic(vm_id, nic)
    await guest.until("grep -q 52:54:00:aa:bb:01 /sys/class/net/eth0/address", "the card")
    await guest.run("ip link set eth0 up")
    await guest.until("grep -q 1 /sys/class/net/eth0/carrier", "the link")
    await guest.run("udhcpc -q -n -i eth0 -s /sbin/dhcp-event && ip -4 addr show eth0 | grep -q 'inet 10.0.2.'")
    await devices.update_nic(vm_id, replace(nic, is_link_up=False))
    await guest.until("grep -q 0 /sys/class/net/eth0/carrier", "the link to go")
    await devices.update_nic(vm_id, nic)
    await guest.until("grep -q 1 /sys/class/net/eth0/carrier", "the link to be back")
    await devices.detach_nic(vm_id, nic.nic_id)
    await guest.until("test ! -e /sys/class/net/eth0", "the end of the card")

    isos = [new_iso(tmp_path, number) for number in (1, 2)]
    await devices.change_medium(vm_id, DRIVE.cdrom_id, isos[0])
    await guest.until("mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null", "the medium")
    assert await guest.run("cat /mnt/hello.txt || cat /mnt/HELLO.TXT") == "medium 1"
    with pytest.raises(GuestDidNotRelease):
        await devices.change_medium(vm_id, DRIVE.cdrom_id, isos[1])
    assert (await devices.list(vm_id)).cdroms == (replace(DRIVE, iso_path=isos[0]),)
    await guest.run("umount /mnt")
    await devices.change_medium(vm_id, DRIVE.cdrom_id, isos[1])
    await guest.until("mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null", "the other medium")
    assert await guest.run("cat /mnt/hello.txt || cat /mnt/HELLO.TXT") == "medium 2"
    await guest.run("umount /mnt")
    await devices.change_medium(vm_id, DRIVE.cdrom_id, None)
    await guest.until("! dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2>/dev/null", "the drive to be empty")


async def test_card_on_a_bridge_stays_within_its_bandwidth_in_both_directions(
    hypervisor: Hypervisor, guest: LinuxGuest, bridge: str
) -> None:
    devices, vm_id, bandwidths = devices_of(hypervisor), guest.vm_id, NicBandwidths(hypervisor)
    nic = NicConfig(str(uuid.uuid4()), "52:54:00:aa:bb:02", bridge=bridge)
    with pytest.raises(Refused, match="no bridge lqt-none"):
        await devices.attach_nic(vm_id, replace(nic, bridge="lqt-none"))
    with pytest.raises(Refused, match="no libvirt network none"):
        await devices.attach_nic(vm_id, replace(nic, bridge="", network="none"))
    await devices.attach_nic(vm_id, nic)
    await guest.until("test -e /sys/class/net/eth0", "the card")
    await guest.until(
        f"ip addr add {SUBNET}.2/24 dev eth0 2>/dev/null; ip link set eth0 up; ping -c 1 -W 1 {SUBNET}.1 >/dev/null",
        "the first ping",
        deadline_s=60,
    )
    unlimited = [await transfer(guest, sends=sends) for sends in (True, False)]

    # A sixth of what this machine does, however busy it is, so that the limit and nothing else is the bottleneck.
    limit_bytes_s = min(MIB // 2, int(2 * MIB / max(unlimited) / 6))
    await devices.update_nic(vm_id, replace(nic, bandwidth=NicBandwidth(limit_bytes_s, limit_bytes_s)))
    await bandwidths.settle(vm_id)
    await bandwidths.settle(vm_id)
    limited = [await transfer(guest, sends=sends) for sends in (True, False)]
    for fast_s, slow_s in zip(unlimited, limited, strict=True):
        # Six times as long, less what a burst and the buffers of both ends take.
        assert slow_s > max(1.0, 2 * fast_s)

    await devices.update_nic(vm_id, nic)
    await bandwidths.settle(vm_id)
    assert await transfer(guest, sends=True) < limited[0]
    assert shaping_devices() == []

    await devices.update_nic(vm_id, replace(nic, bandwidth=NicBandwidth(from_guest_bytes_s=MIB)))
    await bandwidths.settle(vm_id)
    assert len(shaping_devices()) == 1
    unsubscribe = hypervisor.subscribe(bandwidths.on_event)
    running = asyncio.ensure_future(bandwidths.run())
    await hypervisor.force_stop(vm_id)
    await eventually(gone_shaping_devices, "the end of what the stopped VM left")
    running.cancel()
    unsubscribe()


def shaping_devices() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("lq-*")]


async def gone_shaping_devices() -> bool | None:
    return True if not shaping_devices() else None


async def transfer(guest: LinuxGuest, *, sends: bool) -> float:
    """Send 2 MiB from the guest, or to it; returns how many seconds that took."""
    took_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began_s = asyncio.get_running_loop().time()
        if sends:
            received = 0
            while received < 2 * MIB:
                received += len(await reader.read(MIB))
        else:
            writer.write(bytes(2 * MIB))
            await writer.drain()
            writer.write_eof()
            await reader.read()
        took_s.set_result(asyncio.get_running_loop().time() - began_s)
        writer.close()

    server = await asyncio.start_server(serve, f"{SUBNET}.1", 0)
    async with server, asyncio.timeout(120):
        port = server.sockets[0].getsockname()[1]
        if sends:
            await guest.run(f"dd if=/dev/zero bs=64k count=32 2>/dev/null | nc {SUBNET}.1 {port}")
        else:
            await guest.run(f"nc {SUBNET}.1 {port} </dev/null >/dev/null")
        return await took_s
