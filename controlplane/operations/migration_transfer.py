"""Sending a VM from one host to another, and finding out what became of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import structlog
from google.protobuf import json_format

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain import migration_errors, operation_errors
from controlplane.domain.migration import MigrationRules
from controlplane.domain.migration_rules import way_of
from controlplane.domain.migration_truth import Sight, Whereabouts
from controlplane.domain.operation import Json, Operation
from controlplane.domain.vm import PowerState
from controlplane.operations.migration_hosts import Hosts, Seen
from controlplane.operations.migration_wishes import wish_of
from controlplane.operations.steps import Outcome, OwnershipLost, Run, Step
from limiquantix.errors import ApiError, NotFound, Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.node.v1.node_daemon_pb2 import MigrationProgress

_log = structlog.get_logger(__name__)

SILENCE_S = 15.0
"""A stream of progress that says nothing for so long is given up, and the hosts are asked instead."""

FENCE_LOOK_S = 2.0
"""After so much silence, see whether one of the hosts is proven dead."""

NOTE_INTERVAL_S = 1.0
"""How often progress is written down."""

_PHASES = {
    node_v1.MIGRATION_PHASE_PREPARING: "the beginning of the transfer",
    node_v1.MIGRATION_PHASE_TRANSFERRING: "the transfer",
    node_v1.MIGRATION_PHASE_SWITCHING: "the switch to the target",
    node_v1.MIGRATION_PHASE_COMPLETE: "the end of the transfer",
    node_v1.MIGRATION_PHASE_FAILED: "the end of the transfer, which failed",
    node_v1.MIGRATION_PHASE_UNSETTLED: "the end of the transfer, of which the source does not know how it ended",
}


def kept_of(token: node_v1.MigrationToken) -> Json:
    """Keep of a token what the source has to be told, and not what lets the VM in."""
    places = json_format.MessageToDict(token.places, preserving_proto_field_name=True)
    return {"uri": token.target_node_uri, "places": places}


def is_unsettled(operation: Operation) -> bool:
    """Whether the operation failed without its being known where the VM is."""
    in_doubt = any(step.name == TransferStep.name and step.result.get("not_undone") for step in operation.steps)
    return in_doubt or (operation.fault is not None and operation.fault.reason == Reason.MIGRATION_UNSETTLED)


def progress_text(progress: MigrationProgress) -> str:
    """Put progress into a line for people."""
    sent_mib, left_mib = progress.data_transferred_bytes >> 20, progress.data_remaining_bytes >> 20
    words = [f"{_PHASES[progress.phase]}: {min(progress.percent_complete, 100)} %"]
    if progress.phase == node_v1.MIGRATION_PHASE_TRANSFERRING:
        words.append(f"{sent_mib} MiB sent, {left_mib} MiB left")
        if progress.pass_count > 1:
            words.append(f"pass {progress.pass_count}")
        if progress.dirty_bytes_per_sec:
            words.append(f"the guest writes {progress.dirty_bytes_per_sec >> 20} MiB/s")
    if progress.is_post_copy:
        words.append("it runs at the target, which fetches the rest")
    return ", ".join(words)


def progress_facts(progress: MigrationProgress) -> Json:
    """Put progress into the result of the step so far, for programs."""
    return {
        "percent": min(progress.percent_complete, 100),
        "bytes_sent": progress.data_transferred_bytes,
        "bytes_left": progress.data_remaining_bytes,
        "pass": progress.pass_count,
        "post_copy": progress.is_post_copy,
    }


class _Stream:
    """One reading of the source's progress: what it said last, and how it ended."""

    def __init__(self) -> None:
        self.last: MigrationProgress | None = None
        self.error: ApiError | None = None
        self.ended = asyncio.Event()
        self.heard_s = _clock_s()

    async def follow(self, daemon: NodeDaemon, request: node_v1.MigrateVMRequest) -> None:
        """Read until it ends or breaks; never raises an `ApiError`."""
        try:
            async with aclosing(daemon.migrate_vm(request)) as told:
                async for self.last in told:
                    self.heard_s = _clock_s()
        except ApiError as error:
            self.error = error
        finally:
            self.ended.set()


