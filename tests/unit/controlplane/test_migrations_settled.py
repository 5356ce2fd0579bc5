"""Migrations of which nobody can say how they ended, and those whose process died: settled without being asked for."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState
from controlplane.operations.steps import Outcome, OwnershipLost, Run
from controlplane.operations.vm_migration import HandOverStep, PrepareStep
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import ApiError, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.control_plane_world import HASTY, World
from tests.support.fake_daemons import FakeDaemon, unreachable
from tests.support.migration_cluster import (
    NOTHING,
    SIZE,
    Cluster,
    assert_fault,
    cluster_of,
    until,
)

RUNNING, UNSETTLED = node_v1.POWER_STATE_RUNNING, node_v1.MIGRATION_PHASE_UNSETTLED


@pytest.fixture
async def cluster(world: World) -> Cluster:
    return await cluster_of(world)


# -- nobody can say


async def unsettled(cluster: Cluster) -> Operation:
    """Have both hosts fall silent while it is sent, until the operation has given up."""
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    cluster.here.fail("*", unreachable())
    cluster.there.fail("*", unreachable())
    ended = await cluster.ended(operation)
    assert_fault(ended, Reason.MIGRATION_UNSETTLED, "source SILENT, target SILENT")
    vm = await cluster.stored()
    assert (vm.node_id, vm.power_state) == (cluster.source.id, PowerState.UNKNOWN)
    assert await cluster.claims() == (SIZE, SIZE)
    with pytest.raises(ApiError):
        await cluster.world.vms.start(cluster.vm.id)
    return ended


async def heal(cluster: Cluster, *reporting: str) -> None:
    cluster.here.heal()
    cluster.there.heal()
    for node_id in reporting or (cluster.source.id, cluster.target.id):
        await cluster.world.report_everything(node_id)
        await cluster.world.settle()


async def test_unsettled_vm_that_arrived_is_moved_when_the_hosts_are_back(cluster: Cluster) -> None:
    await unsettled(cluster)
    cluster.here.hold("transfer").release()
    await until(lambda: cluster.vm.id not in cluster.here.vms)
    await heal(cluster, cluster.source.id)
    vm = await cluster.stored()
    assert (vm.node_id, vm.power_state) == (cluster.target.id, PowerState.RUNNING)
    assert await cluster.claims() == (NOTHING, SIZE)
    assert await cluster.left() is None


async def test_unsettled_vm_that_stayed_is_put_back_when_the_hosts_are_back(cluster: Cluster) -> None:
    operation = await unsettled(cluster)
    cluster.here.migration_fault = "the target was away"
    cluster.here.hold("transfer").release()
    await until(lambda: cluster.vm.id not in cluster.there.vms)
    await heal(cluster, cluster.target.id)
    await cluster.assert_at_source(operation)
    assert (await cluster.stored()).error_message == ""


async def test_guest_that_ended_where_it_came_to_is_not_left_waiting_for_a_person(cluster: Cluster) -> None:
    cluster.here.hold("switch")
    operation = await cluster.begin()
    await until(lambda: cluster.vm.id in cluster.there.vms and cluster.there.vms[cluster.vm.id].state == RUNNING)
    cluster.here.sending[cluster.vm.id].phase = UNSETTLED  # the connection broke; it stands still, and knows no more
    cluster.there.set_state(cluster.vm.id, node_v1.POWER_STATE_CRASHED)
    await cluster.ended(operation)
    vm = await cluster.stored()
    assert (vm.node_id, vm.power_state) == (cluster.target.id, PowerState.CRASHED)
    assert cluster.vm.id not in cluster.here.vms


async def test_guest_that_ended_where_it_came_to_is_settled_when_the_hosts_are_back(cluster: Cluster) -> None:
    await unsettled(cluster)
    cluster.here.hold("switch")
    cluster.here.hold("transfer").release()
    await until(lambda: cluster.vm.id in cluster.there.vms and cluster.there.vms[cluster.vm.id].state == RUNNING)
    cluster.here.sending[cluster.vm.id].phase = UNSETTLED
    cluster.there.set_state(cluster.vm.id, node_v1.POWER_STATE_CRASHED)
    await heal(cluster)
    vm = await cluster.stored()
    assert (vm.node_id, vm.power_state) == (cluster.target.id, PowerState.CRASHED)
    assert cluster.vm.id not in cluster.here.vms
    assert await cluster.left() is None


async def test_unsettled_vm_that_neither_host_has_is_lost(cluster: Cluster) -> None:
    await unsettled(cluster)
    cluster.here.hold("transfer").release()
    await until(lambda: cluster.vm.id not in cluster.here.vms)
    cluster.there.vms.clear()
    await heal(cluster)
    assert (await cluster.stored()).power_state == PowerState.LOST
    assert await cluster.claims() == (SIZE, NOTHING)


async def test_unsettled_vm_that_is_deleted_gives_both_claims_back(cluster: Cluster) -> None:
    await unsettled(cluster)
    cluster.here.heal()
    await cluster.world.vms.delete(api.DeleteVMRequest(id=cluster.vm.id, force=True))
    assert await cluster.claims() == (NOTHING, NOTHING)
    assert await cluster.left() is None


async def test_nothing_is_lost_or_a_conflict_while_it_is_unsettled(cluster: Cluster) -> None:
    await unsettled(cluster)
    cluster.here.hold("transfer").release()
    await until(lambda: cluster.vm.id not in cluster.here.vms)
    await cluster.world.report_everything(cluster.source.id)
    await cluster.world.report_everything(cluster.target.id)
    await cluster.world.settle()
    vm = await cluster.stored()
    assert (vm.power_state, vm.sightings) == (PowerState.UNKNOWN, {})


# -- the process dies


@pytest.mark.parametrize(
    ("host", "method"),
    [
        ("here", "forecast_migration"),
        ("there", "prepare_migration"),
        ("there", "receive_migration"),
        ("here", "migrate_vm"),
        ("here", "transfer"),
        ("here", "switch"),
        ("there", "end_migration"),
        ("here", "end_migration"),
    ],
)
async def test_another_process_goes_on_with_it(cluster: Cluster, host: str, method: str) -> None:
    daemon: FakeDaemon = getattr(cluster, host)
    gate = daemon.hold(method)
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    await cluster.world.crash()
    gate.release()
    await cluster.world.take_over()
    await cluster.assert_at_target(await cluster.ended(operation))


async def test_cancelled_one_whose_process_died_is_cancelled_by_the_next(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    await cluster.world.worker.abandon()
    await cluster.world.desk.cancel(operation.id, "ann")
    await cluster.world.crash()
    await cluster.world.take_over()
    ended = await cluster.ended(operation)
    assert ended.state == OperationState.CANCELLED
    await cluster.assert_at_source(ended)


async def test_slow_process_whose_migration_another_one_ended_stops_without_a_defect(cluster: Cluster) -> None:
    gate = cluster.here.hold("end_migration")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    world = cluster.world
    run = Run(await world.desk.get(operation.id), world.store, world.daemons, world.clock)
    gate.release()
    await cluster.ended(operation)
    for step in (PrepareStep(HASTY), HandOverStep(HASTY)):
        with pytest.raises(OwnershipLost):
            await cluster.world.store.run(lambda tx, step=step: step.record(tx, run, Outcome()))  # type: ignore[misc]
