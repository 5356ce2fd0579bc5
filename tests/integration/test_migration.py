"""Guests that count on their console move between two libvirt hosts, by two real node daemons, and things break."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
import pytest_asyncio

from limiquantix.errors import ApiError
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.libvirt_hosts import MigrationHost, migration_hosts
from tests.support.libvirt_nodes import (
    DEADLINE_S,
    LibvirtNode,
    begin_counting,
    clean,
    counted,
    counted_numbers,
    counter_spec,
    libvirt_nodes,
    lines_between,
    linux_spec,
    run,
)
from tests.support.node_pairs import Move, move_between, state_at
from tests.support.private_libvirt_host import eventually, virsh

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

SLOW_MBPS = 8
Nodes = tuple[LibvirtNode, LibvirtNode]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sequence[MigrationHost]]:
    async with migration_hosts(tmp_path_factory.mktemp("hosts")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_nodes(
    hosts: Sequence[MigrationHost], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Nodes]:
    async with libvirt_nodes((hosts[0], hosts[1]), tmp_path_factory.mktemp("shared"), shared=True) as pair:
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def separate_nodes(
    hosts: Sequence[MigrationHost], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Nodes]:
    async with libvirt_nodes((hosts[0], hosts[1]), tmp_path_factory.mktemp("apart"), shared=False) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def nodes(shared_nodes: Nodes) -> AsyncIterator[Nodes]:
    """Two daemons whose hosts share their storage; VMs that a test leaves are removed."""
    yield shared_nodes
    for node in shared_nodes:
        await clean(node)


@pytest_asyncio.fixture(loop_scope="module")
async def apart(separate_nodes: Nodes) -> AsyncIterator[Nodes]:
    """Two daemons, each with storage of its own."""
    yield separate_nodes
    for node in separate_nodes:
        await clean(node)


async def counting(nodes: Nodes, *, heavy: bool = False, storage: bool = False) -> Move:
    """Have a guest count at the first node, to be moved to the second."""
    spec = counter_spec(heavy=heavy)
    vm_id = await run(nodes[0], spec)
    await counted(nodes[0], vm_id, 3)
    return move_between(nodes[0], nodes[1], vm_id, spec, storage=storage)


async def admitted(move: Move) -> pb.MigrationToken:
    forecast = await move.source.servicer.ForecastMigration(pb.MigrationForecastRequest(vm_id=move.vm_id), None)
    token = await move.prepare(disk_size_bytes=forecast.disk_size_bytes)
    await move.receive(token)
    return token


async def under_way(move: Move, token: pb.MigrationToken) -> None:
    """Begin slowly, and stop following once memory is being sent."""
    async with aclosing(move.stream(token, bandwidth_mbps=SLOW_MBPS, max_downtime_ms=1)) as stream:
        async for message in stream:
            if message.phase == pb.MIGRATION_PHASE_TRANSFERRING and message.data_transferred_bytes:
                return
            assert message.phase != pb.MIGRATION_PHASE_FAILED, message.error
    raise AssertionError("no memory was sent")


async def until_over(move: Move) -> pb.MigrationProgress:
    async def look() -> pb.MigrationProgress | None:
        try:
            progress = await move.get()
        except ApiError:
            return None
        return progress if progress.phase in (pb.MIGRATION_PHASE_COMPLETE, pb.MIGRATION_PHASE_FAILED) else None

    return await eventually(look, "the end of the migration", DEADLINE_S)


async def until_state(node: LibvirtNode, vm_id: str, wanted: int | None) -> None:
    async def look() -> bool | None:
        try:
            return True if await state_at(node, vm_id) == wanted else None
        except ApiError:
            return None

    await eventually(look, f"state {wanted} of the VM", DEADLINE_S)


def check_hexadecimal_count(nodes: Nodes, vm_id: str) -> None:
    lines = lines_between(nodes, vm_id)
    assert lines == [f"{number:04X}" for number in range(len(lines))]


async def goes_on_here(nodes: Nodes, move: Move) -> None:
    """The VM runs at the source as if nothing had been, and the target has nothing of it."""
    await until_state(nodes[0], move.vm_id, pb.POWER_STATE_RUNNING)
    await until_state(nodes[1], move.vm_id, None)
    await move.end_at_target(moved=False)
    await move.end_at_source(moved=False)
    await until_state(nodes[1], move.vm_id, None)
    await counted(nodes[0], move.vm_id, len(nodes[0].console(move.vm_id)) + 3)
    lines = nodes[0].console(move.vm_id)
    assert lines == [f"{number:04X}" for number in range(len(lines))]
    if nodes[0].storage != nodes[1].storage:
        assert not (nodes[1].storage / move.vm_id).exists()


async def test_linux_guest_moves_with_shared_storage_and_goes_on_counting(nodes: Nodes) -> None:
    spec = await linux_spec(nodes)
    vm_id = await run(nodes[0], spec)
    await begin_counting(nodes[0], vm_id)

    def lines_of(node: LibvirtNode) -> list[str]:
        return [line for line in node.console(vm_id) if line.startswith("LINE ")]

    async def look_for(node: LibvirtNode, count: int) -> None:
        async def look() -> bool | None:
            return True if len(lines_of(node)) >= count else None

        await eventually(look, "lines of the guest", DEADLINE_S)

    await look_for(nodes[0], 10)
    move = move_between(nodes[0], nodes[1], vm_id, spec)

    messages = await move.send(await admitted(move))
    await look_for(nodes[1], 10)

    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
    assert 0 < messages[-1].downtime_ms < 5000
    # A line that was being written at the switch-over has its beginning on one host and its end on the other.
    numbers = counted_numbers(nodes[0].console_bytes(vm_id) + nodes[1].console_bytes(vm_id))
    assert numbers == list(range(len(numbers)))
    await move.end(moved=True)
    assert await state_at(nodes[0], vm_id) is None
    assert await state_at(nodes[1], vm_id) == pb.POWER_STATE_RUNNING
    await nodes[1].servicer.PingGuestAgent(pb.GuestRequest(vm_id=vm_id), None)


async def test_guest_moves_with_its_disks_and_they_are_removed_where_they_were(apart: Nodes) -> None:
    move = await counting(apart, storage=True)

    messages = await move.send(await admitted(move))
    await counted(apart[1], move.vm_id, 3)

    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE
    assert messages[-1].disk_transferred_bytes > 0
    check_hexadecimal_count(apart, move.vm_id)
    await move.end(moved=True)
    assert not (apart[0].storage / move.vm_id).exists()
    assert [path.suffix for path in (apart[1].storage / move.vm_id).iterdir()] == [".qcow2"]
    await apart[1].servicer.ForceStopVM(pb.VMIdRequest(vm_id=move.vm_id, generation=11), None)
    await apart[1].servicer.StartVM(pb.VMIdRequest(vm_id=move.vm_id, generation=12), None)  # from the copy
    await until_state(apart[1], move.vm_id, pb.POWER_STATE_RUNNING)


async def test_vm_that_is_off_moves_with_its_disks_and_variables_and_arrives_off(apart: Nodes) -> None:
    vm_id, spec = str(uuid.uuid4()), counter_spec(firmware=pb.FIRMWARE_UEFI)
    spec.memory_mib = 64
    await apart[0].servicer.CreateVM(pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=1), None)
    move = move_between(apart[0], apart[1], vm_id, spec, storage=True, off=True)

    messages = await move.send(await admitted(move))
    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE, messages[-1].error
    await move.end(moved=True)

    assert await state_at(apart[0], vm_id) is None
    assert await state_at(apart[1], vm_id) == pb.POWER_STATE_STOPPED
    assert lines_between(apart, vm_id) == []
    await apart[1].servicer.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=12), None)


async def test_vm_with_display_card_first_boot_medium_and_ceilings_moves(apart: Nodes) -> None:
    spec = counter_spec(
        nics=[pb.NicSpec(id=str(uuid.uuid4()))],
        console=pb.ConsoleSpec(vnc_enabled=True),
        cloud_init=pb.CloudInitConfig(user_data="#cloud-config\n"),
    )
    vm_id = await run(apart[0], spec)
    await counted(apart[0], vm_id, 3)
    move = move_between(apart[0], apart[1], vm_id, spec, storage=True)

    messages = await move.send(await admitted(move))
    assert messages[-1].phase == pb.MIGRATION_PHASE_COMPLETE, messages[-1].error
    await move.end(moved=True)

    await counted(apart[1], vm_id, 3)
    console = await apart[1].servicer.GetConsole(pb.VMIdRequest(vm_id=vm_id), None)
    assert console.port
    assert sorted(path.name for path in (apart[1].storage / vm_id).iterdir())[-1] == "seed.iso"
    assert not (apart[0].storage / vm_id).exists()


async def test_cancelled_migration_with_disks_leaves_the_guest_and_nothing_at_the_target(apart: Nodes) -> None:
    move = await counting(apart, heavy=True, storage=True)
    await under_way(move, await admitted(move))

    await move.cancel()

    assert (await until_over(move)).phase == pb.MIGRATION_PHASE_FAILED
    await goes_on_here(apart, move)


async def test_target_libvirt_killed_meanwhile_leaves_the_guest(nodes: Nodes) -> None:
    move = await counting(nodes, heavy=True)
    await under_way(move, await admitted(move))

    nodes[1].host.kill_libvirtd()

    assert (await until_over(move)).phase == pb.MIGRATION_PHASE_FAILED
    await goes_on_here(nodes, move)


async def test_migration_to_a_host_unplugged_meanwhile_is_cancelled_and_leaves_the_guest(nodes: Nodes) -> None:
    move = await counting(nodes, heavy=True)
    await under_way(move, await admitted(move))

    nodes[1].host.unplug()
    try:
        await move.cancel()
        assert (await until_over(move)).phase == pb.MIGRATION_PHASE_FAILED
        await until_state(nodes[0], move.vm_id, pb.POWER_STATE_RUNNING)
    finally:
        nodes[1].host.plug()
    await goes_on_here(nodes, move)


async def test_daemons_killed_meanwhile_do_not_matter_and_the_source_finds_the_migration_again(nodes: Nodes) -> None:
    move = await counting(nodes, heavy=True)
    token = await admitted(move)
    await under_way(move, token)

    for node in nodes:
        await node.kill()
        await node.start()

    assert (await move.get()).phase == pb.MIGRATION_PHASE_TRANSFERRING
    attached = asyncio.create_task(move.send(token))
    await nodes[0].host.hurry_migration(move.vm_id)
    assert (await attached)[-1].phase == pb.MIGRATION_PHASE_COMPLETE
    await counted(nodes[1], move.vm_id, 3)
    check_hexadecimal_count(nodes, move.vm_id)
    await move.end(moved=True)


async def test_source_libvirt_killed_meanwhile_leaves_one_guest(nodes: Nodes) -> None:
    move = await counting(nodes, heavy=True)
    await under_way(move, await admitted(move))

    nodes[0].host.kill_libvirtd()

    assert (await until_over(move)).phase == pb.MIGRATION_PHASE_FAILED
    await goes_on_here(nodes, move)


async def test_vm_that_nobody_let_in_is_told_of(nodes: Nodes) -> None:
    move = await counting(nodes)
    source, target = nodes[0].host, nodes[1].host

    await virsh(
        source.uri,
        *("migrate", move.vm_id, target.tls_uri, "--live", "--p2p", "--tls", "--persistent"),
        *("--undefinesource", "--unsafe", "--migrateuri", f"tcp://{target.address}"),
    )

    await until_state(nodes[1], move.vm_id, pb.POWER_STATE_RUNNING)
    assert nodes[1].daemon is not None
    log = nodes[1].daemon.log_path

    async def look() -> bool | None:
        return True if "vm_arrived_without_admission" in log.read_text() and move.vm_id in log.read_text() else None

    await eventually(look, "the warning", DEADLINE_S)
