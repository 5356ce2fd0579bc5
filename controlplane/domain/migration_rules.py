"""Which VMs may be migrated, as far as it can be told before a node is chosen and a host is asked."""

from __future__ import annotations

from controlplane.domain import migration_errors
from controlplane.domain.migration import MigrationWish
from controlplane.domain.migration_forecast import BYTES_PER_MBIT, DEFAULT_MAX_DOWNTIME_MS, Way
from controlplane.domain.node import Node
from controlplane.domain.vm import PowerOperation, PowerState, Vm, require_managed, require_state
from limiquantix.compute.v1.vm_pb2 import MigrationConfig


def require_migratable(vm: Vm) -> None:
    """Check the VM itself.

    Raises:
        FailedPrecondition: its state, its settings or its devices keep it where it is, or it is a template.
    """
    require_managed(vm)
    if vm.power_state == PowerState.SUSPENDED:
        why = "it is saved to disk, and what is saved stays on its host; start it, or stop it by force, first"
        raise migration_errors.refused(vm.id, why)
    require_state(vm, PowerOperation.MIGRATE)
    spec = vm.spec
    if spec.HasField("migration") and not spec.migration.allow_migration:
        why = "its settings do not allow it; set spec.migration.allow_migration"
        raise migration_errors.refused(vm.id, why)
    devices = [("PCI", len(spec.pci_devices)), ("USB", len(spec.usb_devices)), ("vGPU", len(spec.vgpu_devices))]
    tied = ", ".join(f"{count} {kind}" for kind, count in devices if count)
    if tied:
        why = f"it has devices of its host ({tied}), which cannot follow it; take them away first"
        raise migration_errors.refused(vm.id, why, devices=tied)


def require_copyable(vm: Vm, source: Node, target: Node) -> None:
    """Check that the disks of a VM can be copied to a host that does not share its storage.

    Raises:
        FailedPrecondition: they cannot.
    """
    where = f"nodes {source.hostname} and {target.hostname} share no storage"
    if vm.linked_to:
        why = f"{where}, and its disks build upon template {vm.linked_to}, which stays; clone it in full first"
        raise migration_errors.refused(vm.id, why, template_id=vm.linked_to)
    if vm.details.snapshots.snapshots:
        count = len(vm.details.snapshots.snapshots)
        why = f"{where}, and its {count} snapshots would not be copied; delete them first"
        raise migration_errors.refused(vm.id, why, snapshot_count=str(count))


def require_capable(vm: Vm, node: Node) -> None:
    """Check that a node can send or take in a VM that is in memory.

    Raises:
        FailedPrecondition: its daemon or hypervisor cannot.
    """
    if not node.spec.supports_live_migration:
        why = f"node {node.hostname} does not support migration; it needs a newer node daemon, or its configuration"
        raise migration_errors.refused(vm.id, why, node_id=node.id)


def way_of(config: MigrationConfig, wish: MigrationWish, bandwidth_mbps: int) -> Way:
    """Put together how a VM is carried: by the wish, else by its settings, else by default.

    Args:
        bandwidth_mbps: what the network carries.
    """
    ceiling_mbps = wish.bandwidth_mbps or config.bandwidth_mbps
    return Way(
        bandwidth_bytes_per_s=min(ceiling_mbps or bandwidth_mbps, bandwidth_mbps) * BYTES_PER_MBIT,
        max_downtime_ms=wish.max_downtime_ms or config.max_downtime_ms or DEFAULT_MAX_DOWNTIME_MS,
        live=wish.live,
        auto_converge=config.auto_converge if wish.auto_converge is None else wish.auto_converge,
        post_copy=config.post_copy if wish.post_copy is None else wish.post_copy,
    )


def bandwidth_between(source: Node, target: Node, default_mbps: int) -> int:
    """Estimate what the network between two nodes carries, in Mbit/s: the slower one's fastest card."""
    fastest = [max((card.speed_mbps for card in node.spec.network), default=0) for node in (source, target)]
    return min(fastest) or default_mbps
