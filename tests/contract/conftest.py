"""The hypervisor backends that the contract suite runs against, each with the hands to change a host from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import pytest
import pytest_asyncio

from hypervisor.base import Hypervisor
from hypervisor.errors import Unavailable
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import MockFaults
from hypervisor.mock.host import MockSettings
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.types import Accelerator, CpuTopology, DiskConfig, DiskFormat, VmConfig, VncConsole
from tests.support import power_button_guest
from tests.support.private_libvirt_host import leave_out, private_libvirt, skip_unless_private_libvirt, virsh

MEMORY_MIB = 16


class BackendHost(Protocol):
    """One host with a backend: makes hypervisor objects for it, and plays everyone else who may touch it."""

    hello: bytes
    """What the guest prints when it is up."""

    def connect(self) -> Hypervisor:
        """Make a new, unopened object, as a daemon that was restarted would."""
        ...

    def config(self, *, deaf: bool = False, with_console: bool = False) -> VmConfig:
        """Make the configuration of a new VM whose guest boots; a deaf one ignores the power button."""
        ...

    async def destroy(self, vm_id: str) -> None:
        """Pull a VM's plug without asking the hypervisor object."""
        ...

    async def crash(self, vm_id: str) -> None:
        """Kill the process that runs the VM."""
        ...

    async def define_unmanaged(self) -> str:
        """Define a VM as another tool would; returns its id."""
        ...


@dataclass
class MockHost:
    """The mock, with its state in a file; what others do goes through the object that is connected."""

    directory: Path
    hello: bytes = b"LIMIQUANTIX-GUEST READY hostname="
    deaf_vm_ids: set[str] = field(default_factory=set)
    connected: MockHypervisor | None = None

    def connect(self) -> Hypervisor:
        settings = MockSettings(
            state_path=self.directory / "mock.json",
            boot_s=0.05,
            shutdown_s=0.02,
            faults=MockFaults(deaf_vm_ids=frozenset(self.deaf_vm_ids)),
        )
        self.connected = MockHypervisor(settings)
        return self.connected

    def config(self, *, deaf: bool = False, with_console: bool = False) -> VmConfig:
        vm_id = str(uuid.uuid4())
        if deaf:
            self.deaf_vm_ids.add(vm_id)
            self._mock.set_faults(MockFaults(deaf_vm_ids=frozenset(self.deaf_vm_ids)))
        return VmConfig(
            vm_id, f"vm-{vm_id[:8]}", CpuTopology(), MEMORY_MIB, vnc=VncConsole("secret12") if with_console else None
        )

    @property
    def _mock(self) -> MockHypervisor:
        assert self.connected is not None
        return self.connected

    async def destroy(self, vm_id: str) -> None:
        await self._mock.destroy_behind_our_back(vm_id)

    async def crash(self, vm_id: str) -> None:
        await self._mock.crash(vm_id)

    async def define_unmanaged(self) -> str:
        config = self.config()
        await self._mock.define_behind_our_back(config)
        return config.vm_id


@dataclass
class LibvirtHost:
    """A private libvirt daemon; what others do goes through virsh and signals."""

    uri: str
    directory: Path
    hello: bytes = power_button_guest.HELLO

    def connect(self) -> Hypervisor:
        return create_hypervisor(
            HypervisorSettings(
                Backend.LIBVIRT,
                libvirt_uri=self.uri,
                console_log_dir=self.directory / "console",
                accelerator=Accelerator.TCG,
            )
        )

    def config(self, *, deaf: bool = False, with_console: bool = False) -> VmConfig:
        vm_id = str(uuid.uuid4())
        disk = power_button_guest.write_disk(self.directory / f"{vm_id}.raw", deaf=deaf)
        return VmConfig(
            vm_id,
            f"vm-{vm_id[:8]}",
            CpuTopology(),
            MEMORY_MIB,
            disks=(DiskConfig(str(uuid.uuid4()), disk, DiskFormat.RAW),),
            vnc=VncConsole("secret12") if with_console else None,
        )

    async def destroy(self, vm_id: str) -> None:
        await virsh(self.uri, "destroy", vm_id)

    async def crash(self, vm_id: str) -> None:
        os.kill(await asyncio.to_thread(_qemu_pid, vm_id), signal.SIGKILL)

    async def define_unmanaged(self) -> str:
        vm_id = str(uuid.uuid4())
        document = self.directory / f"{vm_id}.xml"
        document.write_text(
            f"<domain type='qemu'><name>foreign-{vm_id[:8]}</name><uuid>{vm_id}</uuid><memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
        )
        await virsh(self.uri, "define", str(document))
        return vm_id


def _qemu_pid(vm_id: str) -> int:
    """Find the VM's process by the -uuid on its command line."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "-uuid" in words and vm_id in words:
            return int(process.info["pid"])
    raise AssertionError(f"no process runs VM {vm_id}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def libvirt_uri(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Run one private libvirt daemon for the whole test session."""
    try:
        create_hypervisor(HypervisorSettings(Backend.LIBVIRT))
    except Unavailable as error:
        leave_out(str(error))
    directory = tmp_path_factory.mktemp("libvirt")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory) as libvirt:
        yield libvirt.uri


@pytest.fixture(params=["mock", "libvirt"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> BackendHost:
    """A host for each backend that this machine can run."""
    if request.param == "mock":
        return MockHost(tmp_path)
    return LibvirtHost(request.getfixturevalue("libvirt_uri"), tmp_path)


@pytest.fixture
async def backend(host: BackendHost) -> AsyncIterator[Hypervisor]:
    """An open hypervisor on that host; VMs that a test leaves behind are removed."""
    hypervisor = host.connect()
    await hypervisor.open()
    yield hypervisor
    await hypervisor.close()
    cleaner = host.connect()
    await cleaner.open()
    for vm in await cleaner.list():
        await cleaner.force_stop(vm.vm_id)
        await cleaner.delete(vm.vm_id)
    await cleaner.close()
