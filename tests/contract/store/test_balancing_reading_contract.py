"""What a balancing run sees, on every kind of database: migrations under way, nodes that are down, measured costs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from controlplane.domain.migration import Migration
from controlplane.domain.node import Node, Phase
from controlplane.services.balancing_costs import HostMeter
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Reason, Unavailable
from limiquantix.node.v1.node_daemon_pb2 import MigrationForecast, MigrationForecastRequest
from tests.support.balancing_scene import PLANNER, Scene
from tests.support.builders import GIB, make_id

SILENT = Unavailable(Reason.NODE_UNREACHABLE, "the host does not answer")


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


@dataclass
class Hosts:
    """Daemons that measure VMs, fail or do not answer, as the test says; `asked` has the ids of VMs."""

    answer: MigrationForecast | Exception | None
    asked: list[str] = field(default_factory=list)

    def daemon(self, node: Node, epoch: int = 0) -> Any:
        return self

    async def forecast_migration(self, request: MigrationForecastRequest) -> MigrationForecast:
        self.asked.append(request.vm_id)
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


@dataclass
class Meter:
    """Measures as a set of hosts does."""

    hosts: Hosts

    async def measure(self, places: Sequence[tuple[str, Node]]) -> Mapping[str, MigrationForecast]:
        return await HostMeter(self.hosts, patience_s=0.2).measure(places)


@pytest.mark.parametrize("settled", [False, True])
async def test_vm_whose_migration_is_not_settled_is_held(scene: Scene, settled: bool) -> None:
    busy, idle, vms = await scene.busy_and_idle()
    free, *others = vms
    for vm in others:
        migration = Migration(vm.id, make_id(), busy.id, idle.id, scene.clock(), is_settled=settled)
        await scene.store.run(partial(_put, migration=migration))

    outcome = await scene.service.run()

    recommended = {each.vm_id for each in outcome.recommendations}
    assert bool(recommended - {free.id}) == settled
    if not settled:
        assert recommended == {free.id}
        assert "5 VMs held back" in outcome.message


@pytest.mark.parametrize("phase", [Phase.READY, Phase.NOT_READY])
async def test_vms_of_a_silent_node_keep_their_room(scene: Scene, phase: Phase.ValueType) -> None:
    await scene.busy_and_idle()
    third = await scene.add_node("third", memory_bytes=64 * GIB)
    await scene.add_vm(third, "large", memory_mib=60 * 1024)
    await scene.store.run(lambda tx: tx.update_node(replace(third, phase=phase)))
    await scene.measure(third, 36.0, 90.0)
    scene.configure(planner=replace(PLANNER, headroom_failures=0))

    outcome = await scene.service.run()

    if phase == Phase.READY:
        assert outcome.recommendations
        return
    # Only the idle node has room for the large VM if that has to be started again.
    assert outcome.recommendations == []
    assert "take away the room" in outcome.message


async def test_alert_says_that_vms_of_a_silent_node_have_no_room(scene: Scene) -> None:
    for name in ("one", "two", "three"):
        node = await scene.add_node(name, memory_bytes=16 * GIB)
        await scene.add_vm(node, name, memory_mib=12 * 1024)
    await scene.store.run(lambda tx: tx.update_node(replace(node, phase=Phase.NOT_READY)))

    await scene.watch.look()

    alerts = await scene.store.read(lambda tx: tx.open_alerts("cluster.no_headroom"))
    assert [each.message for each in alerts] == [
        "VMs of nodes that are silent or being emptied have no room on the 2 others; "
        "bring these nodes back, add one, or remove VMs"
    ]


async def test_costs_are_those_that_the_host_measured(scene: Scene) -> None:
    plain = (await _busy(scene, None)).recommendations
    hosts = Hosts(MigrationForecast(memory_bytes=3 * GIB, dirty_bytes_per_sec=50_000_000, disk_bytes=GIB))
    measured = (await _busy(scene, hosts)).recommendations

    assert [each.id for each in measured] == [each.id for each in plain]
    assert sorted(hosts.asked) == sorted(each.vm_id for each in measured)
    for each, before in zip(measured, plain, strict=True):
        assert (each.cost_memory_bytes, each.cost_dirty_bytes_per_s) == (3 * GIB, 50_000_000)
        assert each.cost_duration_ms != before.cost_duration_ms
        assert (before.cost_memory_bytes, before.cost_dirty_bytes_per_s) == (8 * GIB, 0)


@pytest.mark.parametrize("answer", [SILENT, None])
async def test_hosts_that_do_not_measure_leave_the_estimates(scene: Scene, answer: Exception | None) -> None:
    hosts = Hosts(answer)

    made = (await _busy(scene, hosts)).recommendations

    assert made
    assert hosts.asked
    assert {(each.cost_memory_bytes, each.cost_dirty_bytes_per_s) for each in made} == {(8 * GIB, 0)}


async def _put(tx: Transaction, migration: Migration) -> None:
    await tx.put_migration(migration)


async def _busy(scene: Scene, hosts: Hosts | None) -> Any:
    if not await scene.store.read(lambda tx: tx.all_nodes()):
        await scene.busy_and_idle()
    scene.configure(meter=None if hosts is None else Meter(hosts))
    return await scene.service.run()
