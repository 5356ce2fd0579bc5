"""Snapshots as the daemon serves them, on the mock."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import MockFaults
from hypervisor.snapshots import Snapshots
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import Commands
from nodedaemon.templates import Templates
from nodedaemon.vm_snapshots import VmSnapshots
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts


async def take(daemon: NodeDaemonParts, vm_id: str, name: str, **fields: object) -> pb.SnapshotResponse:
    request = pb.CreateSnapshotRequest(vm_id=vm_id, snapshot_id=str(uuid.uuid4()), name=name)
    for field, value in fields.items():
        setattr(request, field, value)
    return await daemon.servicer.CreateSnapshot(request, None)


async def listed(daemon: NodeDaemonParts, vm_id: str) -> list[pb.SnapshotResponse]:
    return list((await daemon.servicer.ListSnapshots(pb.VMIdRequest(vm_id=vm_id), None)).snapshots)


async def test_snapshot_is_told_with_everything_known_of_it(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create()
    await daemon.start(vm_id)
    first = await take(daemon, vm_id.upper(), "one", description="about")
    second = await take(daemon, vm_id, "two", include_memory=True)
    assert (first.name, first.description, first.vm_state) == ("one", "about", pb.POWER_STATE_RUNNING)
    assert (second.memory_included, second.parent_id, second.is_current) == (True, first.snapshot_id, True)
    assert second.size_bytes > 0
    assert second.created_at.seconds > 0
    assert [each.snapshot_id for each in await listed(daemon, vm_id)] == [first.snapshot_id, second.snapshot_id]


async def test_revert_starts_only_if_asked_and_delete_may_be_repeated(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create()
    made = await take(daemon, vm_id, "off")
    await daemon.start(vm_id)
    revert = pb.RevertSnapshotRequest(vm_id=vm_id, snapshot_id=made.snapshot_id.upper())
    await daemon.servicer.RevertSnapshot(revert, None)
    assert (await daemon.status(vm_id)).state == pb.POWER_STATE_STOPPED
    revert.start_after_revert = True
    await daemon.servicer.RevertSnapshot(revert, None)
    assert (await daemon.status(vm_id)).state == pb.POWER_STATE_RUNNING
    delete = pb.DeleteSnapshotRequest(vm_id=vm_id, snapshot_id=made.snapshot_id)
    for _ in range(2):
        await daemon.servicer.DeleteSnapshot(delete, None)
    assert await listed(daemon, vm_id) == []


async def test_refusals_have_reasons_of_their_own(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create()
    await take(daemon, vm_id, "same")
    await daemon.start(vm_id)
    daemon.hypervisor.set_faults(MockFaults(silent_agent_vm_ids=frozenset({vm_id})))
    absent = pb.RevertSnapshotRequest(vm_id=vm_id, snapshot_id=str(uuid.uuid4()))
    for call, code, reason in (
        (take(daemon, vm_id, "same"), Code.ALREADY_EXISTS, Reason.SNAPSHOT_NAME_TAKEN),
        (take(daemon, vm_id, "quiet", quiesce=True), Code.FAILED_PRECONDITION, Reason.CANNOT_QUIESCE),
        (daemon.servicer.RevertSnapshot(absent, None), Code.NOT_FOUND, Reason.SNAPSHOT_NOT_FOUND),
        (take(daemon, str(uuid.uuid4()), "x"), Code.NOT_FOUND, Reason.VM_NOT_FOUND),
    ):
        with pytest.raises(ApiError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == (code, reason)


async def test_template_is_left_alone(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create()
    made = await take(daemon, vm_id, "before")
    await Templates(daemon.paths).settle(vm_id, is_template=True)
    snapshot_id = made.snapshot_id
    for call in (
        take(daemon, vm_id, "x"),
        daemon.servicer.RevertSnapshot(pb.RevertSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot_id), None),
        daemon.servicer.DeleteSnapshot(pb.DeleteSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot_id), None),
    ):
        with pytest.raises(ApiError) as caught:
            await call
        assert caught.value.reason == Reason.VM_IS_TEMPLATE
    assert len(await listed(daemon, vm_id)) == 1


class Plain(MockHypervisor):
    """A hypervisor without snapshots."""

    @property
    def snapshots(self) -> Snapshots | None:
        return None


async def test_hypervisor_without_snapshots_says_so(daemon: NodeDaemonParts) -> None:
    commands: Commands = daemon.commands
    without = VmSnapshots(Plain(), commands, Templates(daemon.paths))
    with pytest.raises(ApiError) as caught:
        await without.list(pb.VMIdRequest(vm_id=str(uuid.uuid4())))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, Reason.HOST_LACKS)
