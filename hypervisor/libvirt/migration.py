"""Live migration by libvirt: the source's daemon talks to the target's, and both to their QEMUs.

Peer to peer: once it is asked, the source's daemon sees to everything, and what becomes of us matters no more. It goes
in the order that libvirt's protocol gives it, in which the guest runs at the target only after the source has stopped
it, and the source lets go of it only after the target said that it runs.

A domain that is off and has more to it than its definition (disks to be copied, its firmware's variables) is started
without letting its guest run, and sent like one that is paused.

Source: https://libvirt.org/migration.html; virDomainMigrateToURI3, virDomainGetJobStats.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from hypervisor.errors import (
    HypervisorError,
    MigrationFailed,
    MigrationRefused,
    Unavailable,
    VmNotFound,
    WrongState,
)
from hypervisor.libvirt import domain_xml, host_abilities
from hypervisor.libvirt.domain_operations import OFF
from hypervisor.libvirt.domain_state import DomainState, PausedReason
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.migration_xml import keeps_state_on_host, ties_of, translate
from hypervisor.libvirt.peer_certificates import LibvirtPeerCertificates, missing_below
from hypervisor.libvirt.visits import Visits
from hypervisor.libvirt.worker_pool import Lane
from hypervisor.migration import (
    Arrival,
    Migration,
    MigrationLoad,
    MigrationOptions,
    MigrationProgress,
    PeerCertificates,
    Phase,
    obstacles_of,
)
from hypervisor.types import PowerState

SEND_DEADLINE_S: Final = 7 * 86_400.0
"""Terabytes of disks over a slow line; what takes longer is ended by a person."""
WATCH_INTERVAL_S: Final = 0.2
CANCEL_DEADLINE_S: Final = 30.0
SAMPLE_GRACE_S: Final = 3.0
"""How long a measurement may take beside its own time."""
_STATS_GRACE_S: Final = 2.0
"""How long the numbers of a migration that is over may take to come; they come with the answer."""
_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_MIB: Final = 2**20
_KIB: Final = 2**10
_MEASURED: Final = 2
"""libvirt's VIR_DOMAIN_DIRTYRATE_MEASURED."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How hosts reach each other.

    Attributes:
        uri: "" does not let them.
        pki_path: what libvirt sees as /etc/pki, where certificates are written; None leaves that to the operator.
    """

    uri: str = ""
    pki_path: Path | None = None

    @property
    def written_to(self) -> Path | None:
        """Where certificates are written; None if none are."""
        return self.pki_path if _is_encrypted(self.uri) else None


NO_PEERS: Final = PeerSettings()


class LibvirtMigration(Migration):
    """See `Migration`."""

    def __init__(
        self, visits: Visits, settings: PeerSettings, certificates: LibvirtPeerCertificates | None = None
    ) -> None:
        self._visits = visits
        self._settings = settings
        self._library = visits.connection.library
        self._sending: set[str] = set()
        self._certificates = certificates

    @property
    def certificates(self) -> PeerCertificates | None:
        """See `Migration`."""
        return self._certificates

    @property
    def peer_uri(self) -> str:
        """See `Migration`."""
        return self._settings.uri

    async def obstacle(self) -> str:
        """See `Migration`."""
        return await asyncio.to_thread(self.find_obstacle)

    def find_obstacle(self) -> str:
        """See `Migration.obstacle`. Blocks."""
        if not self._settings.uri:
            return "no address is configured at which other hosts reach this one's libvirt (migration.address)"
        if self._certificates is not None:
            return self._certificates.find_obstacle()
        return missing_below() if _is_encrypted(self._settings.uri) else ""

    # the target

    async def prepare(self, arrival: Arrival) -> None:
        """See `Migration`."""
        domain_xml.require_uuid(arrival.config.vm_id)
        await self._visits.connection.run(partial(self._prepare, arrival), vm_id=arrival.config.vm_id)

    async def admit(self, vm_id: str) -> None:
        """Do nothing: libvirt lets in whoever shows a certificate of a host of the cluster. See `Migration`."""

    async def abandon(self, vm_id: str) -> None:
        """Do nothing; see `admit`."""

    # the source

    async def check(self, vm_id: str, options: MigrationOptions) -> None:
        """See `Migration`."""
        if words := uri_obstacle(options.route.peer_uri, self._settings.uri):
            raise MigrationRefused(f"VM {vm_id} cannot be moved: {words}")
        await self._visits.connection.run(partial(self._check, vm_id, options), vm_id=vm_id)

    async def send(self, vm_id: str, options: MigrationOptions) -> MigrationProgress:
        """See `Migration`."""
        if vm_id in self._sending:
            raise WrongState(vm_id, "migrate", "migrating")
        await self.check(vm_id, options)
        self._sending.add(vm_id)
        sending = asyncio.ensure_future(
            self._visits.connection.run(
                partial(self._send, vm_id, options), lane=Lane.SEND, vm_id=vm_id, deadline_s=SEND_DEADLINE_S
            )
        )
        sending.add_done_callback(lambda done: self._sent(vm_id, done))
        if options.post_copy:
            await self._switch_after_one_pass(vm_id, sending)
        return await asyncio.shield(sending)

    def _sent(self, vm_id: str, done: asyncio.Future[MigrationProgress]) -> None:
        self._sending.discard(vm_id)
        if not done.cancelled():
            done.exception()  # it was told to whoever waits, if anybody does

    async def progress(self, vm_id: str) -> MigrationProgress | None:
        """See `Migration`."""
        try:
            found = await self._visits.connection.run(partial(self._progress, vm_id), lane=Lane.FOLLOW, vm_id=vm_id)
        except VmNotFound:
            found = None
        return MigrationProgress() if found is None and vm_id in self._sending else found

    async def cancel(self, vm_id: str) -> None:
        """See `Migration`."""
        until_s = time.monotonic() + CANCEL_DEADLINE_S
        while not await self._visits.connection.run(partial(self._cancel, vm_id), lane=Lane.KILL, vm_id=vm_id):
            if vm_id not in self._sending:
                return
            if time.monotonic() > until_s:
                raise Unavailable(f"libvirt did not take in that the migration of VM {vm_id} shall end")
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def forecast(self, vm_id: str, sample_s: float) -> MigrationLoad:
        """Have QEMU sample memory for that long; see `Migration`."""
        seconds = max(1, math.ceil(sample_s))
        load, is_measuring = await self._visits.look(vm_id, partial(self._begin_measuring, seconds))
        until_s = time.monotonic() + seconds + SAMPLE_GRACE_S
        while is_measuring and time.monotonic() < until_s:
            await asyncio.sleep(WATCH_INTERVAL_S)
            dirty_bytes_s = await self._visits.look(vm_id, self._measured)
            if dirty_bytes_s is not None:
                return replace(load, dirty_bytes_s=dirty_bytes_s)
        return load

    async def _switch_after_one_pass(self, vm_id: str, sending: asyncio.Future[MigrationProgress]) -> None:
        while not sending.done():
            await asyncio.wait({sending}, timeout=WATCH_INTERVAL_S)
            try:
                progress = await self.progress(vm_id)
                if progress is not None and progress.pass_count > 1:
                    start = partial(self._start_post_copy, vm_id)
                    await self._visits.connection.run(start, lane=Lane.FOLLOW, vm_id=vm_id)
                    return
            except HypervisorError:  # it ended just now, or asks again
                continue

    # everything below runs in worker threads

    def _prepare(self, arrival: Arrival, connection: Any) -> None:
        config, library = arrival.config, self._library
        name = domain_xml.make_domain_name(config)
        for look, key, words in (
            (connection.lookupByUUIDString, config.vm_id, "is on this host already"),
            (connection.lookupByName, name, f"cannot come to this host: another domain is named {name}"),
        ):
            try:
                look(key)
            except library.libvirtError as error:
                if not has_code(error, ErrorCode.NO_DOMAIN):
                    raise
            else:
                raise MigrationRefused(f"VM {config.vm_id} {words}")
        self._visits.operations.require_possible(config, connection)
        networks = host_abilities.active_networks(connection, library)
        for nic in config.nics:
            if nic.network and nic.network not in networks:
                raise MigrationRefused(f"this host has no active network {nic.network}, which VM {config.vm_id} needs")
        if not arrival.is_off:
            memory = connection.getMemoryStats(-1)
            free_mib = sum(memory.get(part, 0) for part in ("free", "buffers", "cached")) // _KIB
            if free_mib < config.memory_mib:
                raise MigrationRefused(
                    f"VM {config.vm_id} needs {config.memory_mib} MiB, and this host has {free_mib} MiB free"
                )

    def _check(self, vm_id: str, options: MigrationOptions, connection: Any) -> None:
        domain = self._visits.operations.find(connection, vm_id)
        state = self._visits.operations.state(domain)
        if state not in OFF | _IN_MEMORY:
            raise WrongState(vm_id, "migrate", state.value)
        if self._progress(vm_id, connection) is not None:
            raise WrongState(vm_id, "migrate", "migrating")
        if options.route.peer_uri == self._settings.uri:
            raise MigrationRefused(f"VM {vm_id} is on the host that it shall move to")
        has_snapshots = domain.snapshotNum(0) > 0 or bool(domain.listAllCheckpoints(0))
        tree = domain_xml.parse(domain.XMLDesc(0))
        ties = ties_of(tree, has_snapshots=has_snapshots, qemu_version=connection.getVersion())
        words = obstacles_of(ties, is_off=state in OFF, copies_disks=options.copies_disks)
        if words:
            raise MigrationRefused(f"VM {vm_id} cannot be moved: {'; '.join(words)}")

    def _send(self, vm_id: str, options: MigrationOptions, connection: Any) -> MigrationProgress:
        """Send, and wait until it is over."""
        library, operations = self._library, self._visits.operations
        domain = operations.find(connection, vm_id)
        state = operations.state(domain)
        is_off = state in OFF
        has_process = not is_off or options.copies_disks or keeps_state_on_host(domain_xml.parse(domain.XMLDesc(0)))
        if is_off and has_process:
            domain.createWithFlags(library.VIR_DOMAIN_START_PAUSED)
        began_at_s = time.monotonic()
        results = _JobResults()
        callback_id = connection.domainEventRegisterAny(
            domain, library.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, results.take, None
        )
        try:
            if options.max_downtime_ms and has_process:
                domain.migrateSetMaxDowntime(options.max_downtime_ms, 0)
            flags = self._flags(options, state, has_process=has_process)
            parameters = self._parameters(domain, options, has_process=has_process)
            domain.migrateToURI3(options.route.peer_uri, parameters, flags)
        except library.libvirtError as error:
            if not self._visits.connection.is_alive(connection):
                raise
            if self._has_left(connection, vm_id):
                return self._finished(results, began_at_s, has_process=has_process)
            if is_off and has_process:
                domain.destroy()
            words = error.get_error_message() or str(error)
            if has_code(error, ErrorCode.OPERATION_ABORTED):
                words = "it was cancelled"
            raise MigrationFailed(f"VM {vm_id} stays where it was: {words}") from error
        else:
            operations.forget(vm_id)
            # before nobody listens any more, when what is told would be lost
            return self._finished(results, began_at_s, has_process=has_process)
        finally:
            if self._visits.connection.is_alive(connection):
                connection.domainEventDeregisterAny(callback_id)

    def _finished(self, results: _JobResults, began_at_s: float, *, has_process: bool) -> MigrationProgress:
        elapsed_ms = int((time.monotonic() - began_at_s) * 1000)
        numbers = results.wait(_STATS_GRACE_S if has_process else 0)  # of a definition alone there are none
        return replace(_progress_of(numbers), elapsed_ms=elapsed_ms).ended(Phase.COMPLETE)

    def _has_left(self, connection: Any, vm_id: str) -> bool:
        try:
            connection.lookupByUUIDString(vm_id)
        except self._library.libvirtError as error:
            return has_code(error, ErrorCode.NO_DOMAIN)
        return False

    def _flags(self, options: MigrationOptions, state: PowerState, *, has_process: bool) -> int:
        library = self._library
        always = library.VIR_MIGRATE_PEER2PEER | library.VIR_MIGRATE_PERSIST_DEST | library.VIR_MIGRATE_UNDEFINE_SOURCE
        if not has_process:
            return int(always | library.VIR_MIGRATE_OFFLINE)
        optional = (
            (options.is_live and state is PowerState.RUNNING, library.VIR_MIGRATE_LIVE),
            (state is not PowerState.RUNNING, library.VIR_MIGRATE_PAUSED),
            (_is_encrypted(options.route.peer_uri), library.VIR_MIGRATE_TLS),
            (options.copies_disks, library.VIR_MIGRATE_NON_SHARED_DISK),
            # That the hosts share the storage is known to whoever asks; libvirt cannot see it of a plain directory.
            (not options.copies_disks, library.VIR_MIGRATE_UNSAFE),
            (options.auto_converge, library.VIR_MIGRATE_AUTO_CONVERGE),
            (options.post_copy, library.VIR_MIGRATE_POSTCOPY),
            (options.compression, library.VIR_MIGRATE_COMPRESSED),
        )
        return int(always | sum(flag for applies, flag in optional if applies))

    def _parameters(self, domain: Any, options: MigrationOptions, *, has_process: bool) -> dict[str, Any]:
        library, route = self._library, options.route
        parameters: dict[str, Any] = {}
        if route.here != route.there or options.copies_disks:
            live = library.VIR_DOMAIN_XML_MIGRATABLE if has_process else library.VIR_DOMAIN_XML_INACTIVE
            kinds = {library.VIR_MIGRATE_PARAM_DEST_XML: live}
            if has_process:
                kinds[library.VIR_MIGRATE_PARAM_PERSIST_XML] = library.VIR_DOMAIN_XML_INACTIVE
            for name, kind in kinds.items():
                tree = domain_xml.parse(domain.XMLDesc(library.VIR_DOMAIN_XML_SECURE | kind))
                translate(tree, route, copies_disks=options.copies_disks)
                parameters[name] = domain_xml.to_text(tree)
        if has_process:
            if host := urlsplit(route.peer_uri).hostname:
                address = f"[{host}]" if ":" in host else host
                parameters[library.VIR_MIGRATE_PARAM_URI] = f"tcp://{address}"
            if options.bandwidth_bytes_s:
                mib_s = max(1, options.bandwidth_bytes_s // _MIB)
                parameters[library.VIR_MIGRATE_PARAM_BANDWIDTH] = mib_s
                if options.post_copy:
                    parameters[library.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = mib_s
        return parameters

    def _progress(self, vm_id: str, connection: Any) -> MigrationProgress | None:
        library = self._library
        domain = self._visits.operations.find(connection, vm_id)
        try:
            numbers = domain.jobStats()
        except library.libvirtError as error:
            if has_code(error, ErrorCode.OPERATION_INVALID):  # it is off
                return None
            raise
        operation = numbers.get(library.VIR_DOMAIN_JOB_OPERATION, library.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
        if (
            numbers.get("type", library.VIR_DOMAIN_JOB_NONE)
            not in (library.VIR_DOMAIN_JOB_BOUNDED, library.VIR_DOMAIN_JOB_UNBOUNDED)
            or operation != library.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
        ):
            return None
        progress = _progress_of(numbers)
        state, reason = domain.state()
        if state == DomainState.PAUSED and reason in (PausedReason.MIGRATION, PausedReason.POSTCOPY):
            progress = replace(progress, phase=Phase.SWITCHING, is_post_copy=reason == PausedReason.POSTCOPY)
        return progress

    def _cancel(self, vm_id: str, connection: Any) -> bool:
        """Return whether there was something to end."""
        try:
            domain = self._visits.operations.find(connection, vm_id)
            domain.abortJob()
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN):
                return False
            if not has_code(error, ErrorCode.OPERATION_INVALID):
                raise
            progress = self._progress(vm_id, connection)
            if progress is not None and progress.is_post_copy:
                raise MigrationFailed(
                    f"VM {vm_id} runs at the target already and fetches its memory from here: there is no way back"
                ) from error
            return False
        return True

    def _start_post_copy(self, vm_id: str, connection: Any) -> None:
        self._visits.operations.find(connection, vm_id).migrateStartPostCopy(0)

    def _begin_measuring(self, seconds: int, domain: Any) -> tuple[MigrationLoad, bool]:
        tree = domain_xml.parse(domain.XMLDesc(0))
        disk_bytes = sum(
            int(domain.blockInfo(target.get("dev"))[1])
            for disk in tree.iterfind("devices/disk[@device='disk']")
            if disk.find("readonly") is None and (target := disk.find("target")) is not None
        )
        if self._visits.operations.state(domain) not in _IN_MEMORY:
            return MigrationLoad(0, 0, disk_bytes), False
        load = MigrationLoad(int(tree.findtext("memory") or 0) * _KIB, None, disk_bytes)
        try:
            domain.startDirtyRateCalc(seconds, 0)
        except self._library.libvirtError:  # older than this, or measured by somebody else just now
            return load, False
        return load, True

    def _measured(self, domain: Any) -> int | None:
        ((_, numbers),) = domain.connect().domainListGetStats([domain], self._library.VIR_DOMAIN_STATS_DIRTYRATE, 0)
        if numbers.get("dirtyrate.calc_status") != _MEASURED:
            return None
        return int(numbers.get("dirtyrate.megabytes_per_second", 0)) * _MIB


class _JobResults:
    """What libvirt tells of a job when it ends: it keeps nothing of a domain that has left."""

    def __init__(self) -> None:
        self._numbers: Mapping[str, Any] = {}
        self._came = threading.Event()

    def take(self, _connection: Any, _domain: Any, numbers: Mapping[str, Any], _opaque: Any) -> None:
        """Take them; called in libvirt's event thread."""
        self._numbers = dict(numbers)
        self._came.set()

    def wait(self, limit_s: float) -> Mapping[str, Any]:
        """Return them, or nothing if they do not come."""
        self._came.wait(limit_s)
        return self._numbers


