"""What moving VMs means, for every backend: two mocks, and two libvirt hosts whose guests count on their consoles."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from hypervisor.errors import (
    HypervisorError,
    MigrationFailed,
    MigrationRefused,
    VmNotFound,
    WrongState,
)
from hypervisor.migration import MigrationOptions, MigrationProgress, Phase
from hypervisor.snapshots import SnapshotRequest
from hypervisor.types import CpuTopology, DiskFormat, EventKind, NicConfig, PowerState, VmConfig, VmEvent
from tests.support.libvirt_hosts import MigrationHost, migration_hosts
from tests.support.migration_pairs import (
    SLOW_BYTES_S,
    LibvirtPair,
    MockPair,
    Pair,
    arrival,
    migration_of,
    options,
)
from tests.support.private_libvirt_host import eventually

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 40.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sequence[MigrationHost]]:
    """Two libvirt hosts for all tests here."""
    async with migration_hosts(tmp_path_factory.mktemp("hosts")) as running:
        yield running


@pytest.fixture(params=["mock", "libvirt"])
def closed_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """Two hosts for each backend."""
    if request.param == "mock":
        return MockPair(tmp_path)
    first, second = request.getfixturevalue("hosts")
    return LibvirtPair((first, second), tmp_path)


@pytest.fixture
async def pair(closed_pair: Pair) -> AsyncIterator[Pair]:
    """The hosts, open; VMs that a test leaves behind are removed."""
    pair = closed_pair
    await pair.source.open()
    await pair.target.open()
    yield pair
    for number in (0, 1):
        await (pair.source, pair.target)[number].close()
        cleaner = pair.connect(number)
        await cleaner.open()
        for vm in await cleaner.list():
            await migration_of(cleaner).cancel(vm.vm_id)
            await cleaner.force_stop(vm.vm_id)
            try:
                await cleaner.delete(vm.vm_id)
            except VmNotFound:
                continue
        await cleaner.close()


async def started(pair: Pair, config: VmConfig) -> VmConfig:
    """Have a VM run at the source, and its guest count."""
    await pair.source.create(config)
    await pair.source.start(config.vm_id)
    await counted(pair, 0, config.vm_id, 3)
    return config


async def counted(pair: Pair, number: int, vm_id: str, line_count: int) -> None:
    """Wait until the guest wrote that many lines at a host; the mock's guests do not count."""

    async def look() -> bool | None:
        return True if isinstance(pair, MockPair) or len(pair.console(number, vm_id)) >= line_count else None

    await eventually(look, f"{line_count} lines on the console", DEADLINE_S)


async def let_in(pair: Pair, config: VmConfig, *, back: bool = False, is_off: bool = False) -> None:
    migration = migration_of(pair.source if back else pair.target)
    await migration.prepare(arrival(pair, config, back=back, is_off=is_off))
    await migration.admit(config.vm_id)


async def send(pair: Pair, config: VmConfig, wish: MigrationOptions) -> MigrationProgress:
    async with asyncio.timeout(DEADLINE_S):
        return await migration_of(pair.source).send(config.vm_id, wish)


async def is_absent(hypervisor: object, vm_id: str) -> bool:
    try:
        await hypervisor.status(vm_id)  # type: ignore[attr-defined]
    except VmNotFound:
        return True
    return False


async def gone(hypervisor: object, vm_id: str) -> None:
    async def look() -> bool | None:
        return True if await is_absent(hypervisor, vm_id) else None

    await eventually(look, "the VM's absence", DEADLINE_S)


async def state_of(hypervisor: object, vm_id: str) -> PowerState:
    return (await hypervisor.status(vm_id)).state  # type: ignore[attr-defined, no-any-return]


async def under_way(pair: Pair, config: VmConfig, wish: MigrationOptions) -> asyncio.Task[MigrationProgress]:
    """Begin a migration that does not end by itself, and wait until memory is being sent."""
    await let_in(pair, config)
    sending = asyncio.create_task(migration_of(pair.source).send(config.vm_id, wish))

    async def look() -> bool | None:
        if sending.done():
            sending.result()
        progress = await migration_of(pair.source).progress(config.vm_id)
        return True if progress is not None and progress.phase is Phase.TRANSFERRING else None

    await eventually(look, "the transfer", DEADLINE_S)
    return sending