class TransferStep(Step):
    """Have the source send the VM, follow it, and ask both hosts where it is then."""

    name = "transfer"
    minds_fences = True
    is_cancellable = False  # once it is under way, only the hosts can say whether it was stopped in time

    def __init__(self, rules: MigrationRules) -> None:
        self._rules = rules

    async def do(self, run: Run) -> Outcome:
        """Send until it is known where the VM is."""
        hosts = await Hosts.of(run)
        place = Whereabouts.SOURCE
        if run.is_repeated:
            seen = await hosts.look(run.operation.generation)
            place = seen.place
            if place is Whereabouts.TARGET:
                return self._arrived(hosts, seen, None)
        if _shall_stop(run) and place is Whereabouts.SOURCE:
            raise operation_errors.operation_cancelled(run.operation.id, await _cancel_reason(run))
        if place is not Whereabouts.SOURCE:
            return await self._settle(run, hosts, _Stream())
        way = run.parameters["way"]
        if run.is_repeated:  # the door was opened for the commands of an older generation, and perhaps used
            token, is_protected = await hosts.admit(run.operation.generation, await hosts.measured())
            if run.parameters["is_protected"] and not is_protected:  # it is on record that it will be
                why = "the other host no longer notes that the VM ends with its lease"
                raise migration_errors.failed(hosts.vm.id, why, hosts.source_node.hostname, {})
            way = kept_of(token)
        stream = await self._send(run, hosts, way)
        return await self._settle(run, hosts, stream)

    async def _send(self, run: Run, hosts: Hosts, way: Json) -> _Stream:
        """Begin, and follow what the source tells; returns when it says no more."""
        stream = _Stream()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(stream.follow(hosts.source, self._request(run, hosts, way)))
            trouble = await self._watch(run, hosts, stream)
            reading.cancel()
        if trouble is not None:
            raise trouble
        if stream.error is not None and stream.error.reason == Reason.STALE_GENERATION:
            raise stream.error
        return stream

    async def _watch(self, run: Run, hosts: Hosts, stream: _Stream) -> Exception | None:
        """Write down what is told until nothing is; returns what keeps this process from going on.

        It is returned, since a group of tasks would wrap what is raised.
        """
        noted_s, is_told = 0.0, False
        try:
            while not stream.ended.is_set() and _clock_s() - stream.heard_s < SILENCE_S:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rules.poll_s):
                        await stream.ended.wait()
                if _clock_s() - stream.heard_s >= FENCE_LOOK_S and (await Hosts.of(run)).dead:
                    break  # the one that is dead says no more, and the other one may not notice for long
                if _shall_stop(run) and not is_told and not stream.ended.is_set():
                    is_told = await self._cancel(run, hosts)
                if stream.last is not None and _clock_s() - noted_s >= NOTE_INTERVAL_S:
                    noted_s = _clock_s()
                    await run.note(progress_text(stream.last), progress_facts(stream.last))
        except (ApiError, OwnershipLost) as error:
            return error
        return None

    @staticmethod
    async def _cancel(run: Run, hosts: Hosts) -> bool:
        """Have the source stop; returns whether it was told, which says nothing of whether it was in time."""
        request = node_v1.MigrationRequest(vm_id=hosts.vm.id, generation=run.operation.generation)
        try:
            await hosts.source.cancel_migration(request)
        except ApiError as error:
            if error.reason == Reason.STALE_GENERATION:
                raise
            _log.info("migration_not_cancelled", vm_id=hosts.vm.id, reason=error.reason, message=error.message)
            return not isinstance(error, Unavailable)
        return True

    async def _settle(self, run: Run, hosts: Hosts, stream: _Stream) -> Outcome:
        """Ask both hosts until they say where the VM is.

        Raises:
            ApiError: it is where it was, or nowhere, or nobody can say.
        """
        since_s = _clock_s()
        while True:
            hosts = await Hosts.of(run)  # anew: a daemon that was started again may be at another address
            seen = await hosts.look(run.operation.generation)
            waited_s = _clock_s() - since_s
            match seen.place:
                case Whereabouts.TARGET:
                    return self._arrived(hosts, seen, stream.last)
                case Whereabouts.SOURCE:
                    raise await self._failure(run, hosts, seen, stream)
                case Whereabouts.UNDER_WAY:
                    since_s = _clock_s()
                    await self._follow(run, hosts, seen, stream)
                    continue
                case Whereabouts.ENDED_AT_TARGET if waited_s >= self._rules.confirmation_s:
                    await hosts.discard_at_source(run.operation.generation)
                case Whereabouts.TARGET_UNCONFIRMED | Whereabouts.GONE if waited_s >= self._rules.confirmation_s:
                    return self._arrived(hosts, seen, stream.last)
                case _ if waited_s >= self._rules.patience_s or (hosts.dead and _shall_stop(run)):
                    raise hosts.unsettled(seen)  # starting it elsewhere waits for this, and asks the living host anew
            await run.note(f"word from both hosts of where the VM is ({seen.views.text})")
            await asyncio.sleep(self._rules.poll_s)

    async def _follow(self, run: Run, hosts: Hosts, seen: Seen, stream: _Stream) -> None:
        """Write down what is told of one that goes on without a stream, and wait a moment."""
        stream.last = seen.progress or stream.last
        if _shall_stop(run):
            await self._cancel(run, hosts)
        if stream.last is not None:
            await run.note(progress_text(stream.last), progress_facts(stream.last))
        await asyncio.sleep(self._rules.poll_s)

    def _arrived(self, hosts: Hosts, seen: Seen, last: MigrationProgress | None) -> Outcome:
        """Keep what the target says of the VM, and what it took.

        Raises:
            Aborted: it is gone from both hosts.
        """
        if seen.views.target is Sight.DEAD:  # it had the VM, and died with it
            unknown = {"state": PowerState.Name(PowerState.UNKNOWN), "state_change_count": 0, "stats": {}}
            return Outcome(unknown, {"stats": {}})
        if seen.target is None:
            raise migration_errors.gone(hosts.vm.id, hosts.source_node.hostname, hosts.target_node.hostname)
        stats = _stats(seen.progress if _is_complete(seen.progress) else last)
        result = {
            "state": PowerState.Name(STATE_OF_STATUS[seen.target.state]),
            "state_change_count": seen.target.state_change_count,
            "stats": stats,
        }
        return Outcome(result, {"stats": stats})

    async def _failure(self, run: Run, hosts: Hosts, seen: Seen, stream: _Stream) -> ApiError:
        """Make the error of a VM that is where it was."""
        if _shall_stop(run):
            return operation_errors.operation_cancelled(run.operation.id, await _cancel_reason(run))
        told = seen.progress if seen.progress is not None and seen.progress.error else stream.last
        if told is not None and told.error:
            return migration_errors.failed(hosts.vm.id, told.error, hosts.source_node.hostname, {})
        if stream.error is not None:
            return stream.error
        why = f"its guest was {Sight(seen.views.source)} there, and nothing says what stopped it"
        return migration_errors.failed(hosts.vm.id, why, hosts.source_node.hostname, {"views": seen.views.text})

    async def undo(self, run: Run) -> None:
        """Stop it if it is still under way, and see that the VM is at the source.

        Raises:
            DeadlineExceeded: it is not known where the VM is; then nothing else is undone either.
            Unavailable: the same, but asking again may help.
        """
        if run.operation.fault is not None and run.operation.fault.reason == Reason.MIGRATION_UNSETTLED:
            return
        try:
            hosts = await Hosts.of(run)
        except NotFound:
            return
        seen = await hosts.look(run.operation.generation)
        if seen.place is Whereabouts.SOURCE or seen.place is Whereabouts.GONE:
            return
        if seen.place is Whereabouts.UNDER_WAY:
            await self._cancel(run, hosts)
        error = hosts.unsettled(seen)
        raise Unavailable(error.reason, error.message, metadata=error.metadata)

    def _request(self, run: Run, hosts: Hosts, way: Json) -> node_v1.MigrateVMRequest:
        wish, config = wish_of(run.parameters), hosts.vm.spec.migration
        asked = way_of(config, wish, self._rules.bandwidth_mbps)
        return node_v1.MigrateVMRequest(
            vm_id=hosts.vm.id,
            target_node_uri=way["uri"],
            target_places=json_format.ParseDict(way["places"], node_v1.MigrationPlaces()),
            live=wish.live,
            storage=hosts.migration.copies_disks,
            generation=run.operation.generation,
            max_downtime_ms=wish.max_downtime_ms or config.max_downtime_ms,
            bandwidth_mbps=wish.bandwidth_mbps or config.bandwidth_mbps,
            auto_converge=asked.auto_converge,
            post_copy=asked.post_copy,
            compression=config.compression,
            target_node_id=hosts.migration.target_node_id,
        )


def _shall_stop(run: Run) -> bool:
    """Whether somebody asked for cancellation, now or of a process that worked on it before."""
    return run.is_cancelled or bool(run.operation.cancel_requested)


async def _cancel_reason(run: Run) -> str:
    """Say why the operation shall be cancelled."""
    stored = await run.store.read(lambda tx: tx.get_operation(run.operation.id))
    return (stored.cancel_requested if stored is not None else "") or "it was asked for"


def _clock_s() -> float:
    return asyncio.get_running_loop().time()


def _is_complete(progress: MigrationProgress | None) -> bool:
    return progress is not None and progress.phase == node_v1.MIGRATION_PHASE_COMPLETE


def _stats(progress: MigrationProgress | None) -> Json:
    """Keep the measures of a migration; nothing where nobody told them."""
    if progress is None:
        return {}
    return {
        "bytes_transferred": str(progress.data_transferred_bytes),
        "downtime_ms": str(progress.downtime_ms),
        "duration_ms": str(progress.elapsed_ms),
        "memory_pages": str(progress.memory_page_count),
        "disk_bytes": str(progress.disk_transferred_bytes),
    }