def _progress_of(numbers: Mapping[str, Any]) -> MigrationProgress:
    """Read libvirt's numbers of a job. Source of their names: virDomainGetJobStats, VIR_DOMAIN_JOB_*."""
    disk_bytes = int(numbers.get("disk_processed", 0))
    pages = int(numbers.get("memory_constant", 0)) + int(numbers.get("memory_normal", 0))
    return MigrationProgress(
        phase=Phase.TRANSFERRING if numbers.get("data_total") else Phase.PREPARING,
        transferred_bytes=int(numbers.get("data_processed", 0)),
        remaining_bytes=int(numbers.get("data_remaining", 0)),
        total_bytes=int(numbers.get("data_total", 0)),
        disk_transferred_bytes=disk_bytes,
        memory_page_count=pages,
        dirty_bytes_s=int(numbers.get("memory_dirty_rate", 0)) * int(numbers.get("memory_page_size", 4096)),
        pass_count=int(numbers.get("memory_iteration", 0)),
        downtime_ms=int(numbers.get("downtime", 0)),
        elapsed_ms=int(numbers.get("time_elapsed", 0)),
    )


def uri_obstacle(uri: str, own_uri: str) -> str:
    """Say what is wrong with the URI of a target; "" if nothing.

    libvirt's daemon calls it as root, and some URIs have it run programs. A host whose own peers speak TLS sends no
    guest's memory in the clear.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu+tls", "qemu+tcp") or not parts.hostname or parts.query or parts.fragment:
        return f"the target's URI must be qemu+tls://HOST/system without parameters, not {uri!r}"
    if not _is_encrypted(uri) and _is_encrypted(own_uri):
        return "the target's URI is in the clear, and this host speaks TLS with others (migration.tls)"
    return ""


def _is_encrypted(uri: str) -> bool:
    return urlsplit(uri).scheme.endswith("+tls")
