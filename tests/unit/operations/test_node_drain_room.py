"""A drain leaves room for VMs of nodes that fail, or says so before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.domain.admission import KeptRoom
from controlplane.domain.node import Phase
from controlplane.domain.operation import OperationFilter
from controlplane.scheduler.plan import SchedulerConfig
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.draining import DrainWorld, drain, drain_world, other_node

KEEPING = SchedulerConfig(kept_room=KeptRoom(failures=1))
PROTECTED = VmSpec(cpu=CpuConfig(cores=4), memory=MemoryConfig(size_mib=128), ha_policy=HaPolicy(auto_restart=True))


async def protected_vms(world: DrainWorld) -> None:
    """Have three nodes of 16 vCPUs with 8 claimed on each: any may fail, but no two."""
    for hostname in ("h1", "h2"):
        await other_node(world, hostname=hostname)
    for number in range(6):
        await world.create(f"vm-{number}", spec=PROTECTED)


async def test_drain_that_takes_the_room_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with drain_world(tmp_path, KEEPING) as world:
        await protected_vms(world)

        with pytest.raises(FailedPrecondition, match=r"once node source were drained, if h[12] failed") as caught:
            await drain(world)

        assert caught.value.reason == Reason.NO_FAILOVER_ROOM
        assert "keeps room for 1 failed node" in caught.value.message
        assert (await world.node(world.source.id)).phase == Phase.READY
        assert not (await world.desk.list(OperationFilter(kinds=frozenset({"node.drain"})), None, 10)).items


async def test_drain_by_force_is_carried_out_all_the_same(tmp_path: Path) -> None:
    async with drain_world(tmp_path, KEEPING) as world:
        await protected_vms(world)

        told = await drain(world, force=True)

        assert told.node.status.phase == Phase.MAINTENANCE


async def test_drain_is_allowed_once_there_is_another_node(tmp_path: Path) -> None:
    async with drain_world(tmp_path, KEEPING) as world:
        await protected_vms(world)
        await other_node(world, hostname="h3")

        told = await drain(world)

        assert told.node.status.phase == Phase.MAINTENANCE
        assert not told.failures
