"""Two hosts of one backend between which VMs move, for suites that run against every backend."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hypervisor.base import Hypervisor
from hypervisor.migration import Arrival, Migration, MigrationOptions, Places, Route
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.types import Accelerator, CpuTopology, DiskConfig, DiskFormat, VmConfig
from tests.support import serial_guests
from tests.support.libvirt_hosts import MigrationHost

MEMORY_MIB = 16
SLOW_BYTES_S = 2**20
"""So slow that a heavy guest's migration does not end by itself."""


class Pair(Protocol):
    """Two hosts; `source` and `target` are open."""

    source: Hypervisor
    target: Hypervisor

    def places(self, number: int) -> Places: ...

    def peer_uri(self, number: int) -> str: ...

    def config(self, *, heavy: bool = False, shared: bool = True) -> VmConfig:
        """Make the configuration of a VM at the source; its image is there."""
        ...

    def make_room(self, config: VmConfig) -> None:
        """Make empty images at the target, for disks that are copied."""
        ...

    def connect(self, number: int) -> Hypervisor:
        """Make a new object for a host, as a daemon that was restarted would."""
        ...

    def console(self, number: int, vm_id: str) -> list[str]:
        """Whole lines that the guest wrote at that host."""
        ...


def migration_of(hypervisor: Hypervisor) -> Migration:
    """Return the power that both backends have."""
    assert hypervisor.migration is not None
    return hypervisor.migration


def options(pair: Pair, *, back: bool = False, **wishes: Any) -> MigrationOptions:
    """Say how a VM goes to the target, or back to the source."""
    here, there = (1, 0) if back else (0, 1)
    route = Route(pair.peer_uri(there), pair.places(here), pair.places(there))
    return MigrationOptions(route, **wishes)


def arrival(pair: Pair, config: VmConfig, *, back: bool = False, is_off: bool = False) -> Arrival:
    """Say what comes to the target, with its paths."""
    route = options(pair, back=back).route
    disks = tuple(replace(disk, path=route.translate(disk.path)) for disk in config.disks)
    return Arrival(replace(config, disks=disks), is_off=is_off)


@dataclass
class MockPair:
    """Two mocks in this process; with `directory`, their states are in files."""

    directory: Path
    source: Hypervisor = field(init=False)
    target: Hypervisor = field(init=False)

    def __post_init__(self) -> None:
        self.source, self.target = self.connect(0), self.connect(1)

    def places(self, number: int) -> Places:
        return Places(self.directory / f"h{number}" / "images", self.directory / f"h{number}" / "console")

    def peer_uri(self, number: int) -> str:
        return f"mock://{self.directory / f'h{number}' / 'mock.json'}"

    def config(self, *, heavy: bool = False, shared: bool = True) -> VmConfig:
        vm_id = str(uuid.uuid4())
        disk = DiskConfig(str(uuid.uuid4()), self.places(0).storage_root / vm_id / "disk.raw", DiskFormat.RAW)
        return VmConfig(vm_id, f"vm-{vm_id[:8]}", CpuTopology(), MEMORY_MIB, disks=(disk,))

    def make_room(self, config: VmConfig) -> None:
        pass

    def connect(self, number: int) -> Hypervisor:
        path = self.directory / f"h{number}" / "mock.json"
        return MockHypervisor(
            MockSettings(state_path=path, boot_s=0.05, shutdown_s=0.02, disk_bytes=2**20, dirty_bytes_s=2**22)
        )

    def console(self, number: int, vm_id: str) -> list[str]:
        return []


@dataclass
class LibvirtPair:
    """Two libvirt daemons, each in a network of its own, that speak TLS with each other."""

    hosts: tuple[MigrationHost, MigrationHost]
    directory: Path
    source: Hypervisor = field(init=False)
    target: Hypervisor = field(init=False)

    def __post_init__(self) -> None:
        self.source, self.target = self.connect(0), self.connect(1)

    def places(self, number: int) -> Places:
        return Places(self.directory / f"h{number}" / "images", self.directory / f"h{number}" / "console")

    def peer_uri(self, number: int) -> str:
        return self.hosts[number].tls_uri

    def config(self, *, heavy: bool = False, shared: bool = True) -> VmConfig:
        vm_id = str(uuid.uuid4())
        image_format = DiskFormat.RAW
        root = self.directory / "shared" if shared else self.places(0).storage_root
        (root / vm_id).mkdir(parents=True)
        code = serial_guests.HEAVY_COUNTER if heavy else serial_guests.COUNTER
        path = serial_guests.write_disk(root / vm_id / "disk.raw", code)
        disk = DiskConfig(str(uuid.uuid4()), path, image_format)
        return VmConfig(vm_id, f"vm-{vm_id[:8]}", CpuTopology(), MEMORY_MIB, disks=(disk,))

    def make_room(self, config: VmConfig) -> None:
        route = options(self).route
        for disk in config.disks:
            path = route.translate(disk.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.truncate(disk.path.stat().st_size)

    def connect(self, number: int) -> Hypervisor:
        host = self.hosts[number]
        return create_hypervisor(
            HypervisorSettings(
                Backend.LIBVIRT,
                libvirt_uri=host.uri,
                console_log_dir=self.places(number).console_log_dir,
                accelerator=Accelerator.TCG,
                peer_uri=host.tls_uri,
                pki_path=host.pki,
            )
        )

    def console(self, number: int, vm_id: str) -> list[str]:
        path = self.places(number).console_log_dir / f"{vm_id}.log"
        text = path.read_bytes().decode() if path.exists() else ""
        return text.split("\n")[:-1]
