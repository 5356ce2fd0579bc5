"""Moving VMs between two node daemons on the mock, call by call, and everything that may come amiss."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from hypervisor.errors import MigrationFailed
from hypervisor.migration import MigrationOptions, MigrationProgress
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MockSettings
from limiquantix.errors import Aborted, ApiError, FailedPrecondition, InvalidArgument, NotFound
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts
from tests.support.node_pairs import Move, state_at

DEADLINE_S = 30
FAST = 2**30
SLOW = 2**20


def settings(directory: Path, bytes_s: int = FAST) -> MockSettings:
    directory.mkdir(parents=True, exist_ok=True)
    return MockSettings(state_path=directory / "mock.json", migration_bytes_s=bytes_s, boot_s=0.01)


@pytest.fixture(params=["shared", "separate"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Storage roots of both hosts."""
    roots = ("images", "images") if request.param == "shared" else ("images-1", "images-2")
    for root in roots:
        (tmp_path / root).mkdir(exist_ok=True)
    return tmp_path / roots[0], tmp_path / roots[1]


@pytest.fixture
async def daemons(tmp_path: Path, storage: tuple[Path, Path]) -> AsyncIterator[tuple[NodeDaemonParts, NodeDaemonParts]]:
    first, second = settings(tmp_path / "h1"), settings(tmp_path / "h2")
    async with (
        node_daemon_parts(storage[0], settings=first) as source,
        node_daemon_parts(storage[1], settings=second) as target,
    ):
        yield source, target


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[tuple[NodeDaemonParts, NodeDaemonParts]]:
    """Two daemons on one storage, between which a VM takes a minute."""
    root = tmp_path / "images"
    root.mkdir()
    first, second = settings(tmp_path / "h1", SLOW), settings(tmp_path / "h2", SLOW)
    async with (
        node_daemon_parts(root, settings=first) as source,
        node_daemon_parts(root, settings=second) as target,
    ):
        yield source, target


def spec_of(*, disk_count: int = 1, **fields: Any) -> pb.VMSpec:
    disks = [pb.DiskSpec(id=str(uuid.uuid4()), size_gib=1) for _ in range(disk_count)]
    return pb.VMSpec(cpu_cores=1, memory_mib=64, disks=disks, **fields)


async def move_of(
    daemons: tuple[NodeDaemonParts, NodeDaemonParts], *, running: bool = True, spec: pb.VMSpec | None = None
) -> Move:
    """Have a VM at the source, and say how it goes to the target."""
    source, target = daemons
    vm_id, spec = str(uuid.uuid4()), spec or spec_of()
    definition = pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=1)
    await source.servicer.CreateVM(definition, None)
    if running:
        await source.servicer.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=2), None)
    is_separate = source.paths.root != target.paths.root
    return Move(source, target, vm_id, spec, storage=is_separate, off=not running)


async def admitted(move: Move) -> pb.MigrationToken:
    token = await move.prepare()
    await move.receive(token)
    return token


