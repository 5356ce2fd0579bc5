"""What moving a VM takes: by its size, and for the few VMs of a plan as their hosts measure them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from controlplane.daemons.migration_calls import MigrationCalls
from controlplane.domain import migration_rules
from controlplane.domain.migration import MigrationWish
from controlplane.domain.migration_forecast import Load, forecast
from controlplane.domain.node import Node
from controlplane.domain.vm import Vm
from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2 import MigrationForecast, MigrationForecastRequest

_log = structlog.get_logger(__name__)

_MAX_MEASURED: Final = 100
"""Of a longer plan, the first ones; each takes a host a second."""
_ASKED_AT_ONCE: Final = 16
_SAMPLE_S: Final = 1
_PATIENCE_S: Final = 10.0
"""For all of them together."""


class Daemons(Protocol):
    """Where the daemons of nodes are found."""

    def daemon(self, node: Node) -> MigrationCalls:
        """Give the one of a node."""
        ...


class MoveMeter(Protocol):
    """Where it is measured what has to be carried."""

    async def measure(self, places: Sequence[tuple[str, Node]]) -> Mapping[str, MigrationForecast]:
        """Measure VMs, each with its node, by VM id; what cannot be measured in time is left out."""
        ...


class HostMeter:
    """Asks the hosts that the VMs run on."""

    def __init__(self, daemons: Daemons, patience_s: float = _PATIENCE_S) -> None:
        self._daemons = daemons
        self._patience_s = patience_s

    async def measure(self, places: Sequence[tuple[str, Node]]) -> Mapping[str, MigrationForecast]:
        """Measure them, some at once."""
        found: dict[str, MigrationForecast] = {}
        turn = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(vm_id: str, node: Node) -> None:
            request = MigrationForecastRequest(vm_id=vm_id, sample_sec=_SAMPLE_S)
            async with turn:
                try:
                    found[vm_id] = await self._daemons.daemon(node).forecast_migration(request)
                except ApiError as error:
                    _log.info("move_not_measured", vm_id=vm_id, node_id=node.id, reason=error.reason)

        try:
            async with asyncio.timeout(self._patience_s):
                await asyncio.gather(*(ask(vm_id, node) for vm_id, node in places[:_MAX_MEASURED]))
        except TimeoutError:
            _log.info("moves_not_measured_in_time", measured_count=len(found), asked_count=len(places))
        return dict(found)


@dataclass(frozen=True, slots=True)
class MoveCost:
    """What one move takes; `dirty_bytes_per_s` is 0 where it was not measured."""

    moved_bytes: int
    dirty_bytes_per_s: int
    expected_s: float


def cost_of(
    vm: Vm, node: Node, default_bandwidth_mbps: int, *, copies_disks: bool, measured: MigrationForecast | None = None
) -> MoveCost:
    """Predict a move from the node, by what was measured if anything was."""
    memory_bytes, dirty_bytes_per_s = vm.memory_bytes, 0
    disk_bytes = sum(disk.size_gib for disk in vm.spec.disks) * 2**30 if copies_disks else 0
    if measured is not None:
        memory_bytes = measured.memory_bytes or memory_bytes
        dirty_bytes_per_s = measured.dirty_bytes_per_sec
        disk_bytes = (measured.disk_bytes or disk_bytes) if copies_disks else 0
    bandwidth_mbps = max((card.speed_mbps for card in node.spec.network), default=0) or default_bandwidth_mbps
    way = migration_rules.way_of(vm.spec.migration, MigrationWish(), bandwidth_mbps)
    took = forecast(Load(memory_bytes, dirty_bytes_per_s, disk_bytes), way)
    return MoveCost(memory_bytes + disk_bytes, dirty_bytes_per_s, took.duration_ms / 1000)
