"""Freezes guests' file systems through their agents, and sees to it that none stays frozen.

Before a guest is frozen, a note goes into the running domain's own record at libvirt: it outlives this process and
libvirt's, and ends with the guest. It is taken out when the guest is known to be thawed. Whoever opens the backend next
thaws every guest that still has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from hypervisor.errors import CannotQuiesce, HypervisorError, Refused, VmNotFound
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.visits import Visits
from hypervisor.libvirt.worker_pool import Lane

FREEZE_DEADLINE_S: Final = 10
"""How long an agent may take over freezing; a busy guest has to write out what it holds in memory."""
THAW_DEADLINE_S: Final = 10
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 30.0

_MAX_FILESYSTEMS: Final = 65_535
"""A guest says how many it froze, and may say anything."""
_NAMESPACE: Final = "urn:limiquantix:libvirt:frozen:1"
_PREFIX: Final = "limiquantix-frozen"
_LANE_MARGIN_S: Final = 10.0

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


class Freezer:
    """Freezes and thaws the guests of one host."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._thawing: set[asyncio.Task[None]] = set()

    async def freeze(self, vm_id: str) -> int:
        """Note that the guest is being frozen, and freeze it; returns how many file systems were. Has to be thawed.

        Raises:
            CannotQuiesce: the agent does not answer in time, or cannot; it may freeze late, so thaw all the same.
        """
        return await self._run(vm_id, partial(self._freeze, vm_id), FREEZE_DEADLINE_S)

    async def thaw(self, vm_id: str) -> None:
        """Thaw the guest, and wait for the first attempt; it is repeated until it succeeds or the guest has ended.

        Never raises, and a caller who is cancelled meanwhile does not end it.
        """
        await asyncio.shield(self._begin(vm_id).wait())

    async def thaw_all(self) -> None:
        """Begin to thaw every guest that has a note."""
        for vm_id in await self._visits.connection.run(self._noted):
            _log.warning("thawing a guest that was left frozen", extra={"vm_id": vm_id})
            self._begin(vm_id)

    def _begin(self, vm_id: str) -> asyncio.Event:
        """See to it that somebody thaws the guest; the event is set after the first attempt."""
        tried = asyncio.Event()
        task = asyncio.create_task(self._thaw_for_good(vm_id, tried), name=f"thaw-{vm_id}")
        self._thawing.add(task)
        task.add_done_callback(self._thawing.discard)
        return tried

    async def close(self) -> None:
        """Give up thawing; what still has a note is for the next one to open the backend."""
        tasks = set(self._thawing)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _thaw_for_good(self, vm_id: str, tried: asyncio.Event) -> None:
        pause_s = FIRST_RETRY_S
        try:
            while not await self._try_to_thaw(vm_id):
                tried.set()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
        finally:
            tried.set()

    async def _try_to_thaw(self, vm_id: str) -> bool:
        """Return whether the guest is not frozen any more, or has ended."""
        try:
            await self._run(vm_id, self._thaw, THAW_DEADLINE_S)
        except HypervisorError as error:
            if await self._has_ended(vm_id):
                return True
            _log.error("a guest is still frozen; trying again", extra={"vm_id": vm_id, "reason": str(error)})
            return False
        return True

    async def _has_ended(self, vm_id: str) -> bool:
        """Whether there is no running guest any more; not if nobody can tell."""
        try:
            return not await self._visits.look(vm_id, lambda domain: bool(domain.isActive()))
        except HypervisorError as error:
            return isinstance(error, VmNotFound)

    async def _run(self, vm_id: str, work: Callable[[Any], ResultT], deadline_s: float) -> ResultT:
        return await self._visits.connection.run(
            lambda connection: work(self._visits.operations.find(connection, vm_id)),
            lane=Lane.AGENT,
            vm_id=vm_id,
            deadline_s=2 * deadline_s + _LANE_MARGIN_S,
        )

    # in worker threads

    def _freeze(self, vm_id: str, domain: Any) -> int:
        library = self._visits.connection.library
        live = library.VIR_DOMAIN_AFFECT_LIVE
        advice = "see that QEMU's guest agent runs inside, or take the snapshot without quiescing"
        try:
            if _ask_agent(domain, "guest-fsfreeze-status", FREEZE_DEADLINE_S) == "frozen":
                raise CannotQuiesce(f"the file systems of VM {vm_id} are frozen already, by another tool")
            # From here on the guest may be frozen, whatever is answered.
            domain.setMetadata(library.VIR_DOMAIN_METADATA_ELEMENT, "<frozen/>", _PREFIX, _NAMESPACE, live)
            count = _ask_agent(domain, "guest-fsfreeze-freeze", FREEZE_DEADLINE_S)
        except library.libvirtError as error:
            words = error.get_error_message()
            raise CannotQuiesce(
                f"the file systems of VM {vm_id} cannot be frozen, so nothing was saved: {words}; {advice}"
            ) from error
        return min(count, _MAX_FILESYSTEMS) if isinstance(count, int) and count > 0 else 0

    def _thaw(self, domain: Any) -> None:
        """Thaw the guest, if it runs and has a note.

        An agent that answers with an error, such as one that cannot freeze at all, is asked what its state is.
        """
        library = self._visits.connection.library
        if not (domain.isActive() and self._has_note(domain)):
            return
        try:
            _ask_agent(domain, "guest-fsfreeze-thaw", THAW_DEADLINE_S)
        except library.libvirtError as error:
            if not has_code(error, ErrorCode.INTERNAL_ERROR):
                raise
            if _ask_agent(domain, "guest-fsfreeze-status", THAW_DEADLINE_S) == "frozen":
                raise Refused(f"the agent cannot thaw it: {error.get_error_message()}") from error
        domain.setMetadata(
            library.VIR_DOMAIN_METADATA_ELEMENT, None, _PREFIX, _NAMESPACE, library.VIR_DOMAIN_AFFECT_LIVE
        )

    def _has_note(self, domain: Any) -> bool:
        library = self._visits.connection.library
        try:
            domain.metadata(library.VIR_DOMAIN_METADATA_ELEMENT, _NAMESPACE, library.VIR_DOMAIN_AFFECT_LIVE)
        except library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN_METADATA):
                return False
            raise
        return True

    def _noted(self, connection: Any) -> list[str]:
        library = self._visits.connection.library
        found = []
        for domain in connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            with contextlib.suppress(library.libvirtError):  # it ended meanwhile, or the driver keeps no metadata
                if self._has_note(domain):
                    found.append(str(domain.UUIDString()))
        return found


def _ask_agent(domain: Any, command: str, timeout_s: int) -> Any:
    """Ask the guest's agent; libvirt gives up after `timeout_s`, also on an agent that does not even say hello."""
    import libvirt_qemu  # noqa: PLC0415 - an optional dependency, as libvirt itself

    answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), timeout_s, 0)
    return json.loads(answer).get("return")
