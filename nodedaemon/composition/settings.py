"""What parts are given of the configuration."""

from __future__ import annotations

from hypervisor.mock.host import MockSettings
from hypervisor.registry import Backend, HypervisorSettings
from hypervisor.types import Accelerator
from nodedaemon.config import NodeConfig


def hypervisor_settings(config: NodeConfig, management_ip: str) -> HypervisorSettings:
    """Say which hypervisor there is and how it is reached."""
    mock, accelerator = config.hypervisor.mock, config.hypervisor.accelerator
    return HypervisorSettings(
        backend=Backend(config.hypervisor.backend),
        libvirt_uri=config.hypervisor.libvirt_uri,
        console_log_dir=config.node.data_dir / "console",
        accelerator=None if accelerator == "auto" else Accelerator(accelerator),
        peer_uri=config.migration.peer_uri(management_ip),
        pki_path=config.migration.pki_path,
        mock=MockSettings(
            vcpu_count=mock.vcpu_count,
            memory_mib=mock.memory_mib,
            boot_s=mock.boot_secs,
            shutdown_s=mock.shutdown_secs,
            bridges=mock.bridges,
            host_networks=mock.host_networks,
            migration_bytes_s=mock.migration_mib_per_sec * 2**20,
            state_path=config.node.data_dir / "mock-vms.json",
        ),
    )
