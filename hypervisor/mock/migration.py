"""Migration between simulated hosts of one machine, in one process or several, in simulated time.

What goes on is in the VM's record: a process that ends and comes back finds it and carries on. See `dock` for how two
hosts hand a VM over, and `migration_model` for how long it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import tempfile
import uuid
import weakref
from pathlib import Path
from typing import Final

from hypervisor.errors import HypervisorError, MigrationFailed, MigrationRefused, Unavailable, WrongState
from hypervisor.migration import (
    Arrival,
    Migration,
    MigrationLoad,
    MigrationOptions,
    MigrationProgress,
    PeerCertificates,
    Phase,
    Places,
    Route,
    obstacles_of,
    ties_of,
)
from hypervisor.mock import store as mock_store
from hypervisor.mock.dock import SCHEME, Dock, dock_beside
from hypervisor.mock.faults import Operation
from hypervisor.mock.host import OFF, MockHost
from hypervisor.mock.migration_model import Course, Freight, plot, progress_at
from hypervisor.mock.store import MockDeparture, MockVm
from hypervisor.types import EventKind, PowerState, VmConfig

LOOK_INTERVAL_S: Final = 0.05
"""How often a host looks into its dock while it expects somebody of another process."""
TAKE_DEADLINE_S: Final = 5.0
"""How long a source waits for the target to have the VM in its state; a target that is gone has it when it is back."""
_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})

_neighbours: weakref.WeakValueDictionary[Path, MockMigration] = weakref.WeakValueDictionary()
"""Hosts of this process by their docks, which are told at once instead of having to look."""


class MockMigration(Migration):
    """See `Migration`."""

    def __init__(self, host: MockHost) -> None:
        self._host = host
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._own_dock: Dock | None = None
        self._journeys: dict[str, asyncio.Task[MigrationProgress]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._watching: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._carries = False

    # the host itself

    async def open(self) -> None:
        """Go on with what was under way when the process ended."""
        self._carries = True
        if self._host.settings.state_path is not None and self._dock.directory.exists():
            await self._occupy()
        for vm in list(self._host.vms.values()):
            if vm.departure is not None and vm.config.vm_id not in self._journeys:
                self._begin(vm, vm.departure)

    async def close(self) -> None:
        """Stop carrying; it goes on when the host is opened again."""
        self._carries = False
        tasks = [*self._journeys.values(), *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._journeys.clear()
        self._watching = None
        if self._own_dock is not None:
            self._own_dock.leave()

    @property
    def certificates(self) -> PeerCertificates | None:
        """See `Migration`."""
        return None

    @property
    def peer_uri(self) -> str:
        """Where the state file is: other simulated hosts find the dock beside it."""
        return f"{SCHEME}{self._state_path}"

    async def obstacle(self) -> str:
        """There is none."""
        return ""

    # the target

    async def prepare(self, arrival: Arrival) -> None:
        """See `Migration`."""
        config = arrival.config
        lost = await self._host.strike(Operation.PREPARE_MIGRATION, config.vm_id)
        if config.vm_id in self._host.vms:
            raise MigrationRefused(f"VM {config.vm_id} is on this host already")
        self._host.check_fits_host(config)
        self._require_networks(config)
        if not arrival.is_off:
            self._host.check_room(config.vm_id, config.memory_mib)
        await self._occupy()
        self._host.lose_answer(lost)

    async def admit(self, vm_id: str) -> None:
        """See `Migration`."""
        lost = await self._host.strike(Operation.ADMIT_MIGRATION, vm_id)
        await self._occupy()
        await asyncio.to_thread(self._dock.open_door, vm_id)
        self._news.set()  # who watches may have looked between the two
        self._host.lose_answer(lost)

    async def abandon(self, vm_id: str) -> None:
        """See `Migration`."""
        await self._host.strike(Operation.ABANDON_MIGRATION, vm_id)
        await asyncio.to_thread(self._dock.shut_door, vm_id)
        await self._look()

    # the source

    async def check(self, vm_id: str, options: MigrationOptions) -> None:
        """See `Migration`."""
        await self._host.strike(Operation.CHECK_MIGRATION, vm_id)
        vm = self._host.vm(vm_id)
        self._host.require(vm, "migrate", OFF | _IN_MEMORY)
        if vm.departure is not None or vm.is_arriving:
            raise WrongState(vm_id, "migrate", "migrating")
        if options.route.peer_uri == self.peer_uri:
            raise MigrationRefused(f"VM {vm_id} is on the host that it shall move to")
        if not options.route.peer_uri.startswith(SCHEME):
            raise MigrationRefused(f"a simulated host reaches simulated ones only, not {options.route.peer_uri!r}")
        ties = ties_of(vm.live_config, has_snapshots=bool(vm.snapshots))
        words = obstacles_of(ties, is_off=vm.state in OFF, copies_disks=options.copies_disks)
        if words:
            raise MigrationRefused(f"VM {vm_id} cannot be moved: {'; '.join(words)}")

    async def send(self, vm_id: str, options: MigrationOptions) -> MigrationProgress:
        """See `Migration`."""
        await self.check(vm_id, options)
        lost = await self._host.strike(Operation.SEND_VM, vm_id)
        vm = self._host.vm(vm_id)
        dock, config = _dock_at(options.route.peer_uri), _moved(vm.config, options.route)
        text = json.dumps(mock_store.encode(config))
        if not await asyncio.to_thread(dock.is_occupied):
            raise MigrationFailed(f"VM {vm_id} stays: there is no host at {options.route.peer_uri}")
        if not await asyncio.to_thread(dock.enter, vm_id, text):
            raise MigrationFailed(f"VM {vm_id} stays: the target does not let it in")
        departure = MockDeparture(
            journey=uuid.uuid4().hex,
            peer_uri=options.route.peer_uri,
            here_storage=options.route.here.storage_root,
            here_logs=options.route.here.console_log_dir,
            there_storage=options.route.there.storage_root,
            there_logs=options.route.there.console_log_dir,
            began_at_s=self._host.now_s(),
            state=vm.state,
            memory_bytes=0 if vm.state in OFF else vm.live_config.memory_mib * 2**20,
            disk_bytes=self._disk_bytes(vm) if options.copies_disks else 0,
            dirty_bytes_s=self._dirty_bytes_s(vm),
            bandwidth_bytes_s=min(
                options.bandwidth_bytes_s or self._host.settings.migration_bytes_s,
                self._host.settings.migration_bytes_s,
            ),
            max_downtime_s=options.max_downtime_ms / 1000,
            is_live=options.is_live,
            auto_converge=options.auto_converge,
            post_copy=options.post_copy,
        )
        vm.departure = departure
        self._host.touch(vm)
        await self._host.save()
        await _tell(dock)
        if not self._carries:  # it was closed since the departure was noted, upon which the next one to open it carries
            raise Unavailable(f"VM {vm_id} goes on its way when the mock hypervisor is opened again")
        progress = await asyncio.shield(self._begin(vm, departure))
        self._host.lose_answer(lost)
        return progress

    async def progress(self, vm_id: str) -> MigrationProgress | None:
        """See `Migration`."""
        await self._host.strike(Operation.WATCH_MIGRATION, vm_id)
        vm = self._host.vms.get(vm_id)
        if vm is None or vm.departure is None:
            return None
        freight, course = _plan(vm.departure)
        return progress_at(freight, course, self._host.now_s() - vm.departure.began_at_s)

    async def cancel(self, vm_id: str) -> None:
        """See `Migration`."""
        lost = await self._host.strike(Operation.CANCEL_MIGRATION, vm_id)
        progress = await self.progress(vm_id)
        if progress is not None:
            if progress.is_post_copy:
                raise MigrationFailed(
                    f"VM {vm_id} runs at the target already and fetches its memory from here: there is no way back"
                )
            self._cancelled.setdefault(vm_id, asyncio.Event()).set()
        self._host.lose_answer(lost)

    async def forecast(self, vm_id: str, sample_s: float) -> MigrationLoad:
        """See `Migration`."""
        await self._host.strike(Operation.FORECAST_MIGRATION, vm_id)
        vm = self._host.vm(vm_id)
        if vm.state not in _IN_MEMORY:
            return MigrationLoad(0, 0, self._disk_bytes(vm))
        await self._host.sleep(sample_s)
        return MigrationLoad(vm.live_config.memory_mib * 2**20, self._dirty_bytes_s(vm), self._disk_bytes(vm))

    # carrying

    def _begin(self, vm: MockVm, departure: MockDeparture) -> asyncio.Task[MigrationProgress]:
        vm_id = vm.config.vm_id
        self._cancelled[vm_id] = asyncio.Event()
        task = asyncio.create_task(self._travel(vm, departure), name=f"mock-migration-{vm_id}")
        self._journeys[vm_id] = task
        task.add_done_callback(lambda done: self._ended(vm_id, done))
        return task

    def _ended(self, vm_id: str, done: asyncio.Task[MigrationProgress]) -> None:
        if self._journeys.get(vm_id) is done:
            del self._journeys[vm_id], self._cancelled[vm_id]
        if not done.cancelled():
            done.exception()  # it was told to whoever waits, if anybody does

    async def _travel(self, vm: MockVm, departure: MockDeparture) -> MigrationProgress:
        vm_id, dock = vm.config.vm_id, _dock_at(departure.peer_uri)
        freight, course = _plan(departure)
        if not await asyncio.to_thread(dock.has_landed, vm_id, departure.journey):
            try:
                await self._carry(vm, departure, dock, course)
            except HypervisorError as error:
                await self._return(vm, departure, dock)
                raise MigrationFailed(f"VM {vm_id} stays where it was: {error}") from error
        return await self._hand_over(vm, departure, dock, progress_at(freight, course, course.end_s), course)

    async def _carry(self, vm: MockVm, departure: MockDeparture, dock: Dock, course: Course) -> None:
        """Do everything up to the moment from which the VM is the target's."""
        vm_id, state = vm.config.vm_id, departure.state
        await self._wait_until(vm, departure, course.switch_s)
        await self._host.strike(Operation.SWITCH_VM, vm_id)
        if state is PowerState.RUNNING:
            vm.run_before_s, vm.running_since_s = self._host.age_s(vm), None
            self._host.change(vm, PowerState.PAUSED, EventKind.PAUSED, "paused by a migration")
            await self._host.save()
            await self._host.sleep(course.downtime_s)
        if not await asyncio.to_thread(dock.is_occupied):
            raise Unavailable("the target host is gone")
        if not await asyncio.to_thread(dock.is_expected, vm_id):
            raise Unavailable("the target host does not take it in any more")
        moved = dataclasses.replace(vm, config=_moved(vm.config, _route_of(departure)), departure=None, state=state)
        text = json.dumps(mock_store.encode(moved))
        before = PowerState.PAUSED if state is PowerState.RUNNING else state

        def land() -> None:
            if self._host.vms.get(vm_id) is not vm or vm.state is not before:  # it was killed, as late as now
                raise Unavailable(f"the VM became {vm.state.value} meanwhile")
            dock.land(vm_id, departure.journey, text)

        await asyncio.to_thread(land)

    async def _wait_until(self, vm: MockVm, departure: MockDeparture, switch_s: float) -> None:
        """Wait in simulated time; ends early, with what happened, if the guest's state changes or somebody cancels."""
        vm_id, cancelled = vm.config.vm_id, self._cancelled[vm.config.vm_id]
        while True:
            if cancelled.is_set():
                raise Unavailable("it was cancelled")
            if self._host.vms.get(vm_id) is not vm or vm.state is not departure.state:
                raise Unavailable(f"the VM became {vm.state.value} meanwhile")
            left_s = departure.began_at_s + switch_s - self._host.now_s()
            if left_s <= 0:
                return
            timer = asyncio.ensure_future(self._host.sleep(min(left_s, 1.0) if math.isfinite(left_s) else 1.0))
            waiting = asyncio.ensure_future(cancelled.wait())
            try:
                await asyncio.wait({timer, waiting}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
                waiting.cancel()

    async def _return(self, vm: MockVm, departure: MockDeparture, dock: Dock) -> None:
        """Let the guest go on here."""
        vm_id = vm.config.vm_id
        await asyncio.to_thread(dock.shut_door, vm_id)
        vm.departure = None
        if self._host.vms.get(vm_id) is vm:
            if departure.state is PowerState.RUNNING and vm.state is PowerState.PAUSED and vm.running_since_s is None:
                vm.running_since_s = self._host.now_s()
                self._host.change(vm, PowerState.RUNNING, EventKind.RESUMED, "its migration failed")
            self._host.touch(vm)
            await self._host.save()
        await _tell(dock)

    async def _hand_over(
        self, vm: MockVm, departure: MockDeparture, dock: Dock, progress: MigrationProgress, course: Course
    ) -> MigrationProgress:
        """Wait until the target has the VM, which is the target's already, in its state, then forget it."""
        vm_id = vm.config.vm_id
        await _tell(dock)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_DEADLINE_S):
                while not await asyncio.to_thread(dock.was_taken, vm_id, departure.journey):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_INTERVAL_S)  # another process sees to it
        self._host.change(vm, PowerState.STOPPED, EventKind.MIGRATED_OUT)
        self._host.forget(vm_id)
        await self._host.save()
        await asyncio.to_thread(dock.tidy, vm_id, departure.journey)
        downtime_s = course.downtime_s if departure.state is PowerState.RUNNING else 0.0
        return dataclasses.replace(
            progress,
            phase=Phase.COMPLETE,
            remaining_bytes=0,
            is_post_copy=False,
            downtime_ms=int(downtime_s * 1000),
            elapsed_ms=int((self._host.now_s() - departure.began_at_s) * 1000),
        )

    # the dock

    @property
    def _state_path(self) -> Path:
        if self._host.settings.state_path is not None:
            return self._host.settings.state_path.absolute()
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="limiquantix-mock-")
        return Path(self._scratch.name) / "mock.json"

    @property
    def _dock(self) -> Dock:
        if self._own_dock is None:
            self._own_dock = Dock(dock_beside(self._state_path))
        return self._own_dock

    async def _occupy(self) -> None:
        await asyncio.to_thread(self._dock.occupy)
        _neighbours[self._dock.directory] = self
        self._news.set()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="mock-dock")

    async def _watch(self) -> None:
        """Look into the dock while somebody is expected, until cancelled."""
        while True:
            self._news.clear()
            await self._look()
            if await asyncio.to_thread(self._dock.is_waiting):
                await asyncio.sleep(LOOK_INTERVAL_S)
            else:
                await self._news.wait()

    async def notice(self) -> None:
        """Look into the dock at once, since another host of this process put something there."""
        if self._host.is_open:
            self._news.set()
            await self._look()

    async def _look(self) -> None:
        """Take in what is there, show what is coming, and drop what does not come any more."""
        for path in await asyncio.to_thread(self._dock.landed):
            await self._take(path)
        coming = await asyncio.to_thread(self._dock.arriving)
        for vm_id, text in coming.items():
            if text and vm_id not in self._host.vms:
                config = mock_store.decode(VmConfig, json.loads(text))
                vm = self._host.vms[vm_id] = MockVm(config, is_arriving=True)
                self._host.change(vm, PowerState.PAUSED, EventKind.ARRIVING)
        for vm in [vm for vm in self._host.vms.values() if vm.is_arriving and vm.config.vm_id not in coming]:
            landed = await asyncio.to_thread(self._dock.landed)
            if self._host.vms.get(vm.config.vm_id) is not vm:
                continue  # another look was faster
            if not any(path.name.startswith(vm.config.vm_id) for path in landed):
                self._host.forget(vm.config.vm_id)

    async def _take(self, path: Path) -> None:
        """Put a VM that was handed over into this host's state; repeatable until its file says so."""
        try:
            vm = mock_store.decode(MockVm, json.loads(await asyncio.to_thread(path.read_text)))
        except FileNotFoundError:
            return  # another look took it
        vm_id = vm.config.vm_id
        if (known := self._host.vms.get(vm_id)) is None or known.is_arriving:
            if vm.state is PowerState.RUNNING:
                vm.running_since_s = self._host.now_s()
            self._host.vms[vm_id] = vm
            self._host.change(vm, vm.state, EventKind.MIGRATED_IN)
        await self._host.save()
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(self._dock.take, path)

    # what a simulated guest weighs

    def _disk_bytes(self, vm: MockVm) -> int:
        return len(vm.config.disks) * self._host.settings.disk_bytes

    def _dirty_bytes_s(self, vm: MockVm) -> int:
        if vm.state is not PowerState.RUNNING:
            return 0
        return int(vm.load * vm.live_config.cpu.vcpu_count * self._host.settings.dirty_bytes_s)

    def _require_networks(self, config: VmConfig) -> None:
        settings = self._host.settings
        for nic in config.nics:
            if nic.bridge and nic.bridge not in settings.bridges:
                raise MigrationRefused(f"this host has no bridge {nic.bridge}, which VM {config.vm_id} needs")
            if nic.network and nic.network not in settings.host_networks:
                raise MigrationRefused(f"this host has no network {nic.network}, which VM {config.vm_id} needs")


