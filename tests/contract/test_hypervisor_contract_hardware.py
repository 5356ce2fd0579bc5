"""Hardware and resizing: the rules that hold on every backend."""

from __future__ import annotations

import dataclasses

import pytest

from hypervisor.abilities import DeviceKind
from hypervisor.base import Hypervisor
from hypervisor.errors import HostCannot, VmNotFound, WrongState
from hypervisor.guest_profiles import GuestFamily
from hypervisor.hardware import (
    Entropy,
    Hardware,
    MediatedDevice,
    NumaCell,
    PciDevice,
    TpmVersion,
    UsbDevice,
    Video,
    VideoModel,
    Watchdog,
    WatchdogModel,
)
from hypervisor.resizing import Resizing
from hypervisor.types import CpuTopology, Firmware, PowerState, SpiceConsole, VmConfig
from tests.contract.conftest import BackendHost

UEFI_MEMORY_MIB = 256


def having(config: VmConfig, **hardware: object) -> VmConfig:
    return dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, **hardware))  # type: ignore[arg-type]


def with_cores(config: VmConfig, cores: int) -> VmConfig:
    return dataclasses.replace(config, cpu=CpuTopology(cores))


def resizing_of(backend: Hypervisor) -> Resizing:
    assert backend.resizing is not None
    return backend.resizing


async def run_once(backend: Hypervisor, config: VmConfig) -> None:
    """Create a VM, twice as a caller without an answer would, start it and stop it."""
    await backend.create(config)
    await backend.create(config)
    await backend.start(config.vm_id)
    assert (await backend.status(config.vm_id)).state is PowerState.RUNNING
    await backend.force_stop(config.vm_id)


async def test_vm_with_small_hardware_starts(backend: Hypervisor, host: BackendHost) -> None:
    config = having(
        dataclasses.replace(host.config(), cpu=CpuTopology(2), spice=SpiceConsole()),
        watchdog=Watchdog(WatchdogModel.I6300ESB),
        entropy=Entropy(rate_bytes=4096, period_ms=1000),
        numa=(NumaCell(0, (0,), 8, (0,)), NumaCell(1, (1,), 8)),
        video=Video(VideoModel.QXL, 64),
        serial_port_count=4,
        boot_menu_ms=100,
        cpu_features=("aes",),
        guest=GuestFamily.DEBIAN,
    )
    await run_once(backend, config)


