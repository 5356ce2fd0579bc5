"""The two hosts of a migration: what they say of the VM, and having them tidy up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import structlog

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import to_node_spec
from controlplane.domain import errors, ha_errors, migration_errors
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.fencing import proves_dead
from controlplane.domain.migration import Migration
from controlplane.domain.migration_truth import Progress, Sight, Views, Whereabouts, whereabouts
from controlplane.domain.node import Node
from controlplane.domain.vm import Vm
from controlplane.operations.steps import Run
from controlplane.state.interface import Transaction
from limiquantix.errors import ApiError, FailedPrecondition, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_log = structlog.get_logger(__name__)

SOURCE, TARGET = node_v1.MIGRATION_ROLE_SOURCE, node_v1.MIGRATION_ROLE_TARGET

_SIGHTS = {
    node_v1.POWER_STATE_RUNNING: Sight.RUNNING,
    node_v1.POWER_STATE_PAUSED: Sight.PAUSED,
    node_v1.POWER_STATE_STOPPED: Sight.OFF,
    node_v1.POWER_STATE_SUSPENDED: Sight.OFF,
    node_v1.POWER_STATE_CRASHED: Sight.OFF,
}
_PROGRESS = {
    node_v1.MIGRATION_PHASE_COMPLETE: Progress.COMPLETE,
    node_v1.MIGRATION_PHASE_FAILED: Progress.FAILED,
    node_v1.MIGRATION_PHASE_UNSETTLED: Progress.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What both hosts said at one time; a status is None where a host has no such VM, or did not answer."""

    views: Views
    place: Whereabouts
    source: node_v1.VMStatusResponse | None
    target: node_v1.VMStatusResponse | None
    progress: node_v1.MigrationProgress | None