def _plan(departure: MockDeparture) -> tuple[Freight, Course]:
    freight = Freight(
        departure.memory_bytes,
        departure.disk_bytes,
        departure.dirty_bytes_s,
        departure.bandwidth_bytes_s,
        departure.max_downtime_s,
        departure.is_live,
        departure.auto_converge,
        departure.post_copy,
    )
    return freight, plot(freight)


def _dock_at(peer_uri: str) -> Dock:
    return Dock(dock_beside(Path(peer_uri.removeprefix(SCHEME))))


async def _tell(dock: Dock) -> None:
    neighbour = _neighbours.get(dock.directory)
    if neighbour is not None:
        await neighbour.notice()


def _route_of(departure: MockDeparture) -> Route:
    return Route(
        departure.peer_uri,
        Places(departure.here_storage, departure.here_logs),
        Places(departure.there_storage, departure.there_logs),
    )


def _moved(config: VmConfig, route: Route) -> VmConfig:
    """Give a configuration the target's paths."""
    boot, medium = config.direct_boot, config.first_boot
    if boot is not None:
        initrd = None if boot.initrd_path is None else route.translate(boot.initrd_path)
        boot = dataclasses.replace(boot, kernel_path=route.translate(boot.kernel_path), initrd_path=initrd)
    if medium is not None:
        medium = dataclasses.replace(medium, path=route.translate(medium.path))
    return dataclasses.replace(
        config,
        direct_boot=boot,
        first_boot=medium,
        disks=tuple(dataclasses.replace(disk, path=route.translate(disk.path)) for disk in config.disks),
        cdroms=tuple(
            cdrom if cdrom.iso_path is None else dataclasses.replace(cdrom, iso_path=route.translate(cdrom.iso_path))
            for cdrom in config.cdroms
        ),
    )