async def refusal(call: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await call
    return caught.value


async def first_of(move: Move, token: pb.MigrationToken) -> pb.MigrationProgress:
    """Begin, and stop following after the first message."""
    async with aclosing(move.stream(token)) as stream:
        async for message in stream:
            return message
    raise AssertionError("no message came")


async def under_way(move: Move, token: pb.MigrationToken) -> None:
    """Begin, and stop following once memory is being sent."""
    async with aclosing(move.stream(token)) as stream:
        async for message in stream:
            if message.phase == pb.MIGRATION_PHASE_TRANSFERRING:
                return
    raise AssertionError("no memory was sent")


def images_of(daemon: NodeDaemonParts, vm_id: str) -> set[str]:
    directory = daemon.paths.vm_dir(vm_id)
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


async def test_a_running_vm_moves(daemons: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(daemons)
    source, target = daemons
    image = images_of(source, move.vm_id)

    messages = await move.send(await admitted(move))

    assert messages[0].phase in (pb.MIGRATION_PHASE_PREPARING, pb.MIGRATION_PHASE_TRANSFERRING)
    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
    assert messages[-1].percent_complete == 100
    assert messages[-1].downtime_ms > 0
    assert await state_at(source, move.vm_id) is None
    assert await state_at(target, move.vm_id) == pb.POWER_STATE_RUNNING
    await move.end(moved=True)
    await move.end(moved=True)  # harmless
    assert images_of(target, move.vm_id) == image
    assert images_of(source, move.vm_id) == (set() if move.storage else image)
    with pytest.raises(NotFound):
        await move.get()
    await target.servicer.ForceStopVM(pb.VMIdRequest(vm_id=move.vm_id, generation=11), None)


async def test_a_vm_that_is_off_arrives_off(daemons: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(daemons, running=False)

    messages = await move.send(await admitted(move))
    await move.end(moved=True)

    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
    assert await state_at(move.source, move.vm_id) is None
    assert await state_at(move.target, move.vm_id) == pb.POWER_STATE_STOPPED


async def test_a_failed_one_leaves_the_vm_and_nothing_at_the_target(
    daemons: tuple[NodeDaemonParts, NodeDaemonParts],
) -> None:
    move = await move_of(daemons)
    source, target = daemons
    image = images_of(source, move.vm_id)
    source.hypervisor.set_faults(MockFaults((Fault(Operation.SWITCH_VM, Failure.REFUSED),)))

    messages = await move.send(await admitted(move))

    assert messages[-1].phase == pb.MIGRATION_PHASE_FAILED
    assert "simulated fault" in messages[-1].error
    assert (await move.get()).phase == pb.MIGRATION_PHASE_FAILED
    await move.end(moved=False)
    await move.end(moved=False)
    assert await state_at(source, move.vm_id) == pb.POWER_STATE_RUNNING
    assert await state_at(target, move.vm_id) is None
    assert images_of(source, move.vm_id) == image
    assert images_of(target, move.vm_id) == (set() if move.storage else image)
    assert (await move.send(await move.prepare(generation=11)))[-1].phase == pb.MIGRATION_PHASE_FAILED  # same command


async def test_without_the_door_nothing_gets_in(daemons: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(daemons)

    messages = await move.send(await move.prepare())

    assert messages[-1].phase == pb.MIGRATION_PHASE_FAILED
    assert await state_at(move.source, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_a_broken_stream_does_not_end_it_and_a_second_one_follows(
    shared: tuple[NodeDaemonParts, NodeDaemonParts],
) -> None:
    move = await move_of(shared)
    token = await admitted(move)

    await first_of(move, token)
    again = await first_of(move, token)

    assert again.phase != pb.MIGRATION_PHASE_FAILED
    assert (await move.get()).phase in (pb.MIGRATION_PHASE_PREPARING, pb.MIGRATION_PHASE_TRANSFERRING)
    await move.cancel()


async def test_a_cancelled_one_ends_failed(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    token = await admitted(move)
    await first_of(move, token)

    await move.cancel()
    messages = await move.send(token)

    assert messages[-1].phase == pb.MIGRATION_PHASE_FAILED
    assert "cancelled" in messages[-1].error
    await move.end(moved=False)
    assert await state_at(move.source, move.vm_id) == pb.POWER_STATE_RUNNING
    assert await state_at(move.target, move.vm_id) is None


async def test_a_cancelled_one_that_comes_late_does_not_begin(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    token = await admitted(move)

    await move.cancel()
    messages = await move.send(token)

    assert [message.phase for message in messages] == [pb.MIGRATION_PHASE_FAILED]
    assert await state_at(move.source, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_other_commands_are_refused_meanwhile(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    token = await admitted(move)
    await first_of(move, token)
    request = pb.VMIdRequest(vm_id=move.vm_id, generation=11)
    servicer = shared[0].servicer

    for call in (
        servicer.ForceStopVM(request, None),
        servicer.DeleteVM(request, None),
        servicer.PauseVM(request, None),
        move.end_at_source(moved=True),
        move.end_at_source(moved=False),
    ):
        error = await refusal(call)
        assert (error.reason, error.metadata["state"]) == ("VM_STATE_FORBIDS", "migrating")
    other = pb.MigrateVMRequest()
    other.CopyFrom(move.request(token))
    other.generation = 12
    error = await refusal(anext(servicer.MigrateVM(other, None)))
    assert error.metadata["state"] == "migrating"
    await move.cancel()


async def test_what_is_under_way_is_found_after_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    first, second = settings(tmp_path / "h1", 2**26), settings(tmp_path / "h2")
    async with node_daemon_parts(root, settings=second) as target:
        async with node_daemon_parts(root, settings=first) as source:
            move = await move_of((source, target))
            token = await admitted(move)
            await under_way(move, token)
        async with node_daemon_parts(root, settings=first) as source:
            move.source = source
            error = await refusal(source.servicer.PauseVM(pb.VMIdRequest(vm_id=move.vm_id), None))
            assert error.metadata["state"] == "migrating"
            messages = await move.send(token)
            assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
            assert await state_at(source, move.vm_id) is None
            assert await state_at(target, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_an_admission_is_known_after_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    first, second = settings(tmp_path / "h1"), settings(tmp_path / "h2")
    async with node_daemon_parts(root, settings=first) as source:
        async with node_daemon_parts(root, settings=second) as target:
            move = await move_of((source, target))
            token = await move.prepare()
            assert token.token not in "".join(path.read_text() for path in (tmp_path / "h2/migrations").iterdir())
        async with node_daemon_parts(root, settings=second) as target:
            move.target = target
            await move.receive(token)
            assert (await move.send(token))[-1].phase == pb.MIGRATION_PHASE_COMPLETE


@pytest.mark.parametrize("target_is_gone", ["before", "meanwhile"])
async def test_a_target_that_is_gone_leaves_the_vm_running(tmp_path: Path, target_is_gone: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    slow = settings(tmp_path / "h1", 2**24)  # some seconds, in which the target ends
    async with node_daemon_parts(root, settings=slow) as source:
        async with node_daemon_parts(root, settings=settings(tmp_path / "h2")) as target:
            move = await move_of((source, target))
            token = await admitted(move)
            if target_is_gone == "meanwhile":
                await first_of(move, token)
        messages = await move.send(token)
        assert messages[-1].phase == pb.MIGRATION_PHASE_FAILED
        assert await state_at(source, move.vm_id) == pb.POWER_STATE_RUNNING


async def refused_token(move: Move, token: pb.MigrationToken) -> str:
    error = await refusal(move.receive(token))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "MIGRATION_TOKEN_REFUSED"
    assert token.token not in error.message
    return error.metadata["cause"]


async def test_a_token_is_good_once_for_what_it_was_made_for(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    token = await move.prepare()
    for cause, field, value in (
        ("unknown", "token", "guess"),
        ("other_vm", "vm_id", str(uuid.uuid4())),
        ("other_generation", "generation", 99),
        ("other_nodes", "source_node_id", str(uuid.uuid4())),
        ("other_nodes", "target_node_id", str(uuid.uuid4())),
    ):
        forged = pb.MigrationToken()
        forged.CopyFrom(token)
        setattr(forged, field, value)
        assert await refused_token(move, forged) == cause
    assert shared[1].generations.newest[move.vm_id] == move.generation  # a forged one made nothing stale

    await move.receive(token)

    assert await refused_token(move, token) == "used"
    again = await move.prepare()
    assert await refused_token(move, token) == "unknown"  # replaced
    await move.receive(again)


async def test_a_token_expires(tmp_path: Path) -> None:
    clock = [1_800_000_000.0]
    root = tmp_path / "images"
    root.mkdir()
    async with (
        node_daemon_parts(root, settings=settings(tmp_path / "h1")) as source,
        node_daemon_parts(root, now_s=lambda: clock[0], settings=settings(tmp_path / "h2")) as target,
    ):
        move = await move_of((source, target))
        token = await move.prepare()
        assert token.expires_at.seconds == clock[0] + 600
        clock[0] += 601
        assert await refused_token(move, token) == "expired"


async def test_an_older_generation_is_refused(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    token = await move.prepare()
    move.generation += 1
    await move.prepare()
    move.generation -= 1

    for call in (move.prepare(), move.receive(token), move.end_at_target(moved=False)):
        assert isinstance(await refusal(call), Aborted)


async def test_the_same_node_is_refused(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    error = await refusal(move.prepare(target_node_id=move.source_node_id))
    assert error.reason == "MIGRATION_REFUSED"
    shared[1].report.node_id = str(uuid.uuid4())
    assert (await refusal(move.prepare())).reason == "MIGRATION_REFUSED"  # it is another node than was meant
    itself = Move(shared[0], shared[0], move.vm_id, move.spec)
    assert (await refusal(itself.prepare())).reason == "MIGRATION_REFUSED"
    shared[0].report.node_id = move.target_node_id
    shared[1].report.node_id = ""
    assert (await refusal(move.send(await admitted(move)))).reason == "MIGRATION_REFUSED"


async def test_a_vm_that_is_at_the_target_is_refused(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    await shared[1].servicer.CreateVM(pb.CreateVMOnNodeRequest(vm_id=move.vm_id, name="web", spec=move.spec), None)
    assert (await refusal(move.prepare())).reason == "MIGRATION_REFUSED"


async def test_what_the_target_lacks_is_named(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    for spec, word in (
        (spec_of(disk_count=0, nics=[pb.NicSpec(id=str(uuid.uuid4()), bridge="br77")]), "br77"),
        (spec_of(disk_count=0, cdroms=[pb.CdromSpec(id=str(uuid.uuid4()), iso_path="iso/x.iso")]), "iso_path"),
        (pb.VMSpec(cpu_cores=1, memory_mib=2**28), "MiB"),
        (spec_of(), "image"),  # another disk than is there
    ):
        move.spec = spec
        error = await refusal(move.prepare())
        assert isinstance(error, FailedPrecondition)
        assert word in error.message


async def test_a_definition_must_be_the_vms(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    request = move.preparation()
    request.definition.vm_id = str(uuid.uuid4())
    assert isinstance(await refusal(move.target.servicer.PrepareMigration(request, None)), InvalidArgument)


async def test_wrong_words_about_storage_are_refused(daemons: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(daemons)
    token = await admitted(move)
    move.storage = not move.storage
    error = await refusal(move.send(token, storage=move.storage))
    assert error.reason == "MIGRATION_REFUSED"
    assert "share" in error.message
    assert await state_at(move.source, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_files_at_the_target_that_no_migration_made_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "i1").mkdir()
    (tmp_path / "i2").mkdir()
    async with (
        node_daemon_parts(tmp_path / "i1", settings=settings(tmp_path / "h1")) as source,
        node_daemon_parts(tmp_path / "i2", settings=settings(tmp_path / "h2")) as target,
    ):
        move = await move_of((source, target))
        precious = target.paths.vm_dir(move.vm_id) / "precious.qcow2"
        precious.parent.mkdir(parents=True)
        precious.write_text("data")

        error = await refusal(move.prepare())
        await move.end_at_target(moved=False)

        assert error.reason == "MIGRATION_REFUSED"
        assert precious.name in error.message
        assert precious.read_text() == "data"


async def test_disks_are_as_large_as_the_source_says(tmp_path: Path) -> None:
    (tmp_path / "i1").mkdir()
    (tmp_path / "i2").mkdir()
    async with (
        node_daemon_parts(tmp_path / "i1", settings=settings(tmp_path / "h1")) as source,
        node_daemon_parts(tmp_path / "i2", settings=settings(tmp_path / "h2")) as target,
    ):
        template = source.paths.root / "templates" / "t.raw"
        template.parent.mkdir()
        template.write_bytes(b"\0" * 3 * 2**20)
        disk = pb.DiskSpec(id=str(uuid.uuid4()), backing_file="templates/t.raw")
        move = await move_of((source, target), spec=pb.VMSpec(cpu_cores=1, memory_mib=64, disks=[disk]))
        forecast = await source.servicer.ForecastMigration(pb.MigrationForecastRequest(vm_id=move.vm_id), None)
        assert forecast.disk_size_bytes[disk.id] == 3 * 2**20
        assert forecast.memory_bytes == 64 * 2**20
        assert forecast.HasField("dirty_bytes_per_sec")

        token = await move.prepare(disk_size_bytes=forecast.disk_size_bytes)
        await move.receive(token)
        assert (await move.send(token))[-1].phase == pb.MIGRATION_PHASE_COMPLETE
        await move.end(moved=True)

        image = target.paths.vm_dir(move.vm_id) / f"{disk.id}.qcow2"
        assert image.exists()
        spec = pb.ReconfigureVMRequest(vm_id=move.vm_id, name="web", spec=move.spec)
        await target.servicer.ForceStopVM(pb.VMIdRequest(vm_id=move.vm_id), None)
        await target.servicer.ReconfigureVM(spec, None)  # its template is not here, and is not needed


async def test_the_end_is_refused_where_the_vm_is_alive(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared)
    await admitted(move)
    assert (await refusal(move.end_at_source(moved=True))).reason == "VM_STATE_FORBIDS"
    assert (await refusal(move.end_at_target(moved=True))).reason == "MIGRATION_UNSETTLED"

    async with node_daemon_parts(shared[0].paths.root) as other:
        fast = await move_of((other, shared[1]))
        assert (await fast.send(await admitted(fast)))[-1].phase == pb.MIGRATION_PHASE_COMPLETE
        assert (await refusal(fast.end_at_target(moved=False))).reason == "VM_STATE_FORBIDS"
        assert await state_at(shared[1], fast.vm_id) == pb.POWER_STATE_RUNNING


async def broken_after_the_switch(move: Move, monkeypatch: pytest.MonkeyPatch) -> Sequence[pb.MigrationProgress]:
    """Send, have the connection break when the guest was handed over, and have the hypervisor say that it failed."""
    source = move.source
    assert isinstance(source, NodeDaemonParts)
    migration = source.hypervisor.migration
    assert migration is not None

    async def send(vm_id: str, options: MigrationOptions) -> MigrationProgress:
        await source.hypervisor.pause(vm_id)
        raise MigrationFailed("the connection was lost")

    monkeypatch.setattr(migration, "send", send)
    return await move.send(await admitted(move))


async def test_a_guest_that_stands_still_after_it_is_not_said_to_have_stayed(
    shared: tuple[NodeDaemonParts, NodeDaemonParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await move_of(shared)
    last = (await broken_after_the_switch(move, monkeypatch))[-1]
    assert (last.phase, last.error) == (pb.MIGRATION_PHASE_UNSETTLED, "the connection was lost")
    assert (await move.get()).phase == pb.MIGRATION_PHASE_UNSETTLED

    await move.end_at_source(moved=True)
    assert await state_at(shared[0], move.vm_id) is None
    assert images_of(shared[0], move.vm_id), "the disks are shared"


async def test_a_guest_that_stands_still_and_has_not_moved_is_left(
    shared: tuple[NodeDaemonParts, NodeDaemonParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await move_of(shared)
    await broken_after_the_switch(move, monkeypatch)
    await move.end(moved=False)
    assert await state_at(shared[0], move.vm_id) == pb.POWER_STATE_PAUSED


async def test_a_guest_that_was_asked_to_stand_still_failed_to_move_like_others(
    shared: tuple[NodeDaemonParts, NodeDaemonParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await move_of(shared)
    await shared[0].hypervisor.pause(move.vm_id)
    last = (await broken_after_the_switch(move, monkeypatch))[-1]
    assert last.phase == pb.MIGRATION_PHASE_FAILED
    assert (await refusal(move.end_at_source(moved=True))).reason == "VM_STATE_FORBIDS"
    assert await state_at(shared[0], move.vm_id) == pb.POWER_STATE_PAUSED


async def test_a_template_stays(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = await move_of(shared, running=False)
    request = pb.ReconfigureVMRequest(vm_id=move.vm_id, name="web", spec=move.spec)
    request.spec.is_template = True
    await shared[0].servicer.ReconfigureVM(request, None)
    assert (await refusal(move.send(await admitted(move)))).reason == "MIGRATION_REFUSED"


async def test_an_unknown_migration_is_not_found(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    move = Move(shared[0], shared[1], str(uuid.uuid4()), spec_of())
    error = await refusal(move.get())
    assert (type(error), error.reason) == (NotFound, "MIGRATION_NOT_FOUND")
    await move.end(moved=False)


async def test_an_answer_that_is_lost_is_found_out(shared: tuple[NodeDaemonParts, NodeDaemonParts]) -> None:
    source, _ = shared
    async with node_daemon_parts(source.paths.root) as fast:
        move = await move_of((fast, shared[1]))
        fast.hypervisor.set_faults(MockFaults((Fault(Operation.SEND_VM, Failure.ANSWER_LOST),)))
        messages = await move.send(await admitted(move))
        assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE


async def test_bandwidth_and_other_wishes_reach_the_hypervisor(
    shared: tuple[NodeDaemonParts, NodeDaemonParts],
) -> None:
    source, target = shared
    async with node_daemon_parts(source.paths.root) as fast:
        move = await move_of((fast, target))
        token = await admitted(move)
        messages = await move.send(
            token, live=True, max_downtime_ms=100, bandwidth_mbps=4000, auto_converge=True, compression=True
        )
        assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
        assert messages[-1].memory_page_count > 0