@dataclass(frozen=True, slots=True)
class Hosts:
    """A VM, the nodes that it moves between, and their daemons."""

    vm: Vm
    migration: Migration
    source_node: Node
    target_node: Node
    source: NodeDaemon
    target: NodeDaemon
    dead: Mapping[str, str] = field(default_factory=dict)
    """Fences that prove that nothing of the VM runs on a node, by the node's id."""
    told_before: str = ""
    """What the source told of an earlier migration before this one began, as `last_told` returns it."""

    @classmethod
    async def of(cls, run: Run) -> Hosts:
        """Find those of the migration of an operation's VM.

        Raises:
            NotFound: the VM or one of the nodes is gone, or there is no migration.
        """

        async def read(tx: Transaction) -> tuple[Vm, Migration, Node, Node, dict[str, str]]:
            vm_id = run.operation.resource_id
            vm, migration = await tx.get_vm(vm_id), await tx.get_migration(vm_id)
            if vm is None or migration is None:
                raise errors.vm_not_found(vm_id)
            found = {node.id: node for node in await tx.nodes(migration.node_ids)}
            for node_id in migration.node_ids:
                if node_id not in found:
                    raise errors.node_not_found(node_id)
            dead = await _proven_dead(tx, vm, migration)
            return vm, migration, found[migration.source_node_id], found[migration.target_node_id], dead

        vm, migration, source, target, dead = await run.store.read(read)
        daemons, told_before = run.daemons, str(run.parameters.get("told_before", ""))
        return cls(vm, migration, source, target, daemons.daemon(source), daemons.daemon(target), dead, told_before)

    async def last_told(self, generation: int) -> str:
        """Ask the source for the last migration of the VM that it knows of; "" if there is none or no answer."""
        told = await self._progress(generation)
        return "" if told is None else told.SerializeToString(deterministic=True).hex()

    async def _progress(self, generation: int) -> node_v1.MigrationProgress | None:
        if self.source_node.id in self.dead:
            return None
        try:
            return await self.source.get_migration(node_v1.MigrationRequest(vm_id=self.vm.id, generation=generation))
        except ApiError:
            return None

    async def look(self, generation: int) -> Seen:
        """Ask both hosts; the progress first, so that what they say of the VM is not older than it."""
        progress = await self._progress(generation)
        if progress is not None and progress.SerializeToString(deterministic=True).hex() == self.told_before:
            progress = None
        (source_sight, source), (target_sight, target) = await asyncio.gather(
            self._sight(self.source, self.source_node), self._sight(self.target, self.target_node)
        )
        views = Views(source_sight, target_sight, _progress_of(progress))
        place = whereabouts(views, ran=self.migration.ran, shares_disks=not self.migration.copies_disks)
        return Seen(views, place, source, target, progress)

    async def _sight(self, daemon: NodeDaemon, node: Node) -> tuple[Sight, node_v1.VMStatusResponse | None]:
        if node.id in self.dead:
            # Which of two copies of a disk is the whole one, only the host can say that made it.
            return Sight.SILENT if self.migration.copies_disks else Sight.DEAD, None
        return await _sight(daemon, self.vm.id)

    async def measured(self) -> node_v1.MigrationForecast | None:
        """Have the source measure the VM; None if it does not answer, since no migration fails for that."""
        try:
            return await self.source.forecast_migration(
                node_v1.MigrationForecastRequest(vm_id=self.vm.id, sample_sec=1)
            )
        except ApiError as error:
            _log.info("migration_not_measured", vm_id=self.vm.id, reason=error.reason, message=error.message)
            return None

    async def admit(
        self, generation: int, measured: node_v1.MigrationForecast | None
    ) -> tuple[node_v1.MigrationToken, bool]:
        """Make the target ready and have it let the VM in; returns what the source has to be told of it.

        And whether the target noted that the VM ends with its lease, if its policy asks for that.

        In one, since a token is good for one time: whoever repeats this gets another one, and none is kept.
        """
        definition = node_v1.CreateVMOnNodeRequest(
            vm_id=self.vm.id,
            name=self.vm.name,
            spec=to_node_spec(self.vm.spec),
            labels=self.vm.labels,
            generation=generation,
        )
        request = node_v1.PrepareMigrationRequest(
            vm_id=self.vm.id,
            source_node_uri=f"node:{self.source_node.hostname}",
            generation=generation,
            definition=definition,
            source_node_id=self.migration.source_node_id,
            target_node_id=self.migration.target_node_id,
            storage=self.migration.copies_disks,
            off=not self.migration.ran,
            disk_size_bytes=measured.disk_size_bytes if measured is not None else None,
        )
        request.definition.spec.is_protected = is_restarted_elsewhere(self.vm.spec)
        try:
            token = await self.target.prepare_migration(request)
        except FailedPrecondition as error:
            if error.reason != Reason.HOST_LACKS or not request.definition.spec.is_protected:
                raise
            request.definition.spec.is_protected = False  # a host that takes no leases
            token = await self.target.prepare_migration(request)
        await self.target.receive_migration(token)
        return token, request.definition.spec.is_protected

    async def tidy(self, generation: int, *, moved: bool) -> dict[str, ApiError]:
        """Have both tidy up, whatever the other says; returns what kept each from it, by host name.

        Raises:
            Aborted: the command was taken for an older one.
        """
        trouble = await self.tidy_living(generation, moved=moved)
        for node in (self.target_node, self.source_node):
            if node.id in self.dead:
                trouble[node.hostname] = ha_errors.node_fenced(node, self.dead[node.id])
        return trouble

    async def tidy_living(self, generation: int, *, moved: bool) -> dict[str, ApiError]:
        """Do as `tidy` does, and leave out who is dead."""
        trouble: dict[str, ApiError] = {}
        for daemon, node, role in ((self.target, self.target_node, TARGET), (self.source, self.source_node, SOURCE)):
            if node.id in self.dead:
                continue
            request = node_v1.EndMigrationRequest(
                vm_id=self.vm.id,
                generation=generation,
                role=role,
                moved=moved,
                storage=self.migration.copies_disks,
            )
            try:
                await daemon.end_migration(request)
            except NotFound:
                continue
            except ApiError as error:
                if error.reason in (Reason.STALE_GENERATION, Reason.STATE_UNAVAILABLE):
                    raise
                trouble[node.hostname] = error
        return trouble

    async def discard_at_source(self, generation: int) -> None:
        """Have the source drop a guest that stands still there, older than what ran at the target and ended.

        The source refuses if it runs. Whether it did, the next look tells.

        Raises:
            Aborted: the command was taken for an older one.
        """
        request = node_v1.EndMigrationRequest(
            vm_id=self.vm.id,
            generation=generation,
            role=SOURCE,
            moved=True,
            storage=self.migration.copies_disks,
        )
        try:
            await self.source.end_migration(request)
        except ApiError as error:
            if error.reason in (Reason.STALE_GENERATION, Reason.STATE_UNAVAILABLE):
                raise
            _log.warning("past_not_removed_at_source", vm_id=self.vm.id, reason=error.reason, message=error.message)

    def unsettled(self, seen: Seen) -> ApiError:
        """Make the error that says what is not known."""
        return migration_errors.unsettled(
            self.vm.id, self.source_node.hostname, self.target_node.hostname, seen.views.text
        )


async def _proven_dead(tx: Transaction, vm: Vm, migration: Migration) -> dict[str, str]:
    """Find fences that prove the VM dead at its source, or at its target, where nobody has on record what was noted."""
    by_node = {fence.node_id: fence for fence in await tx.current_fences()}
    noted: Collection[tuple[str, bool]] = (
        (migration.source_node_id, vm.is_protected),
        (migration.target_node_id, False),
    )
    return {
        node_id: by_node[node_id].id
        for node_id, is_protected in noted
        if node_id in by_node and proves_dead(by_node[node_id], is_protected=is_protected)
    }


async def _sight(daemon: NodeDaemon, vm_id: str) -> tuple[Sight, node_v1.VMStatusResponse | None]:
    try:
        status = await daemon.vm_status(vm_id)
    except NotFound:
        return Sight.ABSENT, None
    except ApiError:
        return Sight.SILENT, None
    # A state that says nothing is no answer.
    return _SIGHTS.get(status.state, Sight.SILENT), status


def _progress_of(progress: node_v1.MigrationProgress | None) -> Progress:
    if progress is None:
        return Progress.UNKNOWN
    has_ended_badly = progress.phase in (node_v1.MIGRATION_PHASE_FAILED, node_v1.MIGRATION_PHASE_UNSETTLED)
    if has_ended_badly and progress.is_post_copy:
        return Progress.TORN
    return _PROGRESS.get(progress.phase, Progress.UNDER_WAY)
