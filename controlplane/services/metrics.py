"""What VMs and nodes use, as their hosts measure it now; nothing of it is stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from controlplane.domain import errors
from controlplane.domain.node import Node
from controlplane.domain.vm import PowerState, Vm
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.services.vm_calls import required
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import DiskUsage, NicUsage, ResourceUsage
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

DEFAULT_INTERVAL_S: Final = 5

_SHARED_FIELDS: Final = (
    *("cpu_usage_percent", "memory_used_bytes", "disk_read_bytes", "disk_write_bytes"),
    *("network_rx_bytes", "network_tx_bytes", "network_rx_packets", "network_tx_packets"),
    *("disk_read_bytes_per_sec", "disk_write_bytes_per_sec", "network_rx_bytes_per_sec", "network_tx_bytes_per_sec"),
)


@dataclass(frozen=True, slots=True)
class MetricsService:
    """The use cases of measuring."""

    store: Store
    feeds: MetricsFeeds

    async def vm(self, request: vm_api.StreamMetricsRequest) -> AsyncGenerator[ResourceUsage, None]:
        """Give what a VM uses, again and again; of one that is off, what is allocated to it.

        A VM that moves is followed to its new node.

        Raises:
            NotFound: there is none of that id, or no longer.
            FailedPrecondition: it is on no node.
            Unavailable: its node does not answer.
        """
        interval_s = request.interval_sec or DEFAULT_INTERVAL_S
        while True:
            vm, node = await self.store.read(lambda tx: _vm_and_node(tx, request.vm_id))
            async with aclosing(self.feeds.watch(node, interval_s)) as measures:
                async for metrics in measures:
                    measured = next((each for each in metrics.vms if each.vm_id == vm.id), None)
                    if measured is None:
                        vm, there = await self.store.read(lambda tx: _vm_and_node(tx, request.vm_id))
                        if there.id != node.id:
                            break
                        yield ResourceUsage(memory_allocated_bytes=vm.memory_bytes, sampled_at=metrics.timestamp)
                    else:
                        yield resource_usage(measured.usage, vm.memory_bytes)

    async def node(self, request: node_api.GetNodeMetricsRequest) -> node_api.NodeMetrics:
        """Measure a node once.

        Raises:
            NotFound: there is none of that id.
            Unavailable: it does not answer.
        """
        async with aclosing(self._of_node(request.id, DEFAULT_INTERVAL_S)) as measures:
            return await anext(measures)

    def nodes(self, request: node_api.StreamNodeMetricsRequest) -> AsyncGenerator[node_api.NodeMetrics, None]:
        """Measure a node again and again; errors are those of `node`."""
        return self._of_node(request.node_id, request.interval_sec or DEFAULT_INTERVAL_S)

    async def _of_node(self, node_id: str, interval_s: int) -> AsyncGenerator[node_api.NodeMetrics, None]:
        node, _ = await self.store.read(lambda tx: _node_and_states(tx, node_id))
        async with aclosing(self.feeds.watch(node, interval_s)) as measures:
            async for metrics in measures:
                yield node_metrics(*await self.store.read(lambda tx: _node_and_states(tx, node_id)), metrics)


async def _vm_and_node(tx: Transaction, vm_id: str) -> tuple[Vm, Node]:
    vm = await required(tx, vm_id)
    node = await tx.get_node(vm.node_id) if vm.node_id else None
    if node is None:
        raise errors.vm_not_placed(vm.id)
    return vm, node


async def _node_and_states(tx: Transaction, node_id: str) -> tuple[Node, Sequence[PowerState.ValueType]]:
    node = await tx.get_node(node_id)
    if node is None:
        raise errors.node_not_found(node_id)
    return node, list((await tx.power_states_on_node(node_id)).values())


def resource_usage(usage: node_v1.ResourceUsage, allocated_bytes: int) -> ResourceUsage:
    """Say what a host measured of a VM in the API's words."""
    return ResourceUsage(
        **{name: getattr(usage, name) for name in _SHARED_FIELDS},
        memory_allocated_bytes=allocated_bytes,
        disk_read_iops=usage.disk_read_count,
        disk_write_iops=usage.disk_write_count,
        disks=[
            DiskUsage(
                disk_id=disk.disk_id,
                target=disk.target,
                read_bytes=disk.read_bytes,
                write_bytes=disk.write_bytes,
                read_count=disk.read_count,
                write_count=disk.write_count,
            )
            for disk in usage.disks
        ],
        nics=[
            NicUsage(
                nic_id=nic.nic_id,
                mac_address=nic.mac_address,
                rx_bytes=nic.rx_bytes,
                tx_bytes=nic.tx_bytes,
                rx_packets=nic.rx_packets,
                tx_packets=nic.tx_packets,
                rx_errors=nic.rx_errors,
                tx_errors=nic.tx_errors,
            )
            for nic in usage.nics
        ],
        sampled_at=usage.sampled_at,
    )


def node_metrics(
    node: Node, states: Sequence[PowerState.ValueType], measured: node_v1.NodeMetrics
) -> node_api.NodeMetrics:
    """Put what a host measured beside what is promised on it.

    Traffic is that of its physical interfaces, which all traffic that leaves it passes once; of all, if it has none.
    """
    nics = [nic for nic in measured.networks if nic.is_physical] or list(measured.networks)
    return node_api.NodeMetrics(
        node_id=node.id,
        cpu_usage_percent=measured.cpu_usage_percent,
        cpu_cores_total=node.spec.cpu.total_threads,
        cpu_cores_allocated=node.allocated.vcpus,
        memory_total_bytes=measured.memory_total_bytes,
        memory_used_bytes=measured.memory_used_bytes,
        memory_allocated_bytes=node.allocated.memory_bytes,
        memory_available_bytes=measured.memory_available_bytes,
        storage_total_bytes=measured.storage_total_bytes,
        storage_used_bytes=measured.storage_used_bytes,
        network_rx_bytes=sum(nic.rx_bytes for nic in nics),
        network_tx_bytes=sum(nic.tx_bytes for nic in nics),
        network_rx_errors=sum(nic.rx_errors for nic in nics),
        network_tx_errors=sum(nic.tx_errors for nic in nics),
        vm_count=len(states),
        vm_running_count=sum(state == PowerState.RUNNING for state in states),
        load_1m=measured.load_1m,
        load_5m=measured.load_5m,
        load_15m=measured.load_15m,
        vms=[
            node_api.VMMetrics(
                vm_id=vm.vm_id, name=vm.name, usage=resource_usage(vm.usage, vm.usage.memory_total_bytes)
            )
            for vm in measured.vms
        ],
        sampled_at=measured.timestamp,
        vms_error=measured.vms_error,
    )
