"""Make the backend that the configuration names; the only place that knows them all."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from hypervisor.base import Hypervisor
from hypervisor.errors import Unavailable
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.types import Accelerator


class Backend(enum.Enum):
    """Backends of this version."""

    MOCK = "mock"
    LIBVIRT = "libvirt"


@dataclass(frozen=True, slots=True)
class HypervisorSettings:
    """Which backend, and what each needs; what the chosen one does not need is ignored.

    `peer_uri` and `pki_path` are how other hosts' libvirt and this one's reach each other, see `PeerSettings`.
    `accelerator` None lets libvirt's backend find out whether KVM is usable.
    """

    backend: Backend
    libvirt_uri: str = "qemu:///system"
    console_log_dir: Path = Path("/var/log/limiquantix/console")
    accelerator: Accelerator | None = None
    peer_uri: str = ""
    pki_path: Path | None = None
    mock: MockSettings = field(default_factory=MockSettings)


def create_hypervisor(settings: HypervisorSettings) -> Hypervisor:
    """Make the backend; it is not open yet.

    Raises:
        Unavailable: the backend's Python library is not installed.
    """
    if settings.backend is Backend.MOCK:
        return MockHypervisor(settings.mock)
    try:
        # Imported only here: the mock must work on machines without libvirt.
        from hypervisor.libvirt.backend import LibvirtHypervisor  # noqa: PLC0415
        from hypervisor.libvirt.migration import PeerSettings  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(
            f"the libvirt backend needs libvirt-python ({error}); install it with: pip install 'limiquantix[libvirt]'"
        ) from error
    peers = PeerSettings(settings.peer_uri, settings.pki_path)
    return LibvirtHypervisor(settings.libvirt_uri, settings.console_log_dir, settings.accelerator, peers=peers)
