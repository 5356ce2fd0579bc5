"""What only real QEMU processes can show of the libvirt backend: guests that hang, do not listen, or are saved."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from hypervisor.errors import GuestDidNotStop, VmNotFound, WrongState
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.libvirt.qemu_process import find_processes
from hypervisor.types import (
    Accelerator,
    CdromConfig,
    ConsoleKind,
    CpuTopology,
    DiskBus,
    DiskConfig,
    DiskFormat,
    NicConfig,
    NicModel,
    PowerState,
    VmConfig,
    VncConsole,
)
from tests.support import power_button_guest
from tests.support.private_libvirt_host import eventually, private_libvirt, skip_unless_private_libvirt, virsh

pytest.importorskip("libvirt")


@dataclass(frozen=True)
class Host:
    """A private libvirt daemon, the backend on it, and a directory."""

    uri: str
    backend: LibvirtHypervisor
    directory: Path

    def config(self, *, deaf: bool = False) -> VmConfig:
        vm_id = str(uuid.uuid4())
        disk = power_button_guest.write_disk(self.directory / f"{vm_id}.raw", deaf=deaf)
        return VmConfig(vm_id, "t", CpuTopology(), 16, disks=(DiskConfig("system", disk, DiskFormat.RAW),))

    async def booted(self, config: VmConfig, *, count: int = 1) -> None:
        async def look() -> bool | None:
            log = await self.backend.read_console_log(config.vm_id, 0, 2**20)
            return log.data.count(power_button_guest.HELLO) >= count or None

        await eventually(look, "the guest's hello")

    async def start(self, config: VmConfig) -> VmConfig:
        await self.backend.create(config)
        await self.backend.start(config.vm_id)
        await self.booted(config)
        return config


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def uri(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    directory = tmp_path_factory.mktemp("libvirt")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory) as libvirt:
        yield libvirt.uri


@pytest.fixture
async def host(uri: str, tmp_path: Path) -> AsyncIterator[Host]:
    backend = LibvirtHypervisor(uri, tmp_path / "console", Accelerator.TCG, reboot_grace_s=0.5)
    await backend.open()
    yield Host(uri, backend, tmp_path)
    for vm in await backend.list():
        await backend.force_stop(vm.vm_id)
        await backend.delete(vm.vm_id)
    await backend.close()


async def test_reboot_of_a_deaf_guest_resets_it(host: Host) -> None:
    config = await host.start(host.config(deaf=True))
    await host.backend.reboot(config.vm_id)
    await host.booted(config, count=2)
    assert (await host.backend.status(config.vm_id)).state is PowerState.RUNNING


async def test_fault_18_hung_guest_hides_no_other_and_can_be_killed(host: Host) -> None:
    hung, other = await host.start(host.config()), await host.start(host.config())
    os.kill(find_processes([hung.vm_id])[hung.vm_id].pid, signal.SIGSTOP)
    for _ in range(3):
        states = {vm.vm_id: vm.state for vm in await host.backend.list()}
        assert states == {hung.vm_id: PowerState.RUNNING, other.vm_id: PowerState.RUNNING}
    with pytest.raises(GuestDidNotStop):
        await host.backend.stop(hung.vm_id, 0.2)
    await host.backend.pause(other.vm_id)
    await host.backend.force_stop(hung.vm_id)
    assert (await host.backend.status(hung.vm_id)).state is PowerState.STOPPED


async def test_saved_vm_is_suspended_continues_at_start_and_is_dropped_by_force_stop(host: Host) -> None:
    config = await host.start(host.config())
    await virsh(host.uri, "managedsave", config.vm_id)
    assert (await host.backend.status(config.vm_id)).state is PowerState.SUSPENDED
    with pytest.raises(WrongState):
        await host.backend.stop(config.vm_id, 1)
    await host.backend.start(config.vm_id)
    assert (await host.backend.read_console_log(config.vm_id, 0, 2**20)).data.count(power_button_guest.HELLO) == 1
    await virsh(host.uri, "managedsave", config.vm_id)
    await host.backend.force_stop(config.vm_id)
    assert (await host.backend.status(config.vm_id)).state is PowerState.STOPPED


async def test_started_at_is_when_the_process_started_for_every_observer(host: Host) -> None:
    before_s = time.time()
    config = await host.start(host.config())
    started_at_s = (await host.backend.status(config.vm_id)).started_at_s
    assert started_at_s is not None
    assert before_s - 0.1 <= started_at_s <= time.time()


async def test_fault_11_process_of_a_vm_with_a_console_listens_on_no_network(host: Host) -> None:
    config = await host.start(dataclasses.replace(host.config(), vnc=VncConsole()))
    process = psutil.Process(find_processes([config.vm_id])[config.vm_id].pid)
    sockets = [socket for socket in process.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
    assert sockets == []


async def test_qemu_accepts_disks_and_cards_of_every_kind(host: Host) -> None:
    disks = []
    for number, bus in enumerate([*DiskBus] * 2):
        path = host.directory / f"{number} '><&\",.raw"
        path.write_bytes(bytes(2**20))
        disks.append(DiskConfig(f"d{number}", path, DiskFormat.RAW, bus))
    config = host.config()
    nics = tuple(NicConfig(model.value, f"52:54:00:00:00:{n:02x}", model) for n, model in enumerate(NicModel))
    everything = dataclasses.replace(
        config,
        disks=(*config.disks, *disks),
        cdroms=(CdromConfig("empty"),),
        nics=nics,
        vnc=VncConsole(),
        memory_mib=32,
    )
    await host.start(everything)
    assert await host.backend.console_kinds(everything.vm_id) == (ConsoleKind.VNC, ConsoleKind.SERIAL)


def foreign_xml(vm_id: str, disk: Path, log: Path, *, nvram: Path | None = None) -> str:
    """Describe a VM as another tool does: KiB that are no whole MiB, no mark of ours, files in places of its own."""
    firmware = (
        f"<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>{nvram}</nvram>"
        if nvram
        else ""
    )
    return f"""