def slow(pair: Pair) -> MigrationOptions:
    return options(pair, bandwidth_bytes_s=SLOW_BYTES_S, max_downtime_ms=1)


def check_count(pair: Pair, vm_id: str) -> None:
    """No line is lost, none comes twice, and the order is kept."""
    if isinstance(pair, MockPair):
        return
    lines = pair.console(0, vm_id) + pair.console(1, vm_id)
    assert lines == [f"{number:04X}" for number in range(len(lines))]


async def test_a_running_vm_moves_there_and_back_and_its_guest_goes_on(pair: Pair) -> None:
    config = await started(pair, pair.config())
    seen: list[tuple[int, VmEvent]] = []
    pair.source.subscribe(lambda event: seen.append((0, event)))
    pair.target.subscribe(lambda event: seen.append((1, event)))
    await let_in(pair, config)

    progress = await send(pair, config, options(pair))

    assert progress.phase is Phase.COMPLETE
    assert progress.percent == 100
    assert 0 < progress.downtime_ms < 60_000
    assert progress.transferred_bytes > 0
    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.RUNNING
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)
    kinds = [(number, event.kind) for number, event in seen if event.vm_id == config.vm_id]
    assert (1, EventKind.ARRIVING) in kinds
    assert (1, EventKind.MIGRATED_IN) in kinds
    assert (0, EventKind.MIGRATED_OUT) in kinds
    status = await pair.target.status(config.vm_id)
    assert (status.name, status.is_managed, status.memory_mib) == (config.name, True, config.memory_mib)

    moved = arrival(pair, config).config
    await let_in(pair, moved, back=True)
    async with asyncio.timeout(DEADLINE_S):
        wish = options(pair, back=True, auto_converge=True, compression=True, bandwidth_bytes_s=2**26)
        progress = await migration_of(pair.target).send(config.vm_id, wish)

    assert progress.downtime_ms > 0
    await gone(pair.target, config.vm_id)
    assert await state_of(pair.source, config.vm_id) is PowerState.RUNNING


async def test_disks_are_copied_where_storage_is_not_shared(pair: Pair) -> None:
    config = await started(pair, pair.config(shared=False))
    pair.make_room(config)
    await let_in(pair, config)

    progress = await send(pair, config, options(pair, copies_disks=True))

    assert progress.disk_transferred_bytes > 0
    await gone(pair.source, config.vm_id)
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)
    moved = arrival(pair, config).config
    if isinstance(pair, LibvirtPair):
        assert moved.disks[0].path.read_bytes() == config.disks[0].path.read_bytes()
        assert pair.target.devices is not None
    devices = pair.target.devices
    assert devices is not None
    assert [disk.path for disk in (await devices.list(config.vm_id)).disks] == [moved.disks[0].path]
    await pair.target.force_stop(config.vm_id)  # what it is defined with names the target's paths too
    assert [disk.path for disk in (await devices.list(config.vm_id)).disks] == [moved.disks[0].path]
    await pair.target.start(config.vm_id)


async def test_a_cold_move_stops_the_guest_and_lets_it_go_on(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))
    await let_in(pair, config)

    progress = await send(pair, config, options(pair, is_live=False))

    assert progress.downtime_ms > 0
    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.RUNNING
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)


async def test_a_paused_vm_arrives_paused(pair: Pair) -> None:
    config = await started(pair, pair.config())
    await pair.source.pause(config.vm_id)
    await let_in(pair, config)

    await send(pair, config, options(pair))

    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.PAUSED
    await pair.target.resume(config.vm_id)
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)


async def test_a_vm_that_is_off_moves_and_starts_there(pair: Pair) -> None:
    config = pair.config()
    await pair.source.create(config)
    await let_in(pair, config, is_off=True)

    await send(pair, config, options(pair))

    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.STOPPED
    await pair.target.start(config.vm_id)
    await counted(pair, 1, config.vm_id, 3)


