"""What a migration will take, from what both hosts say."""

from __future__ import annotations

from dataclasses import replace

from controlplane.domain.migration import MigrationRules, MigrationWish
from controlplane.domain.migration_forecast import Load, forecast
from controlplane.domain.migration_rules import bandwidth_between, way_of
from controlplane.domain.vm import PowerState
from controlplane.operations.migration_hosts import Hosts
from limiquantix.compute.v1.vm_service_pb2 import MigrationPrediction
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


def predict(
    hosts: Hosts, wish: MigrationWish, rules: MigrationRules, measured: node_v1.MigrationForecast | None
) -> MigrationPrediction:
    """Work out what a migration will take, from what the source measured; without that, from the VM's size."""
    vm, runs = hosts.vm, hosts.migration.ran
    memory_bytes, dirty, disk_bytes = vm.memory_bytes if runs else 0, 0, 0
    if measured is not None:
        memory_bytes = measured.memory_bytes if runs else 0
        dirty, disk_bytes = measured.dirty_bytes_per_sec, measured.disk_bytes
    load = Load(memory_bytes, dirty, disk_bytes if hosts.migration.copies_disks else 0)
    carried_mbps = bandwidth_between(hosts.source_node, hosts.target_node, rules.bandwidth_mbps)
    way = way_of(vm.spec.migration, wish, carried_mbps)
    if vm.power_state == PowerState.PAUSED:
        load = replace(load, dirty_bytes_per_s=0)  # it stands still already
    expected = forecast(load, way)
    prediction = MigrationPrediction(
        target_node_id=hosts.migration.target_node_id,
        duration_ms=expected.duration_ms,
        downtime_ms=expected.downtime_ms,
        memory_bytes=load.memory_bytes,
        disk_bytes=load.disk_bytes,
        dirty_bytes_per_sec=load.dirty_bytes_per_s,
        bandwidth_bytes_per_sec=way.bandwidth_bytes_per_s,
        converges=expected.converges,
        ends=expected.ends,
        pass_count=expected.pass_count,
    )
    for name, other in (
        ("auto-converge", replace(way, auto_converge=True, post_copy=False)),
        ("post-copy", replace(way, post_copy=True)),
    ):
        if expected.converges or other == way:
            continue
        would = forecast(load, other)
        prediction.alternatives.add(
            name=name, duration_ms=would.duration_ms, downtime_ms=would.downtime_ms, ends=would.ends
        )
    return prediction