<domain type='qemu'>
  <name>legacy-{vm_id[:8]}</name>
  <uuid>{vm_id}</uuid>
  <memory unit='KiB'>16500</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{firmware}</os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'><log file='{log}' append='on'/><target port='0'/></serial>
  </devices>
</domain>
"""


@dataclass(frozen=True)
class Foreign:
    """A VM that another tool defined or runs."""

    vm_id: str
    disk: Path
    log: Path

    async def booted(self, count: int = 1) -> None:
        async def look() -> bool | None:
            return (self.log.exists() and self.log.read_bytes().count(power_button_guest.HELLO) >= count) or None

        await eventually(look, "the foreign guest's hello")


async def foreign(host: Host, verb: str = "define", nvram: Path | None = None) -> Foreign:
    vm_id = str(uuid.uuid4())
    vm = Foreign(vm_id, power_button_guest.write_disk(host.directory / f"{vm_id}.img"), host.directory / f"{vm_id}.log")
    document = host.directory / f"{vm_id}.xml"
    document.write_text(foreign_xml(vm_id, vm.disk, vm.log, nvram=nvram))
    await virsh(host.uri, verb, str(document))
    return vm


async def test_foreign_domain_takes_every_power_operation_and_its_disk_outlives_it(host: Host) -> None:
    vm = await foreign(host)
    status = await host.backend.status(vm.vm_id)
    assert (status.is_managed, status.vcpu_count, status.memory_mib) == (False, 2, 17)
    await host.backend.start(vm.vm_id)
    await vm.booted()
    await host.backend.pause(vm.vm_id)
    await host.backend.resume(vm.vm_id)
    await host.backend.reboot(vm.vm_id)
    await vm.booted(count=2)
    await host.backend.stop(vm.vm_id, 60)
    await host.backend.start(vm.vm_id)
    with pytest.raises(WrongState):
        await host.backend.delete(vm.vm_id)
    await host.backend.force_stop(vm.vm_id)
    before = vm.disk.read_bytes()
    await host.backend.delete(vm.vm_id)
    assert await virsh(host.uri, "list", "--all", "--uuid") == ""
    assert vm.disk.read_bytes() == before


async def test_deleted_foreign_domain_keeps_the_variables_of_its_firmware(host: Host) -> None:
    nvram = host.directory / "their_VARS.fd"
    nvram.write_bytes(b"their boot entries")
    vm = await foreign(host, nvram=nvram)
    await host.backend.delete(vm.vm_id)
    assert await virsh(host.uri, "list", "--all", "--uuid") == ""
    assert nvram.read_bytes() == b"their boot entries"


@pytest.mark.parametrize("verb", ["stop", "force_stop"])
async def test_foreign_domain_without_a_definition_is_gone_once_it_is_off(host: Host, verb: str) -> None:
    vm = await foreign(host, "create")
    await vm.booted()
    assert not (await host.backend.status(vm.vm_id)).is_managed
    await (host.backend.stop(vm.vm_id, 60) if verb == "stop" else host.backend.force_stop(vm.vm_id))
    with pytest.raises(VmNotFound):
        await host.backend.status(vm.vm_id)
    await host.backend.delete(vm.vm_id)
    assert vm.disk.exists()


async def test_cancelled_stop_lets_the_guest_shut_down_and_leaves_no_lock_behind(host: Host) -> None:
    config = await host.start(host.config())
    stopping = asyncio.create_task(host.backend.stop(config.vm_id, 60))
    await asyncio.wait([stopping], timeout=0.02)
    stopping.cancel()
    await asyncio.wait([stopping])
    await host.backend.stop(config.vm_id, 60)  # whether or not the guest had heard the first press
    assert (await host.backend.status(config.vm_id)).state is PowerState.STOPPED
    await host.backend.start(config.vm_id)
    await host.booted(config, count=2)


async def test_cancelled_stop_of_a_hung_guest_does_not_hold_up_force_stop(host: Host) -> None:
    config = await host.start(host.config())
    os.kill(find_processes([config.vm_id])[config.vm_id].pid, signal.SIGSTOP)
    stopping = asyncio.create_task(host.backend.stop(config.vm_id, 60))
    await asyncio.wait([stopping], timeout=0.3)  # by now the button is being pressed, and QEMU does not answer
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await host.backend.force_stop(config.vm_id)
    assert (await host.backend.status(config.vm_id)).state is PowerState.STOPPED
    await host.backend.start(config.vm_id)
    await host.booted(config, count=2)
    await host.backend.force_stop(config.vm_id)
    await host.backend.delete(config.vm_id)
    assert await virsh(host.uri, "list", "--all", "--uuid") == ""


async def test_cancelled_reboot_of_a_deaf_guest_leaves_it_free_for_force_stop(host: Host) -> None:
    config = await host.start(host.config(deaf=True))
    # One that waits for the guest until it is cancelled, however late that is.
    patient = LibvirtHypervisor(host.uri, host.directory / "console", Accelerator.TCG, reboot_grace_s=600)
    await patient.open()
    rebooting = asyncio.create_task(patient.reboot(config.vm_id))
    await asyncio.wait([rebooting], timeout=0.2)
    rebooting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rebooting
    await patient.force_stop(config.vm_id)
    await patient.close()
    assert (await host.backend.status(config.vm_id)).state is PowerState.STOPPED
    await host.backend.start(config.vm_id)
    await host.booted(config, count=2)
