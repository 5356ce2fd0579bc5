"""Taking in VMs of other hosts: what is made ready before, and who may come.

Nothing comes without a token: random, for one VM, one generation and two nodes, good once and for some minutes. A
backend that cannot keep others out, as libvirt's, still tells who came, and whoever was not let in is told of.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError, VmNotFound, WrongState
from hypervisor.migration import Arrival, Migration
from hypervisor.types import EventKind, PowerState, VmEvent, VmStatus
from limiquantix.errors import ApiError, FailedPrecondition, InvalidArgument, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands, vm_id_of
from nodedaemon.decode import DecodedVm, decode_vm
from nodedaemon.disk_images import DiskImages
from nodedaemon.encode import timestamp
from nodedaemon.first_boot_media import FirstBootMedia
from nodedaemon.migration_records import Admission, MigrationRecords
from nodedaemon.nic_bandwidth import NicBandwidths, ShapingFailed
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.storage_domains import StorageIdUnusable, read_storage_domain
from nodedaemon.storage_paths import StoragePaths

TOKEN_LIFETIME_S: Final = 600.0
VANISH_DEADLINE_S: Final = 10.0
"""How long a VM that stands still gets to vanish after its source gave up; a backend needs a second."""
LOOK_INTERVAL_S: Final = 0.2
DOOR_INTERVAL_S: Final = 5.0
_TOKEN_BYTES: Final = 32
_OFF: Final = frozenset({PowerState.STOPPED, PowerState.CRASHED})

_log = structlog.get_logger(__name__)


def power_of(hypervisor: Hypervisor, vm_id: str) -> Migration:
    """Return the power to move VMs.

    Raises:
        FailedPrecondition: the backend has none.
    """
    if hypervisor.migration is None:
        raise refused(vm_id, "this host's hypervisor moves no VMs")
    return hypervisor.migration


def refused(vm_id: str, words: str) -> FailedPrecondition:
    """Build the refusal of a migration that has not begun."""
    return FailedPrecondition(
        Reason.MIGRATION_REFUSED, f"VM {vm_id} cannot be moved: {words}", metadata={"vm_id": vm_id}
    )


async def storage_id(paths: StoragePaths, vm_id: str) -> str:
    """Return the id of this host's storage.

    Raises:
        FailedPrecondition: it is not known, so that nobody can tell whether two hosts share it.
    """
    try:
        return (await asyncio.to_thread(read_storage_domain, paths.root)).id
    except StorageIdUnusable as error:
        raise refused(vm_id, str(error)) from error


class MigrationTargets:
    """The target's part.

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
        first_boot: FirstBootMedia,
        bandwidths: NicBandwidths,
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
        self._first_boot = first_boot
        self._bandwidths = bandwidths
        self._records = records
        self._node_id = node_id
        self._console_log_dir = console_log_dir
        self._now_s = now_s
        self._news: asyncio.Queue[VmEvent] = asyncio.Queue()

    # before it comes

    async def prepare(self, request: pb.PrepareMigrationRequest) -> pb.MigrationToken:
        """Make ready, and make a token, which replaces the one before."""
        return await self._commands.change(request, lambda: self._prepare(request), deadline_s=CREATE_DEADLINE_S)

    async def _prepare(self, request: pb.PrepareMigrationRequest) -> pb.MigrationToken:
        vm_id = vm_id_of(request)
        migration = power_of(self._hypervisor, vm_id)
        self._require_right_nodes(request, vm_id)
        if obstacle := await migration.obstacle():
            raise refused(vm_id, obstacle)
        if await self._find(vm_id) is not None:
            raise refused(vm_id, "it is on this host already")
        own_storage_id = await storage_id(self._paths, vm_id)
        decoded = await self._decode(request, vm_id)
        await migration.prepare(Arrival(decoded.config, is_off=request.off))
        await self._drop_older(vm_id, request.generation)
        await migration.abandon(vm_id)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        admission = Admission(
            vm_id=vm_id,
            generation=request.generation,
            source_node_id=request.source_node_id.lower(),
            target_node_id=request.target_node_id.lower(),
            token_digest=_digest(token),
            expires_at_s=self._now_s() + TOKEN_LIFETIME_S,
            copies_disks=request.storage,
            was_off=request.off,
        )
        await self._make_room(vm_id, decoded, admission)
        return pb.MigrationToken(
            token=token,
            vm_id=vm_id,
            expires_at=timestamp(admission.expires_at_s),
            target_node_uri=migration.peer_uri,
            generation=request.generation,
            source_node_id=request.source_node_id,
            target_node_id=request.target_node_id,
            places=pb.MigrationPlaces(
                storage_root=str(self._paths.root),
                console_log_dir=str(self._console_log_dir),
                storage_id=own_storage_id,
            ),
        )

    def _require_right_nodes(self, request: pb.PrepareMigrationRequest, vm_id: str) -> None:
        source, target, own = request.source_node_id.lower(), request.target_node_id.lower(), self._node_id().lower()
        if source and source in (target, own):
            raise refused(vm_id, "the host that it shall move to is the one that it is on")
        if target and own and target != own:
            raise refused(vm_id, f"this host is node {own}, not {target}")

    async def _decode(self, request: pb.PrepareMigrationRequest, vm_id: str) -> DecodedVm:
        """Say what the VM will be here; what this host's storage lacks for it is no fault of the request."""
        if not request.HasField("definition") or vm_id_of(request.definition) != vm_id:
            raise InvalidArgument(Reason.FIELD_VIOLATIONS, "definition: must be given, of the same VM")
        definition = request.definition
        spec = _with_plain_disks(definition.spec, vm_id) if request.storage else definition.spec
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                decoded = await asyncio.to_thread(decode_vm, vm_id, definition.name, spec, self._paths)
        except InvalidArgument as error:
            raise refused(vm_id, f"this host lacks what it needs, or another has it: {error.message}") from error
        if request.storage:
            sizes = {disk_id.lower(): size for disk_id, size in request.disk_size_bytes.items()}
            images = tuple(
                dataclasses.replace(plan, size_bytes=sizes.get(plan.disk_id.lower(), plan.size_bytes))
                for plan in decoded.images
            )
            return dataclasses.replace(decoded, images=images)
        missing = [plan.disk_id for plan in decoded.images if not await asyncio.to_thread(plan.path.exists)]
        if missing or decoded.copies:
            raise refused(
                vm_id,
                f"the image of disk {missing[0] if missing else ''} is not in this host's storage; if the hosts share "
                "none, move the VM with its disks",
            )
        return decoded

    async def _drop_older(self, vm_id: str, generation: int) -> None:
        """Remove what an earlier migration that was never ended left; what it made, it is known to have made."""
        old = self._records.admission(vm_id)
        if old is not None and not old.has_arrived and (old.generation != generation or not generation):
            await self._discard(old)

    async def _make_room(self, vm_id: str, decoded: DecodedVm, admission: Admission) -> None:
        """Make empty images where disks are copied; first it is written down that they are nobody's but this VM's."""
        if not admission.copies_disks:
            await self._records.keep_admission(admission)
            return
        before = self._records.admission(vm_id)
        made = set() if before is None or before.has_arrived else set(before.made)
        directory = self._paths.vm_dir(vm_id)
        foreign = await asyncio.to_thread(lambda: sorted(_files_in(directory) - made))
        if foreign:
            raise refused(
                vm_id,
                f"files of it that no migration made lie in this host's storage already ({foreign[0]}); move them away "
                "first",
            )
        names = {plan.path.name for plan in decoded.images}
        if decoded.config.first_boot is not None:
            names.add(decoded.config.first_boot.path.name)
        await self._records.keep_admission(dataclasses.replace(admission, made=tuple(sorted(names | made))))
        try:
            # Those of an earlier attempt may be of another size, or hold half a copy.
            await self._images.discard(vm_id, [plan.path for plan in decoded.images])
            await self._images.ensure(vm_id, decoded.images)
            await self._first_boot.ensure(vm_id, decoded.first_boot)
        except BaseException:
            await self._discard(dataclasses.replace(admission, made=tuple(sorted(names | made))))
            raise

    # the door

    async def receive(self, token: pb.MigrationToken) -> None:
        """Open the door once, for the VM that the token was made for."""
        self._commands.require_newest(token)
        self._require_good(token)  # before its generation counts for anything
        await self._commands.change(token, lambda: self._receive(token))

    async def _receive(self, token: pb.MigrationToken) -> None:
        admission = self._require_good(token)
        await self._records.keep_admission(dataclasses.replace(admission, is_used=True))
        await power_of(self._hypervisor, admission.vm_id).admit(admission.vm_id)

    def _require_good(self, token: pb.MigrationToken) -> Admission:
        """Find the admission that a token is for.

        Raises:
            FailedPrecondition: there is none, or not for what the token says, or not any more.
        """
        vm_id, digest = vm_id_of(token), _digest(token.token)
        found = [each for each in self._records.admissions() if hmac.compare_digest(each.token_digest, digest)]
        admission = found[0] if found else None
        nodes = (token.source_node_id.lower(), token.target_node_id.lower())
        for cause, applies, words in (
            ("unknown", admission is None, "it is not one of this host's, or was replaced by a newer one"),
            ("other_vm", admission is not None and admission.vm_id != vm_id, "it is for another VM"),
            (
                "other_generation",
                admission is not None and admission.generation != token.generation,
                "it is of another generation",
            ),
            (
                "other_nodes",
                admission is not None and (admission.source_node_id, admission.target_node_id) != nodes,
                "it is for other nodes",
            ),
            ("used", admission is not None and admission.is_used, "it was used; have another one made"),
            (
                "expired",
                admission is not None and admission.expires_at_s <= self._now_s(),
                "it has expired; have another one made",
            ),
        ):
            if applies:
                raise FailedPrecondition(
                    Reason.MIGRATION_TOKEN_REFUSED,
                    f"VM {vm_id} is not let in: its token is refused, since {words}",
                    metadata={"vm_id": vm_id, "cause": cause},
                )
        return found[0]

    # when it comes

    def on_event(self, event: VmEvent) -> None:
        """Take note of arrivals; for the hypervisor."""
        if event.kind in (EventKind.ARRIVING, EventKind.MIGRATED_IN):
            self._news.put_nowait(event)

    async def run(self) -> None:
        """See to VMs that arrive, and shut doors that nobody came through in time, until cancelled."""
        while True:
            event: VmEvent | None = None
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(DOOR_INTERVAL_S):
                        event = await self._news.get()
                if event is not None:
                    await self._see_to(event)
                else:
                    await self._shut_expired_doors()
            except (ApiError, HypervisorError, TimeoutError) as error:
                _log.warning("arrivals_not_seen_to", error=str(error) or "time-out")
            except Exception:  # noqa: BLE001 - one odd VM must not keep all others from being seen to
                _log.exception("arrivals_not_seen_to")

    async def _shut_expired_doors(self) -> None:
        """What already comes through one is not disturbed, however long it takes."""
        for admission in self._records.admissions():
            is_open = admission.is_used and not admission.has_arrived and admission.expires_at_s <= self._now_s()
            if is_open and await self._find(admission.vm_id) is None:
                await power_of(self._hypervisor, admission.vm_id).abandon(admission.vm_id)

    async def _see_to(self, event: VmEvent) -> None:
        admission = self._records.admission(event.vm_id)
        if admission is None or not admission.is_used or admission.has_arrived:
            _log.warning(
                "vm_arrived_without_admission",
                vm_id=event.vm_id,
                kind=event.kind.value,
                advice="another tool moves it, or whoever has a certificate of the hosts' CA; look where it comes from",
            )
        elif event.kind is EventKind.MIGRATED_IN:
            await self._note_arrival(admission)
            _log.info("vm_migrated_in", vm_id=event.vm_id, source_node_id=admission.source_node_id)

    async def _note_arrival(self, admission: Admission) -> None:
        """The VM is this host's now; one that was off must not be left standing in memory."""
        if not admission.has_arrived:
            await self._records.keep_arrival(admission)
        status = await self._find(admission.vm_id)
        if admission.was_off and status is not None and status.state is PowerState.PAUSED:
            await self._hypervisor.force_stop(admission.vm_id)

    # afterwards

    async def end(self, request: pb.EndMigrationRequest) -> None:
        """Tidy up."""
        if request.moved:
            await self._commands.change(request, lambda: self._settle(vm_id_of(request)))
        else:
            await self._commands.change(request, lambda: self._withdraw(vm_id_of(request)))

    async def _settle(self, vm_id: str) -> None:
        if await self._find(vm_id) is None:
            raise FailedPrecondition(
                Reason.MIGRATION_UNSETTLED,
                f"VM {vm_id} is not on this host, to which it is said to have moved",
                metadata={"vm_id": vm_id},
            )
        if self._hypervisor.migration is not None:
            await self._hypervisor.migration.abandon(vm_id)
        admission = self._records.admission(vm_id)
        if admission is not None:
            await self._note_arrival(admission)
        try:
            await self._bandwidths.settle(vm_id)
        except ShapingFailed as error:
            _log.error("bandwidth_not_limited", vm_id=vm_id, error=str(error))
        await self._records.forget_admission(vm_id)

    async def _withdraw(self, vm_id: str) -> None:
        """Shut the door and remove what was made ready, unless the VM is here after all."""
        admission = self._records.admission(vm_id)
        if admission is None:
            return
        if self._hypervisor.migration is not None:
            await self._hypervisor.migration.abandon(vm_id)
        status = await self._without_arrivals(vm_id)
        if status is not None and status.state not in _OFF:
            raise WrongState(vm_id, "remove what was made ready for", status.state.value)
        await self._discard(admission)

    async def _without_arrivals(self, vm_id: str) -> VmStatus | None:
        """Look at the VM; give one that is only arriving the time to vanish."""
        until_s = time.monotonic() + VANISH_DEADLINE_S
        while (status := await self._find(vm_id)) is not None and status.state is PowerState.PAUSED:
            if time.monotonic() > until_s:
                break
            await asyncio.sleep(LOOK_INTERVAL_S)
        return status

    async def _discard(self, admission: Admission) -> None:
        vm_id = admission.vm_id
        await self._hypervisor.delete(vm_id)  # a definition without a guest, and its console log
        directory = self._paths.vm_dir(vm_id)
        if admission.copies_disks and not admission.has_arrived:
            await self._images.discard(vm_id, [directory / name for name in admission.made])
        await self._records.forget_admission(vm_id)

    async def _find(self, vm_id: str) -> VmStatus | None:
        try:
            return await self._hypervisor.status(vm_id, with_memory=False)
        except VmNotFound:
            return None


def _with_plain_disks(spec: pb.VMSpec, vm_id: str) -> pb.VMSpec:
    """Forget what disks were made from: they are copied whole, as they are.

    Raises:
        FailedPrecondition: a disk is a file that others may use too.
    """
    plain = pb.VMSpec()
    plain.CopyFrom(spec)
    for disk in plain.disks:
        if disk.path and not disk.readonly:
            raise refused(
                vm_id, f"disk {disk.id} is the file {disk.path}, which is not the VM's alone and is not copied"
            )
        for field in ("backing_file", "source_file", "source_format", "clone_of"):
            disk.ClearField(field)
        if not disk.path and not disk.size_gib:
            disk.size_gib = 1  # in place of what it was made from; the source says how large it is
    return plain


def _files_in(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return set()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
