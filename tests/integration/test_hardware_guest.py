"""What a real guest sees of its machine in one boot: UEFI, a TPM, a watchdog, two NUMA nodes, and being resized."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hypervisor.errors import Refused
from hypervisor.guest_profiles import GuestFamily
from hypervisor.hardware import CpuLimits, Hardware, NumaCell, TpmVersion, Watchdog
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.libvirt.domain_xml import parse
from hypervisor.types import Accelerator, CpuTopology, Firmware, PowerState, VmConfig
from tests.support.linux_guest import LinuxGuest, linux_config
from tests.support.private_libvirt_host import eventually, private_libvirt, skip_unless_private_libvirt
from tests.support.virt_install_facts import FACTS, Facts, read_facts

pytest.importorskip("libvirt")

I6300ESB = "8086:25AB"
"""PCI id of the emulated watchdog, an Intel 6300ESB."""
_MIB_LOST_TO_THE_KERNEL = 130
"""What a kernel and its initial RAM disk take from the memory that they then count."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def uri(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    directory = tmp_path_factory.mktemp("libvirt")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory) as libvirt:
        yield libvirt.uri


@pytest.fixture
async def backend(uri: str, tmp_path: Path) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(uri, tmp_path / "console", Accelerator.TCG)
    await hypervisor.open()
    yield hypervisor
    for vm in await hypervisor.list():
        await hypervisor.force_stop(vm.vm_id)
        await hypervisor.delete(vm.vm_id)
    await hypervisor.close()


def sized(config: VmConfig, vcpu_count: int, memory_mib: int) -> VmConfig:
    cells = (NumaCell(0, (0, 1), memory_mib - 128, (0,)), NumaCell(1, (2, 3), 128))
    return dataclasses.replace(
        config,
        cpu=CpuTopology(vcpu_count),
        memory_mib=memory_mib,
        hardware=dataclasses.replace(config.hardware, numa=cells),
    )


async def test_cpu_shares_are_refused_where_libvirt_has_no_cgroups_for_them(backend: LibvirtHypervisor) -> None:
    config = dataclasses.replace(await linux_config(), hardware=Hardware(cpu_limits=CpuLimits(weight=512)))
    await backend.create(config)
    with pytest.raises(Refused, match="cgroup cpu is required"):
        await backend.start(config.vm_id)
    assert (await backend.status(config.vm_id)).state is PowerState.STOPPED


async def made_by_virt_install(uri: str, name: str, directory: Path) -> Facts | None:
    """Have virt-install describe a VM for a guest system; None for one that this machine's database does not know."""
    words = f"--connect {uri} --virt-type qemu --print-xml 1 --name g --memory 2048 --vcpus 2 --osinfo {name}"
    process = await asyncio.create_subprocess_exec(
        "virt-install",
        *words.split(),
        *("--disk", f"size=1,path={directory}/g.qcow2", "--import", "--network", "user", "--check", "all=off"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, complaint = await process.communicate()
    if process.returncode != 0 and b"Unknown OS name" in complaint:
        return None
    assert process.returncode == 0, complaint.decode()
    return read_facts(parse(output.decode()))


async def test_facts_of_guest_systems_are_those_of_the_virt_install_of_this_machine(uri: str, tmp_path: Path) -> None:
    if shutil.which("virt-install") is None:
        pytest.skip("virt-install (package virtinst) is not installed")
    names = [name for _, name in FACTS]
    first = await made_by_virt_install(uri, names[0], tmp_path)  # alone: it makes the storage pool for the others
    others = await asyncio.gather(*(made_by_virt_install(uri, name, tmp_path) for name in names[1:]))

    made = {name: facts for name, facts in zip(names, (first, *others), strict=True) if facts is not None}

    assert made == {name: facts for (_, name), facts in FACTS.items() if name in made}
    assert made


async def memory_of(guest: LinuxGuest) -> int:
    """Read what the guest's kernel has, in MiB."""
    return int(await guest.run("awk '/^MemTotal/ {print $2}' /proc/meminfo")) // 1024


async def until_memory(guest: LinuxGuest, wanted_mib: int) -> None:
    """Wait until the guest's kernel has taken in, or given back, what makes it so much."""

    async def look() -> bool | None:
        return True if await memory_of(guest) == wanted_mib else None

    await eventually(look, f"{wanted_mib} MiB in the guest")


async def test_guest_sees_its_machine_and_grows_and_shrinks_while_it_runs(backend: LibvirtHypervisor) -> None:
    hardware = Hardware(
        tpm=TpmVersion.V2_0,
        watchdog=Watchdog(),
        max_vcpu_count=4,
        max_memory_mib=1024,
        may_balloon=True,
        serial_port_count=2,
        guest=GuestFamily.DEBIAN,
    )
    plain = dataclasses.replace(await linux_config(), firmware=Firmware.UEFI, hardware=hardware)
    await backend.create(sized(plain, 2, 384))
    await backend.start(plain.vm_id)
    guest = LinuxGuest(backend, plain.vm_id)
    await guest.wait_until_up()
    assert backend.resizing is not None

    assert await guest.run("cat /sys/class/tpm/tpm0/tpm_version_major; test -c /dev/tpm0") == "2"
    assert "config_table" in await guest.run("ls /sys/firmware/efi")
    assert I6300ESB in await guest.run("cat /sys/bus/pci/devices/*/uevent")
    assert await guest.run("cat /sys/devices/system/node/online") == "0-1"
    assert await guest.run("cat /sys/devices/system/cpu/online") == "0-1"
    before_mib = await memory_of(guest)
    assert 384 - _MIB_LOST_TO_THE_KERNEL < before_mib < 384

    grown = await backend.resizing.resize(sized(plain, 4, 640))
    assert (grown.vcpu_count, grown.memory_mib, grown.obstacles) == (4, 640, ())
    await guest.until("grep -qx 0-3 /sys/devices/system/cpu/online", "the guest taking the processors in")
    await until_memory(guest, before_mib + 256)

    shrunk = await backend.resizing.resize(sized(plain, 4, 512))
    assert (shrunk.memory_mib, shrunk.obstacles) == (512, ())
    await until_memory(guest, before_mib + 128)

    kept = await backend.resizing.resize(sized(plain, 1, 512))
    assert kept.vcpu_count == 4
    assert "takes no vCPUs away" in kept.obstacles[0]
    assert await guest.run("cat /sys/devices/system/cpu/online") == "0-3"

    await backend.force_stop(plain.vm_id)
    status = await backend.status(plain.vm_id)
    assert (status.vcpu_count, status.memory_mib) == (1, 512)
