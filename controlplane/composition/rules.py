"""Rules of the parts, as the configuration has them."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.config import ControlPlaneConfig
from controlplane.coordination.settings import Backend
from controlplane.domain.migration import MigrationRules
from controlplane.domain.node import CapacityPolicy
from controlplane.drs.snapshot import BalanceConfig
from controlplane.ha_settings import AdmissionPolicy
from controlplane.operations.worker import WorkerConfig
from controlplane.services.balancing import BalancingConfig
from controlplane.services.balancing_loads import LoadConfig
from controlplane.services.heartbeats import HeartbeatConfig
from telemetry.overload import OverloadRules

RENEWALS_PER_LEASE = 5
"""How often a process shows that it lives while its operations are its own: some may be late or lost."""


def utc_now() -> datetime:
    """The wall clock, with its zone."""
    return datetime.now(UTC)


def migration_rules(config: ControlPlaneConfig) -> MigrationRules:
    """How VMs are moved, and how many at once."""
    return MigrationRules(
        node_units=config.migrations.node_units,
        cluster_units=config.migrations.cluster_units,
        patience_s=config.migrations.patience_s,
        confirmation_s=config.migrations.confirmation_s,
        bandwidth_mbps=config.migrations.bandwidth_mbps,
    )


def worker_config(config: ControlPlaneConfig) -> WorkerConfig:
    """How operations are carried out."""
    return WorkerConfig(
        lease_s=config.operations.lease_s,
        renewal_interval_s=config.operations.lease_s / RENEWALS_PER_LEASE,
        kept_days=config.operations.kept_days,
    )


def capacity_policy(config: ControlPlaneConfig) -> CapacityPolicy:
    """How much of a host VMs may claim."""
    return CapacityPolicy(
        cpu_overcommit_ratio=config.scheduler.cpu_overcommit_ratio,
        memory_overcommit_ratio=config.scheduler.memory_overcommit_ratio,
        reserved_cores=config.scheduler.reserved_cores,
        reserved_memory_bytes=config.scheduler.reserved_memory_mib * 2**20,
    )


def heartbeat_config(config: ControlPlaneConfig, *, has_leases: bool) -> HeartbeatConfig:
    """How often hosts beat, and what load is too much. With leases, who decides marks silent nodes."""
    return HeartbeatConfig(
        interval_s=config.ha.heartbeat_interval_s if has_leases else config.nodes.heartbeat_interval_s,
        marks_silent=not has_leases,
        overload=OverloadRules(
            cpu_percent=config.nodes.overload_cpu_percent,
            memory_percent=config.nodes.overload_memory_percent,
            measure_count=config.nodes.overload_heartbeat_count,
        ),
    )


def load_config(config: ControlPlaneConfig) -> LoadConfig:
    """What counts in the loads that balancing looks at."""
    return LoadConfig(
        hold_s=config.drs.hold_s,
        node_cool_down_s=config.drs.node_cool_down_s,
        copies_disks=config.drs.copies_disks,
        bandwidth_mbps=config.migrations.bandwidth_mbps,
    )


def balancing_config(config: ControlPlaneConfig) -> BalancingConfig:
    """When balancing runs, and what it may do."""
    settings = config.drs
    return BalancingConfig(
        is_enabled=settings.enabled,
        interval_s=settings.interval_s,
        automation=settings.automation,
        max_concurrent_moves=settings.max_concurrent_moves,
        planner=BalanceConfig(
            cpu_threshold_percent=settings.cpu_threshold_percent,
            memory_threshold_percent=settings.memory_threshold_percent,
            min_gain_points=settings.min_gain_points,
            min_difference_points=settings.min_difference_points,
            hysteresis_points=settings.hysteresis_points,
            max_moves=settings.max_moves,
            hold_s=settings.hold_s,
            node_cool_down_s=settings.node_cool_down_s,
            cluster_cool_down_s=settings.cluster_cool_down_s,
            headroom_failures=headroom_failures(config),
        ),
    )


def headroom_failures(config: ControlPlaneConfig) -> int:
    """How many nodes may fail with room for all their VMs that no move takes away: as admission has it, if not said."""
    if config.drs.headroom_failures is not None:
        return config.drs.headroom_failures
    admission = config.ha.admission
    return admission.failures if admission.policy is AdmissionPolicy.FAILURES else 1


def has_second_place(config: ControlPlaneConfig) -> bool:
    """Whether every process that may fence nodes publishes that where all others read it, beside the database.

    Without a coordination service that is so where there is one process only: on PostgreSQL there may be others, which
    publish to nobody but themselves.
    """
    return config.coordination.backend is not Backend.LOCAL or config.database.url.startswith("sqlite")
