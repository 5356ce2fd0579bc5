"""Migrations: where the VM is afterwards, what it claims where, and what is left on both hosts, whatever goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Capacity
from controlplane.domain.operation import OperationState
from controlplane.domain.vm import PowerState
from controlplane.operations.desk import Caller
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, MigrationConfig, VmSpec
from limiquantix.errors import ApiError, Code, FailedPrecondition, Reason
from tests.support.builders import make_id
from tests.support.control_plane_world import HASTY, World
from tests.support.fake_daemons import unreachable
from tests.support.fences import opened, proven, written
from tests.support.migration_cluster import (
    HERE,
    NOTHING,
    SIZE,
    THERE,
    Cluster,
    assert_fault,
    cluster_of,
    node_spec,
    until,
)


@pytest.fixture
async def world(world: World) -> World:
    """A process that asks hosts which fall silent for as long as they do, however slow the machine is."""
    world.migration_rules = dataclasses.replace(HASTY, patience_s=600.0)
    world.restart()
    return world


@pytest.fixture
async def cluster(world: World) -> Cluster:
    return await cluster_of(world)


# -- it moves


async def test_vm_moves_with_its_claim_and_nothing_is_left(cluster: Cluster) -> None:
    operation = await cluster.migrate()
    await cluster.assert_at_target(operation)
    assert [(each.role, each.moved) for each in cluster.here.ended] == [(HERE, True)]
    assert [(each.role, each.moved) for each in cluster.there.ended] == [(THERE, True)]


async def test_answer_has_measures_and_what_was_expected(cluster: Cluster) -> None:
    request = api.MigrateVMRequest(vm_id=cluster.vm.id, target_node_id=cluster.target.id, live=True)
    answer = await cluster.world.migrations.migrate(request)
    assert answer.vm.status.node_id == cluster.target.id
    assert (answer.stats.downtime_ms, answer.stats.bytes_transferred) == (42, 100 * 2**20)
    assert answer.forecast.memory_bytes == 128 * 2**20
    assert answer.forecast.dirty_bytes_per_sec == 2**20
    assert answer.forecast.converges
    assert answer.forecast.duration_ms > 1000


async def test_forecast_alone_moves_and_claims_nothing(cluster: Cluster) -> None:
    request = api.MigrateVMRequest(vm_id=cluster.vm.id, target_node_id=cluster.target.id, live=True, validate_only=True)
    answer = await cluster.world.migrations.migrate(request)
    assert answer.forecast.target_node_id == cluster.target.id
    assert await cluster.claims() == (SIZE, NOTHING)
    assert cluster.there.calls == []


async def test_vm_of_a_host_that_is_proven_dead_is_not_moved_by_people_who_are_told_what_to_wait_for(
    world: World,
) -> None:
    cluster = await cluster_of(world, start=False)
    await written(world.store, proven(await opened(world.store, cluster.source.id)))
    operation = await cluster.migrate(live=False)
    assert_fault(operation, Reason.NODE_FENCED, "others when you start them")
    assert await cluster.claims() == (SIZE, NOTHING)
    assert cluster.there.calls == []


async def test_settings_of_the_vm_hold_where_the_wish_says_nothing(world: World) -> None:
    spec = VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=128),
        migration=MigrationConfig(allow_migration=True, max_downtime_ms=70, bandwidth_mbps=90, post_copy=True),
    )
    cluster = await cluster_of(world, spec=spec)
    await cluster.migrate(post_copy=False, max_downtime_ms=80)
    (sent,) = cluster.here.sent_requests
    assert (sent.max_downtime_ms, sent.bandwidth_mbps, sent.post_copy, sent.live) == (80, 90, False, True)
    assert (sent.target_node_uri, sent.target_places.storage_root) == (cluster.there.uri, "/there")


async def test_vm_that_is_off_moves_too(world: World) -> None:
    cluster = await cluster_of(world, start=False)
    await cluster.assert_at_target(await cluster.migrate(live=False), PowerState.STOPPED)


async def test_disks_are_copied_where_no_storage_is_shared(world: World) -> None:
    cluster = await cluster_of(world, target=node_spec(storage=make_id()))
    await cluster.assert_at_target(await cluster.migrate())
    (sent,) = cluster.here.sent_requests
    assert sent.storage


async def test_it_is_shown_as_migrating_meanwhile_and_reports_change_nothing(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    assert (await cluster.stored()).power_state == PowerState.MIGRATING
    await cluster.world.report_everything(cluster.source.id)
    await cluster.world.report_everything(cluster.target.id)
    vm = await cluster.stored()
    assert (vm.power_state, vm.sightings) == (PowerState.MIGRATING, {})
    gate.release()
    await cluster.assert_at_target(await cluster.ended(operation))


async def test_second_migration_waits_and_is_refused_when_the_vm_has_moved(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    first = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    second = await cluster.begin()
    assert second.state == OperationState.QUEUED
    gate.release()
    assert_fault(await cluster.ended(second), Reason.MIGRATION_REFUSED)
    await cluster.assert_at_target(await cluster.ended(first))


# -- it is refused


REFUSED: dict[str, tuple[Callable[[VmSpec], object], str]] = {
    "not allowed": (lambda spec: spec.migration.SetInParent(), "allow_migration"),
    "pci device": (lambda spec: spec.pci_devices.add(), "1 PCI"),
    "usb device": (lambda spec: spec.usb_devices.add(), "1 USB"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_vm_that_is_tied_to_its_host_is_refused_before_anything_is_touched(cluster: Cluster, case: str) -> None:
    change, words = REFUSED[case]
    vm = await cluster.stored()
    spec = VmSpec()
    spec.CopyFrom(vm.spec)
    change(spec)
    await cluster.world.store.run(lambda tx: tx.update_vm(dataclasses.replace(vm, spec=spec)))
    with pytest.raises(ApiError) as refusal:
        await cluster.begin()
    assert (refusal.value.code, refusal.value.reason) == (Code.FAILED_PRECONDITION, Reason.MIGRATION_REFUSED)
    assert words in refusal.value.message
    assert cluster.there.calls == []


async def test_same_node_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="already") as refusal:
        await cluster.begin(target_node_id=cluster.source.id)
    assert refusal.value.reason == Reason.MIGRATION_REFUSED


async def test_suspended_vm_is_refused(cluster: Cluster) -> None:
    await cluster.world.vms.suspend(cluster.vm.id)
    with pytest.raises(ApiError, match="saved to disk"):
        await cluster.begin()


async def test_node_without_support_is_refused_and_keeps_no_claim(world: World) -> None:
    cluster = await cluster_of(world, target=node_spec(migrates=False))
    operation = await cluster.migrate()
    assert_fault(operation, Reason.MIGRATION_REFUSED, "does not support migration")
    await cluster.assert_at_source(operation)


async def test_shared_storage_only_is_refused_where_none_is_shared(world: World) -> None:
    cluster = await cluster_of(world, target=node_spec(storage=make_id()))
    operation = await cluster.migrate(shared_storage_only=True)
    assert_fault(operation, Reason.MIGRATION_REFUSED, "share no storage")
    await cluster.assert_at_source(operation)


async def test_full_target_is_refused(world: World) -> None:
    cluster = await cluster_of(world)
    await world.store.run(lambda tx: tx.occupy(cluster.target.id, Capacity(16, 0)))
    operation = await cluster.migrate()
    assert_fault(operation, Reason.NO_NODE_FITS)
    assert (await cluster.stored()).power_state == PowerState.RUNNING


# -- it fails


@pytest.mark.parametrize("method", ["prepare_migration", "receive_migration"])
async def test_target_that_refuses_keeps_nothing(cluster: Cluster, method: str) -> None:
    cluster.there.fail(method, FailedPrecondition(Reason.HOST_LACKS, "no such CPU here"))
    operation = await cluster.migrate()
    assert_fault(operation, Reason.HOST_LACKS)
    await cluster.assert_at_source(operation)


async def test_failed_transfer_leaves_it_running_at_the_source(cluster: Cluster) -> None:
    cluster.here.migration_fault = "the network went away"
    operation = await cluster.migrate()
    assert_fault(operation, Reason.MIGRATION_FAILED, "the network went away")
    await cluster.assert_at_source(operation)
    assert [(each.role, each.moved) for each in cluster.there.ended] == [(THERE, False)]


async def test_broken_stream_does_not_end_it(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    cluster.here.fail("migration_stream", unreachable())
    await asyncio.sleep(0.1)
    gate.release()
    await cluster.assert_at_target(await cluster.ended(operation))


async def test_silent_source_is_waited_for(world: World) -> None:
    world.migration_rules = dataclasses.replace(HASTY, patience_s=600.0, confirmation_s=600.0)
    world.restart()
    cluster = await cluster_of(world)
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    cluster.here.fail("*", unreachable(), times=8)
    gate.release()
    await cluster.assert_at_target(await cluster.ended(operation))


async def test_target_that_dies_leaves_it_at_the_source_and_is_tidied_up_later(cluster: Cluster) -> None:
    cluster.here.migration_fault = "the target is gone"
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    cluster.there.fail("*", unreachable())
    gate.release()
    assert_fault(await cluster.ended(operation), Reason.MIGRATION_FAILED, "the target is gone")
    vm = await cluster.stored()
    assert (vm.node_id, vm.power_state) == (cluster.source.id, PowerState.RUNNING)
    assert await cluster.claims() == (SIZE, NOTHING)
    assert cluster.vm.id in cluster.there.prepared
    cluster.there.heal()
    await cluster.world.report_everything(cluster.target.id)
    await cluster.world.settle()
    assert cluster.vm.id not in cluster.there.prepared
    await cluster.assert_at_source(operation)


async def test_cancelled_one_stays_and_runs(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    await cluster.world.desk.cancel(operation.id, "ann")
    ended = await cluster.ended(operation)
    assert ended.state == OperationState.CANCELLED
    assert_fault(ended, Reason.OPERATION_CANCELLED, "ann asked for it")
    await cluster.assert_at_source(ended)


async def test_cancellation_that_comes_too_late_lets_it_arrive(cluster: Cluster) -> None:
    gate = cluster.here.hold("transfer")
    operation = await cluster.begin()
    await asyncio.wait_for(gate.entered.wait(), 60)
    cluster.here.sending[cluster.vm.id].is_post_copy = True
    await cluster.world.desk.cancel(operation.id, "ann")
    await until(lambda: "cancel_migration" in cluster.here.methods(cluster.vm.id))
    gate.release()
    await cluster.assert_at_target(await cluster.ended(operation))


async def test_host_that_cannot_tidy_does_not_fail_it_and_is_tidied_up_later(cluster: Cluster) -> None:
    cluster.here.fail("end_migration", unreachable())
    operation = await cluster.migrate()
    assert operation.state == OperationState.SUCCEEDED
    left = await cluster.left()
    assert left is not None
    assert left.is_settled
    cluster.here.heal()
    await cluster.world.report_everything(cluster.source.id)
    await cluster.world.settle()
    await cluster.assert_at_target(operation)


# -- how many at once


async def test_no_more_go_at_once_than_their_nodes_carry(world: World) -> None:
    source = await world.add_node(spec=node_spec())
    vms = [await world.create(f"vm-{number}", start=True) for number in range(5)]
    target = await world.add_node(spec=node_spec())
    gate = world.daemons.of(source.id).hold("transfer")
    wish = MigrationWish(target_node_id=target.id)
    operations = [await world.migrations.start(vm.id, wish, Caller()) for vm in vms]

    expected = [
        "a free slot",
        "its turn among the migrations: 1 before it",
        "its turn among the migrations: 2 before it",
    ]

    async def waiting() -> None:
        async with asyncio.timeout(60):
            while True:
                texts = {(await world.desk.get(each.id)).waiting_for for each in operations}
                waits = sorted(text for text in texts if "turn" in text or "slot" in text)
                if waits == expected:
                    return
                await asyncio.sleep(0.01)

    await waiting()
    assert len(world.daemons.of(source.id).sending) == 2
    gate.release()
    ended = [await world.desk.ended(each.id) for each in operations]
    assert {each.state for each in ended} == {OperationState.SUCCEEDED}
    assert await world.allocated(target.id) == Capacity(5, 5 * SIZE.memory_bytes)


async def test_slot_of_one_that_failed_is_free_again(cluster: Cluster) -> None:
    cluster.here.migration_fault = "no"
    for _ in range(3):
        assert_fault(await cluster.migrate(), Reason.MIGRATION_FAILED)
    cluster.here.migration_fault = ""
    await cluster.assert_at_target(await cluster.migrate())


async def test_events_tell_of_it(cluster: Cluster) -> None:
    operation = await cluster.migrate()
    found = await cluster.world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=cluster.vm.id), 100))
    told = {each.event.type: each.event for each in found}
    assert {EventType.VM_MIGRATING, EventType.VM_MIGRATED} <= told.keys()
    moved = told[EventType.VM_MIGRATED]
    assert moved.actor == "ann"
    assert moved.metadata["source_node_id"] == cluster.source.id
    assert moved.metadata["target_node_id"] == cluster.target.id
    assert moved.metadata["operation_id"] == operation.id
    assert moved.metadata["downtime_ms"] == "42"


async def test_event_of_a_failure_tells_why(cluster: Cluster) -> None:
    cluster.here.migration_fault = "the network went away"
    await cluster.migrate()
    found = await cluster.world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=cluster.vm.id), 100))
    (failed,) = [each.event for each in found if each.event.type == EventType.VM_MIGRATION_FAILED]
    assert "the network went away" in failed.message
    assert failed.metadata["reason"] == Reason.MIGRATION_FAILED