async def test_a_vm_that_is_off_moves_with_its_disks_and_never_runs(pair: Pair) -> None:
    config = pair.config(shared=False)
    await pair.source.create(config)
    pair.make_room(config)
    await let_in(pair, config, is_off=True)

    await send(pair, config, options(pair, copies_disks=True))

    await gone(pair.source, config.vm_id)
    # Whoever took it in pulls its plug: what moved is a machine that never ran.
    assert await state_of(pair.target, config.vm_id) in (PowerState.STOPPED, PowerState.PAUSED)
    await pair.target.force_stop(config.vm_id)
    assert pair.console(1, config.vm_id) == pair.console(0, config.vm_id) == []
    await pair.target.start(config.vm_id)
    await counted(pair, 1, config.vm_id, 3)


async def test_one_that_is_followed_and_cancelled_leaves_the_vm_running_and_nothing_at_the_target(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))
    sending = await under_way(pair, config, slow(pair))

    async def look() -> MigrationProgress | None:
        progress = await migration_of(pair.source).progress(config.vm_id)
        return progress if progress is not None and progress.transferred_bytes > 0 else None

    progress = await eventually(look, "the first bytes", DEADLINE_S)
    assert progress.phase is Phase.TRANSFERRING
    assert 0 <= progress.percent < 100
    assert progress.total_bytes > 0
    assert progress.pass_count >= 1
    assert not progress.is_post_copy
    with pytest.raises(WrongState):  # a second one of the same VM
        await migration_of(pair.source).send(config.vm_id, slow(pair))
    assert not sending.done()

    await migration_of(pair.source).cancel(config.vm_id)

    with pytest.raises(MigrationFailed, match="cancelled"):
        async with asyncio.timeout(DEADLINE_S):
            await sending
    assert await state_of(pair.source, config.vm_id) is PowerState.RUNNING
    await migration_of(pair.target).abandon(config.vm_id)
    await gone(pair.target, config.vm_id)
    assert await migration_of(pair.source).progress(config.vm_id) is None
    await counted(pair, 0, config.vm_id, len(pair.console(0, config.vm_id)) + 3)
    check_count(pair, config.vm_id)
    await migration_of(pair.source).cancel(config.vm_id)  # fine where there is nothing


async def test_what_is_under_way_is_found_again_after_a_restart_and_can_be_cancelled(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))
    sending = await under_way(pair, config, slow(pair))
    await pair.source.close()
    pair.source = pair.connect(0)
    await pair.source.open()

    progress = await migration_of(pair.source).progress(config.vm_id)
    assert progress is not None
    assert not progress.phase.is_end
    await migration_of(pair.source).cancel(config.vm_id)

    async def look() -> bool | None:
        return True if await migration_of(pair.source).progress(config.vm_id) is None else None

    await eventually(look, "the end of the migration", DEADLINE_S)
    assert await state_of(pair.source, config.vm_id) is PowerState.RUNNING
    await migration_of(pair.target).abandon(config.vm_id)
    await gone(pair.target, config.vm_id)
    sending.cancel()


async def test_what_is_under_way_ends_although_nobody_waits(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))
    sending = await under_way(pair, config, options(pair, bandwidth_bytes_s=8 * SLOW_BYTES_S))
    await pair.source.close()

    pair.source = pair.connect(0)
    await pair.source.open()

    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.RUNNING
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)
    sending.cancel()


async def test_post_copy_moves_a_guest_that_writes_too_fast(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))
    await let_in(pair, config)

    wish = options(pair, bandwidth_bytes_s=16 * SLOW_BYTES_S, max_downtime_ms=1, post_copy=True)
    progress = await send(pair, config, wish)

    assert progress.phase is Phase.COMPLETE
    await gone(pair.source, config.vm_id)
    assert await state_of(pair.target, config.vm_id) is PowerState.RUNNING
    await counted(pair, 1, config.vm_id, 3)
    check_count(pair, config.vm_id)


