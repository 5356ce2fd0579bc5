"""Sending VMs to other hosts, and telling how far that is.

A migration is the hypervisor's business once it has begun: it goes on when nobody follows it and when this daemon
ends. What is written down here is that it began, and how it ended; after a restart the hypervisor is asked what is
still under way, and where a VM is tells how the rest ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError, MigrationFailed, MigrationRefused, VmNotFound, WrongState
from hypervisor.migration import MigrationOptions, MigrationProgress, Phase, Places, Route
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import ApiError, FailedPrecondition, FieldViolation, InvalidArgument, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands, vm_id_of
from nodedaemon.disk_images import DiskImages
from nodedaemon.errors import hypervisor_errors
from nodedaemon.migration_records import Departure, MigrationRecords
from nodedaemon.migration_targets import power_of, refused, storage_id
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.templates import Templates

PROGRESS_INTERVAL_S: Final = 0.5
RETRY_S: Final = 1.0
MAX_SAMPLE_S: Final = 60.0
_BITS_PER_MBIT: Final = 1_000_000
_OFF: Final = frozenset({PowerState.STOPPED, PowerState.CRASHED})
_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_PHASES: Final = {
    Phase.PREPARING: pb.MIGRATION_PHASE_PREPARING,
    Phase.TRANSFERRING: pb.MIGRATION_PHASE_TRANSFERRING,
    Phase.SWITCHING: pb.MIGRATION_PHASE_SWITCHING,
    Phase.COMPLETE: pb.MIGRATION_PHASE_COMPLETE,
    Phase.FAILED: pb.MIGRATION_PHASE_FAILED,
    Phase.UNSETTLED: pb.MIGRATION_PHASE_UNSETTLED,
}

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Journey:
    """A migration under way, as those see it who follow it."""

    departure: Departure
    progress: MigrationProgress = field(default_factory=MigrationProgress)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: bool = False
    task: asyncio.Task[None] | None = None


class MigrationSources:
    """The source's part.

    Args:
        node_id: says which node this is, "" while nobody knows.
        console_log_dir: where this host logs consoles.
        now_s: Unix time.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        commands: Commands,
        images: DiskImages,
        paths: StoragePaths,
        templates: Templates,
        records: MigrationRecords,
        *,
        node_id: Callable[[], str],
        console_log_dir: Path,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._images = images
        self._paths = paths
        self._templates = templates
        self._records = records
        self._node_id = node_id
        self._console_log_dir = console_log_dir
        self._now_s = now_s
        self._journeys: dict[str, _Journey] = {}

    # what was under way

    def resume(self) -> None:
        """Follow what an earlier process began and did not see the end of."""
        for departure in self._records.departures():
            if not departure.is_over and departure.vm_id not in self._journeys:
                self._start(departure, None)

    async def close(self) -> None:
        """Follow no more; what is under way goes on."""
        tasks = [journey.task for journey in self._journeys.values() if journey.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # sending

    async def migrate(self, request: pb.MigrateVMRequest) -> AsyncGenerator[pb.MigrationProgress, None]:
        """Begin to send a VM, or follow what was begun by the same command; the last message says how it ended."""
        vm_id = vm_id_of(request)
        known = await self._begun_before(request, vm_id)
        if isinstance(known, pb.MigrationProgress):
            yield known
            return
        journey = known or await self._begin(request, vm_id)
        while not journey.is_over.is_set():
            yield _encode(vm_id, journey.progress)
            await _wait(journey.is_over, PROGRESS_INTERVAL_S)
        yield _encode(vm_id, journey.progress)

    async def _begun_before(self, request: pb.MigrateVMRequest, vm_id: str) -> _Journey | pb.MigrationProgress | None:
        """Find what the same command began; its end, if it is over."""
        self._commands.require_newest(request)
        journey = self._journeys.get(vm_id)
        if journey is not None:
            if journey.departure.generation != request.generation:
                raise _under_way(vm_id)
            return journey
        departure = self._records.departure(vm_id)
        if departure is None or not request.generation or departure.generation != request.generation:
            return None
        return _encode(vm_id, _progress_of(departure))

    async def _begin(self, request: pb.MigrateVMRequest, vm_id: str) -> _Journey:
        return await self._commands.change(
            request, lambda: self._begin_in_turn(request, vm_id), deadline_s=CREATE_DEADLINE_S
        )

    async def _begin_in_turn(self, request: pb.MigrateVMRequest, vm_id: str) -> _Journey:
        known = await self._begun_before(request, vm_id)  # another call may have been before us in the queue
        if isinstance(known, _Journey):
            return known
        if known is not None:
            raise FailedPrecondition(Reason.MIGRATION_FAILED, known.error or "it is over", metadata={"vm_id": vm_id})
        migration = power_of(self._hypervisor, vm_id)
        if obstacle := await migration.obstacle():
            raise refused(vm_id, obstacle)
        if await self._templates.is_template(vm_id):
            raise refused(vm_id, "it is a template, upon whose disks others on this host may be built")
        if request.target_node_id and request.target_node_id.lower() == self._node_id().lower():
            raise refused(vm_id, "it is on that host already")
        status = await self._hypervisor.status(vm_id, with_memory=False)
        options = await self._options(request, vm_id)
        await migration.check(vm_id, options)
        departure = Departure(
            vm_id=vm_id,
            generation=request.generation,
            target_node_id=request.target_node_id.lower(),
            target_uri=request.target_node_uri,
            copies_disks=request.storage,
            was_off=status.state in _OFF,
            was_running=status.state is PowerState.RUNNING,
            began_at_s=self._now_s(),
        )
        await self._records.keep_departure(departure)
        return self._start(departure, options)

    async def _options(self, request: pb.MigrateVMRequest, vm_id: str) -> MigrationOptions:
        there = request.target_places
        missing = [
            FieldViolation(f"target_places.{name}", "must be given, as the target's token says")
            for name in ("storage_root", "console_log_dir", "storage_id")
            if not getattr(there, name)
        ]
        if missing:
            raise InvalidArgument.from_violations(missing)
        is_shared = there.storage_id.lower() == await storage_id(self._paths, vm_id)
        if request.storage and is_shared:
            raise refused(vm_id, "the hosts share their storage, so that a copy of a disk would be the disk itself")
        if not request.storage and not is_shared and await self._has_disks(vm_id):
            raise refused(vm_id, "the hosts share no storage; move it with its disks (storage)")
        route = Route(
            request.target_node_uri,
            Places(self._paths.root, self._console_log_dir),
            Places(Path(there.storage_root), Path(there.console_log_dir)),
        )
        return MigrationOptions(
            route,
            is_live=request.live,
            copies_disks=request.storage,
            max_downtime_ms=request.max_downtime_ms,
            bandwidth_bytes_s=request.bandwidth_mbps * _BITS_PER_MBIT // 8,
            auto_converge=request.auto_converge,
            post_copy=request.post_copy,
            compression=request.compression,
        )

    async def _has_disks(self, vm_id: str) -> bool:
        if self._hypervisor.devices is None:
            return True
        found = await self._hypervisor.devices.list(vm_id)
        return bool(found.disks) or any(cdrom.iso_path is not None for cdrom in found.cdroms)

    def _start(self, departure: Departure, options: MigrationOptions | None) -> _Journey:
        vm_id = departure.vm_id
        journey = self._journeys[vm_id] = _Journey(departure)
        self._commands.set_leaving(vm_id, is_leaving=True)
        journey.task = asyncio.create_task(self._travel(journey, options), name=f"migration-{vm_id}")
        return journey

    async def _travel(self, journey: _Journey, options: MigrationOptions | None) -> None:
        """See one migration to its end.

        Args:
            options: None for one that an earlier process began.
        """
        vm_id = journey.departure.vm_id
        try:
            ended = await self._send(journey, options) if options is not None else None
            if ended is None:
                ended = await self._find_out(journey)
            await self._finish(journey, ended)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - the VM must take commands again, whatever the defect
            _log.exception("migration_not_followed", vm_id=vm_id)
            journey.progress = journey.progress.ended(Phase.FAILED, "the node daemon could not follow it, see its log")
        journey.is_over.set()
        self._commands.set_leaving(vm_id, is_leaving=False)
        del self._journeys[vm_id]

    async def _send(self, journey: _Journey, options: MigrationOptions) -> MigrationProgress | None:
        """Send; returns how it ended, or None if that has to be found out."""
        vm_id = journey.departure.vm_id
        sending = asyncio.create_task(power_of(self._hypervisor, vm_id).send(vm_id, options), name=f"send-{vm_id}")
        try:
            while not sending.done():
                await asyncio.wait({sending}, timeout=PROGRESS_INTERVAL_S)
                if not sending.done():
                    await self._look(journey)
            return sending.result()
        except (MigrationFailed, MigrationRefused, WrongState, VmNotFound) as error:
            return journey.progress.ended(Phase.FAILED, str(error))
        except HypervisorError as error:
            _log.warning("migration_out_of_sight", vm_id=vm_id, error=str(error))
            return None
        finally:
            sending.cancel()

    async def _look(self, journey: _Journey) -> bool:
        """Read how far it is; returns whether the hypervisor says that it is under way."""
        vm_id = journey.departure.vm_id
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                progress = await power_of(self._hypervisor, vm_id).progress(vm_id)
        except (HypervisorError, TimeoutError):
            return True  # it does not answer; nothing is concluded from that
        if journey.is_cancelled:  # the hypervisor may not have begun when it was asked to end
            with suppress(HypervisorError):
                await power_of(self._hypervisor, vm_id).cancel(vm_id)
        if progress is not None:
            journey.progress = dataclasses.replace(progress, elapsed_ms=self._elapsed_ms(journey))
        return progress is not None

    async def _find_out(self, journey: _Journey) -> MigrationProgress:
        """Follow what the hypervisor carries on by itself, and tell its end by where the VM is."""
        vm_id = journey.departure.vm_id
        while True:
            if not await self._look(journey):
                try:
                    async with asyncio.timeout(READ_DEADLINE_S):
                        status = await self._find(vm_id)
                except (HypervisorError, TimeoutError):
                    await asyncio.sleep(RETRY_S)
                    continue
                if status is None:
                    return journey.progress.ended(Phase.COMPLETE)
                return journey.progress.ended(Phase.FAILED, "it did not end well; the VM is here")
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    async def _finish(self, journey: _Journey, ended: MigrationProgress) -> None:
        """Write down how it ended, before anybody is told."""
        vm_id, departure = journey.departure.vm_id, journey.departure
        ended = dataclasses.replace(ended, elapsed_ms=ended.elapsed_ms or self._elapsed_ms(journey))
        if ended.phase is Phase.FAILED:
            ended = await self._doubted(departure, ended)
        departure = dataclasses.replace(
            departure,
            is_over=True,
            phase=ended.phase.value,
            is_post_copy=ended.is_post_copy,
            error=ended.error,
            downtime_ms=ended.downtime_ms,
            elapsed_ms=ended.elapsed_ms,
            transferred_bytes=ended.transferred_bytes,
            disk_transferred_bytes=ended.disk_transferred_bytes,
            memory_page_count=ended.memory_page_count,
            pass_count=ended.pass_count,
        )
        while True:
            try:
                await self._records.keep_departure(departure)
                break
            except ApiError as error:  # the disk is full; what is not written would be told as something else later
                _log.error("migration_end_not_written", vm_id=vm_id, error=str(error))
                await asyncio.sleep(RETRY_S)
        journey.progress = ended
        _log.info("vm_migration_ended", vm_id=vm_id, phase=ended.phase.value, error=ended.error or None)

    async def _doubted(self, departure: Departure, ended: MigrationProgress) -> MigrationProgress:
        """Look whether one that is said to have failed did: then its guest is again what it was before.

        A guest that ran and stands still was handed over, and nobody told this host what became of it: it may run at
        the target, on the same disks, which makes what is in memory here the past.
        """
        vm_id = departure.vm_id
        if departure.was_off:
            await self._turn_off_again(vm_id)
            return ended
        while departure.was_running:
            try:
                async with asyncio.timeout(READ_DEADLINE_S):
                    status = await self._find(vm_id)
            except (HypervisorError, TimeoutError):
                await asyncio.sleep(RETRY_S)
                continue
            if status is not None and status.state is PowerState.PAUSED:
                return ended.ended(Phase.UNSETTLED, ended.error)
            break
        return ended

    async def _turn_off_again(self, vm_id: str) -> None:
        """A VM that was off may have been put in memory to be sent; its guest never ran."""
        try:
            status = await self._find(vm_id)
            if status is not None and status.state is PowerState.PAUSED:
                await self._hypervisor.force_stop(vm_id)
        except HypervisorError as error:
            _log.warning("vm_not_turned_off_again", vm_id=vm_id, error=str(error))

    def _elapsed_ms(self, journey: _Journey) -> int:
        return max(0, int((self._now_s() - journey.departure.began_at_s) * 1000))

    # whoever follows

    async def get(self, request: pb.MigrationRequest) -> pb.MigrationProgress:
        """Say how far a migration is, or how the last one ended.

        Raises:
            NotFound: none is known.
        """
        vm_id = vm_id_of(request)
        if (journey := self._journeys.get(vm_id)) is not None:
            return _encode(vm_id, journey.progress)
        departure = self._records.departure(vm_id)
        if departure is None or departure.is_tidy:
            raise NotFound(
                Reason.MIGRATION_NOT_FOUND,
                f"this host knows of no migration of VM {vm_id} to another one",
                metadata={"vm_id": vm_id},
            )
        return _encode(vm_id, _progress_of(departure))

    async def cancel(self, request: pb.MigrationRequest) -> None:
        """Stop sending; a command of the same generation that comes later begins nothing."""
        self._commands.require_newest(request)
        vm_id = vm_id_of(request)
        if (journey := self._journeys.get(vm_id)) is not None:
            with hypervisor_errors(vm_id):
                await power_of(self._hypervisor, vm_id).cancel(vm_id)
            journey.is_cancelled = True
        else:
            await self._commands.change(request, lambda: self._void(vm_id, request.generation))

    async def _void(self, vm_id: str, generation: int) -> None:
        """Let a migration of this generation count as ended before it began."""
        departure = self._records.departure(vm_id)
        if generation and (departure is None or departure.generation != generation):
            await self._records.keep_departure(
                Departure(
                    vm_id=vm_id,
                    generation=generation,
                    target_node_id="",
                    target_uri="",
                    copies_disks=False,
                    was_off=False,
                    began_at_s=self._now_s(),
                    is_over=True,
                    phase=Phase.FAILED.value,
                    error="it was cancelled before it began",
                )
            )

    async def end(self, request: pb.EndMigrationRequest) -> None:
        """Tidy up."""
        vm_id = vm_id_of(request)
        work = self._leave if request.moved else self._stay
        await self._commands.change(request, lambda: work(vm_id, request), deadline_s=CREATE_DEADLINE_S)

    async def _stay(self, vm_id: str, request: pb.EndMigrationRequest) -> None:
        departure = self._records.departure(vm_id)
        if departure is not None and departure.was_off:
            await self._turn_off_again(vm_id)
        await self._void(vm_id, request.generation)
        departure = self._records.departure(vm_id)
        if departure is not None and not departure.is_tidy:
            await self._records.keep_departure(dataclasses.replace(departure, is_tidy=True))

    async def _leave(self, vm_id: str, request: pb.EndMigrationRequest) -> None:
        """Remove what is left of a VM that is another host's now."""
        status = await self._find(vm_id)
        departure = self._records.departure(vm_id)
        is_past = departure is not None and departure.phase == Phase.UNSETTLED.value
        if status is not None and is_past and status.state is PowerState.PAUSED:
            await self._hypervisor.force_stop(vm_id)
        elif status is not None and status.state not in _OFF:
            raise WrongState(vm_id, "remove what is left of", status.state.value)
        if departure is None or departure.is_tidy:
            if status is not None:
                raise FailedPrecondition(
                    Reason.MIGRATION_UNSETTLED,
                    f"VM {vm_id} is on this host, which knows of no migration of it",
                    metadata={"vm_id": vm_id},
                )
            return
        await self._hypervisor.delete(vm_id)
        # Whether the storage is the target's too was looked at when it began; what it did not copy is not removed.
        if departure.copies_disks and request.storage:
            await self._images.delete_vm(vm_id)
        await self._records.keep_departure(dataclasses.replace(departure, is_over=True, is_tidy=True))

    # before it begins

    async def forecast(self, request: pb.MigrationForecastRequest) -> pb.MigrationForecast:
        """Measure what a migration would have to carry."""
        sample_s = float(request.sample_sec or 1)

        async def measure(vm_id: str) -> pb.MigrationForecast:
            load = await power_of(self._hypervisor, vm_id).forecast(vm_id, sample_s)
            return pb.MigrationForecast(
                memory_bytes=load.memory_bytes,
                dirty_bytes_per_sec=load.dirty_bytes_s,
                disk_bytes=load.disk_bytes,
                disk_size_bytes=await self._disk_sizes(vm_id),
            )

        return await self._commands.read(request, measure, deadline_s=sample_s + READ_DEADLINE_S)

    async def _disk_sizes(self, vm_id: str) -> dict[str, int]:
        """Say what the guest sees of each disk; those whose image cannot be looked at are left out."""
        if self._hypervisor.devices is None:
            return {}
        sizes = {}
        for disk in (await self._hypervisor.devices.list(vm_id)).disks:
            try:
                sizes[disk.disk_id] = (await self._images.info(vm_id, disk.path, disk.format)).virtual_size_bytes
            except ApiError as error:
                _log.warning("disk_size_unknown", vm_id=vm_id, disk_id=disk.disk_id, error=str(error))
        return sizes

    async def _find(self, vm_id: str) -> VmStatus | None:
        try:
            return await self._hypervisor.status(vm_id, with_memory=False)
        except VmNotFound:
            return None


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return


def _under_way(vm_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        Reason.VM_STATE_FORBIDS,
        f"VM {vm_id} is being sent to another host already; follow that migration, or cancel it",
        metadata={"vm_id": vm_id, "state": "migrating"},
    )


def _progress_of(departure: Departure) -> MigrationProgress:
    return MigrationProgress(
        phase=Phase(departure.phase),
        is_post_copy=departure.is_post_copy,
        transferred_bytes=departure.transferred_bytes,
        total_bytes=departure.transferred_bytes,
        disk_transferred_bytes=departure.disk_transferred_bytes,
        memory_page_count=departure.memory_page_count,
        pass_count=departure.pass_count,
        downtime_ms=departure.downtime_ms,
        elapsed_ms=departure.elapsed_ms,
        error=departure.error,
    )


def _encode(vm_id: str, progress: MigrationProgress) -> pb.MigrationProgress:
    return pb.MigrationProgress(
        vm_id=vm_id,
        percent_complete=progress.percent,
        data_transferred_bytes=progress.transferred_bytes,
        data_remaining_bytes=progress.remaining_bytes,
        phase=_PHASES[progress.phase],
        error=progress.error,
        downtime_ms=progress.downtime_ms,
        elapsed_ms=progress.elapsed_ms,
        disk_transferred_bytes=progress.disk_transferred_bytes,
        memory_page_count=progress.memory_page_count,
        dirty_bytes_per_sec=progress.dirty_bytes_s,
        pass_count=progress.pass_count,
        is_post_copy=progress.is_post_copy,
    )