async def test_vm_with_secure_boot_and_tpm_starts_and_leaves_nothing_when_deleted(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = dataclasses.replace(host.config(), firmware=Firmware.UEFI, memory_mib=UEFI_MEMORY_MIB)
    config = having(config, secure_boot=True, tpm=TpmVersion.V2_0, guest=GuestFamily.WINDOWS_SERVER)
    await run_once(backend, config)
    await backend.delete(config.vm_id)
    assert config.vm_id not in {vm.vm_id for vm in await backend.list()}


@pytest.mark.parametrize(
    "family", [family for family in GuestFamily if family is not GuestFamily.MACOS], ids=lambda family: family.value
)
async def test_vm_of_every_guest_family_is_defined(backend: Hypervisor, host: BackendHost, family: GuestFamily) -> None:
    config = having(host.config(with_console=True), guest=family)
    await backend.create(config)
    assert (await backend.status(config.vm_id)).state is PowerState.STOPPED


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (Hardware(guest=GuestFamily.MACOS), "licence"),
        (Hardware(pci_devices=(PciDevice("0000:ff:1f.7"),)), "no PCI device 0000:ff:1f.7"),
        (Hardware(usb_devices=(UsbDevice("0951", "1666"),)), "no USB device 0951:1666"),
        (Hardware(mediated_devices=(MediatedDevice("nvidia-35"),)), "no mediated device of profile 'nvidia-35'"),
        (Hardware(cpu_features=("aess",)), "no CPU feature is called 'aess'; near are aes"),
        (Hardware(numa=(NumaCell(0, (0,), 16, (99,)),)), "wants host node 99"),
        (Hardware(huge_page_kib=2048 * 512), "no whole number of huge pages of 1024 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_hardware_that_no_host_here_has_is_refused_before_anything_is_made(
    backend: Hypervisor, host: BackendHost, hardware: Hardware, words: str
) -> None:
    config = dataclasses.replace(host.config(), hardware=hardware)
    with pytest.raises(HostCannot, match=words):
        await backend.create(config)
    with pytest.raises(VmNotFound):
        await backend.status(config.vm_id)


async def test_unknown_cpu_model_is_refused_with_those_whose_names_are_near(
    backend: Hypervisor, host: BackendHost
) -> None:
    with pytest.raises(HostCannot, match=r"no CPU model is called 'Westmear'; near are .*Westmere"):
        await backend.create(dataclasses.replace(host.config(), cpu=CpuTopology(model="Westmear")))


async def test_everything_a_host_lacks_is_named_at_once(backend: Hypervisor, host: BackendHost) -> None:
    hardware = Hardware(cpu_features=("nonesuch",), pci_devices=(PciDevice("0000:ff:1f.7"),))
    with pytest.raises(HostCannot, match=r"'nonesuch'.*; it has no PCI device"):
        await backend.create(dataclasses.replace(host.config(), hardware=hardware))


async def test_reconfigure_to_what_the_host_lacks_is_refused_and_the_old_definition_stays(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    with pytest.raises(HostCannot):
        await backend.reconfigure(having(config, guest=GuestFamily.MACOS))
    await backend.create(config)


async def test_capabilities_say_what_machines_can_have(backend: Hypervisor) -> None:
    capabilities = await backend.capabilities()
    abilities = capabilities.abilities
    assert capabilities.supports_snapshots == (backend.snapshots is not None)
    assert capabilities.supports_hotplug == (backend.devices is not None)
    assert "Nehalem" in abilities.cpu_models
    assert set(abilities.cpu_models) <= set(abilities.known_cpu_models)
    assert TpmVersion.V2_0 in abilities.tpm_versions
    assert abilities.has_uefi
    assert abilities.has_secure_boot
    assert abilities.numa_nodes
    assert {page.size_kib for page in abilities.huge_pages} >= {2048}


async def test_host_devices_are_listed_each_once(backend: Hypervisor) -> None:
    assert backend.host_devices is not None
    devices = await backend.host_devices.list()
    places = [(device.kind, device.address) for device in devices]
    assert len(places) == len(set(places))
    has_iommu = (await backend.capabilities()).abilities.has_iommu
    for device in devices:
        if device.kind is DeviceKind.PCI and not has_iommu:
            assert device.obstacle == "it is in no IOMMU group"


# -- resizing


async def test_running_vm_gets_vcpus_within_its_room_at_once_and_keeps_them_over_its_next_start(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = having(host.config(), max_vcpu_count=4)
    await backend.create(config)
    await backend.start(config.vm_id)
    larger = with_cores(config, 3)

    for _ in range(2):  # the answer may have been lost
        resized = await resizing_of(backend).resize(larger)
        assert (resized.vcpu_count, resized.memory_mib, resized.obstacles) == (3, config.memory_mib, ())

    await backend.force_stop(config.vm_id)
    assert (await backend.status(config.vm_id)).vcpu_count == 3
    await backend.start(config.vm_id)
    assert (await resizing_of(backend).resize(larger)).vcpu_count == 3


async def test_vcpus_beyond_its_room_wait_for_the_next_start(backend: Hypervisor, host: BackendHost) -> None:
    config = having(host.config(), max_vcpu_count=2)
    await backend.create(config)
    await backend.start(config.vm_id)
    larger = having(with_cores(config, 4), max_vcpu_count=4)

    resized = await resizing_of(backend).resize(larger)

    assert resized.vcpu_count == 1
    assert resized.obstacles == ("the VM was started with room for 2 vCPUs",)
    assert (await backend.status(config.vm_id)).vcpu_count == 4
    await backend.force_stop(config.vm_id)
    await backend.start(config.vm_id)
    assert await resizing_of(backend).resize(larger) == dataclasses.replace(resized, vcpu_count=4, obstacles=())


async def test_memory_without_room_or_balloon_waits_for_the_next_start(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.start(config.vm_id)
    size_mib = config.memory_mib

    grown = await resizing_of(backend).resize(dataclasses.replace(config, memory_mib=size_mib + 128))
    assert (grown.memory_mib, grown.obstacles) == (size_mib, (f"the VM was started with room for {size_mib} MiB",))
    shrunk = await resizing_of(backend).resize(dataclasses.replace(config, memory_mib=size_mib - 4))
    assert shrunk.memory_mib == size_mib
    assert "ballooning is not enabled" in shrunk.obstacles[0]
    assert (await backend.status(config.vm_id)).memory_mib == size_mib - 4


async def test_layout_and_other_hardware_of_a_running_vm_wait_for_the_next_start(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    await backend.start(config.vm_id)
    changed = having(dataclasses.replace(config, cpu=CpuTopology(1, sockets=2)), watchdog=Watchdog())

    resized = await resizing_of(backend).resize(changed)

    assert resized.vcpu_count == 1
    assert "sockets and threads" in resized.obstacles[0]
    await backend.create(changed)  # it is what is defined


async def test_resizing_a_vm_that_is_off_defines_it_anew(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    resized = await resizing_of(backend).resize(with_cores(config, 2))
    assert (resized.vcpu_count, resized.obstacles) == (2, ())
    assert (await backend.status(config.vm_id)).vcpu_count == 2


async def test_resizing_a_saved_or_absent_vm_is_refused(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    with pytest.raises(VmNotFound):
        await resizing_of(backend).resize(config)
    await backend.create(config)
    await backend.start(config.vm_id)
    await backend.suspend(config.vm_id)
    with pytest.raises(WrongState):
        await resizing_of(backend).resize(config)


async def test_resizing_to_what_the_host_lacks_leaves_size_and_definition(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = having(host.config(), max_vcpu_count=4)
    await backend.create(config)
    await backend.start(config.vm_id)
    with pytest.raises(HostCannot):
        await resizing_of(backend).resize(having(with_cores(config, 2), guest=GuestFamily.MACOS))
    assert (await backend.status(config.vm_id)).vcpu_count == 1
    assert (await resizing_of(backend).resize(config)).vcpu_count == 1