async def test_a_target_that_is_not_there_leaves_the_vm_running(pair: Pair) -> None:
    config = await started(pair, pair.config())
    wish = options(pair)
    nowhere = pair.peer_uri(1).replace("10.97.0.2", "127.0.0.1").replace("/h1/", "/h7/")  # nobody listens there
    wish = dataclasses.replace(wish, route=dataclasses.replace(wish.route, peer_uri=nowhere))

    with pytest.raises(MigrationFailed):
        await send(pair, config, wish)

    assert await state_of(pair.source, config.vm_id) is PowerState.RUNNING
    await counted(pair, 0, config.vm_id, len(pair.console(0, config.vm_id)) + 3)


async def test_its_own_host_is_refused(pair: Pair) -> None:
    config = await started(pair, pair.config())
    wish = options(pair)
    wish = dataclasses.replace(wish, route=dataclasses.replace(wish.route, peer_uri=pair.peer_uri(0)))

    with pytest.raises(MigrationRefused):
        await send(pair, config, wish)

    assert await state_of(pair.source, config.vm_id) is PowerState.RUNNING


async def test_a_vm_that_is_there_already_is_refused(pair: Pair) -> None:
    config = pair.config()
    await pair.target.create(config)

    with pytest.raises(MigrationRefused, match="already"):
        await migration_of(pair.target).prepare(arrival(pair, config))


async def test_what_the_target_lacks_is_refused(pair: Pair) -> None:
    config = pair.config()
    nic = NicConfig(str(uuid.uuid4()), "52:54:00:00:00:01", network="nowhere")
    too_large = dataclasses.replace(config, memory_mib=2**30, cpu=CpuTopology())

    for wanted in (dataclasses.replace(config, nics=(nic,)), too_large):
        with pytest.raises(HypervisorError) as refusal:
            await migration_of(pair.target).prepare(arrival(pair, wanted))
        assert config.vm_id in str(refusal.value)


async def test_a_vm_with_snapshots_is_refused(pair: Pair) -> None:
    config = pair.config()
    if isinstance(pair, LibvirtPair):
        path = config.disks[0].path.with_suffix(".qcow2")
        making = await asyncio.create_subprocess_exec("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M")
        assert await making.wait() == 0
        disk = dataclasses.replace(config.disks[0], path=path, format=DiskFormat.QCOW2)
        config = dataclasses.replace(config, disks=(disk,))
    await pair.source.create(config)
    assert pair.source.snapshots is not None
    await pair.source.snapshots.create(config.vm_id, SnapshotRequest(str(uuid.uuid4()), "before"))

    with pytest.raises(MigrationRefused, match="snapshots"):
        await migration_of(pair.source).check(config.vm_id, options(pair))


async def test_a_forecast_measures_memory_and_disks(pair: Pair) -> None:
    config = await started(pair, pair.config(heavy=True))

    load = await migration_of(pair.source).forecast(config.vm_id, 1.0)

    assert load.memory_bytes == config.memory_mib * 2**20
    assert load.disk_bytes > 0
    assert load.dirty_bytes_s is not None


async def test_a_forecast_of_a_vm_that_is_off_has_disks_only(pair: Pair) -> None:
    config = pair.config()
    await pair.source.create(config)

    load = await migration_of(pair.source).forecast(config.vm_id, 1.0)

    assert (load.memory_bytes, load.dirty_bytes_s) == (0, 0)
    assert load.disk_bytes > 0


async def test_an_unknown_vm_is_not_found(pair: Pair) -> None:
    vm_id = str(uuid.uuid4())

    with pytest.raises(VmNotFound):
        await migration_of(pair.source).check(vm_id, options(pair))
    with pytest.raises(VmNotFound):
        await migration_of(pair.source).forecast(vm_id, 1.0)
    assert await migration_of(pair.source).progress(vm_id) is None
    await migration_of(pair.source).cancel(vm_id)
    await migration_of(pair.target).abandon(vm_id)


async def test_both_hosts_can_take_part(pair: Pair) -> None:
    for hypervisor in (pair.source, pair.target):
        assert await migration_of(hypervisor).obstacle() == ""
        assert (await hypervisor.capabilities()).supports_live_migration
