"""Look at the agents of all guests that run, now and then, so that what they tell can be reported when it changes.

A guest is looked at soon after it started, until its agent answers, and then every 30 s or so, not all at once. One
whose agent is silent or talks nonsense is looked at ever more seldom. A guest that stays frozen, because whoever froze
it is gone, is thawed: one that holds all its writes looks dead to everybody who uses it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import (
    GuestAgentAbsent,
    GuestAgentRefused,
    GuestAgentSilent,
    HypervisorError,
    Unavailable,
    VmNotFound,
    WrongState,
)
from hypervisor.guests import FreezeStatus, GuestAgents
from hypervisor.types import EventKind, PowerState, VmEvent
from nodedaemon.guest_facts import GuestFacts, reachable_addresses

INTERVAL_S: Final = 30.0
FIRST_LOOK_S: Final = 2.0
"""After a start; a small Linux takes no less."""
LONGEST_PAUSE_S: Final = 300.0
LOOKS_PER_SYSTEM_LOOK: Final = 10
"""The system inside changes with an upgrade or a new host name; addresses change more often, and are one call."""
FROZEN_LOOK_S: Final = 10.0
MAX_FROZEN_S: Final = 60.0
MAX_AT_ONCE: Final = 2
"""Of the few threads that ask agents; the others are for people who wait."""
RELIST_S: Final = 300.0
_LIST_DEADLINE_S: Final = 15.0
_LOOK_DEADLINE_S: Final = 60.0
_JITTER: Final = 0.15

_LOOK_SOON: Final = frozenset({EventKind.STARTED, EventKind.REBOOTED, EventKind.RESUMED, EventKind.MIGRATED_IN})
_FORGET: Final = frozenset(
    {EventKind.STOPPED, EventKind.CRASHED, EventKind.SUSPENDED, EventKind.REMOVED, EventKind.MIGRATED_OUT}
)

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Guest:
    """When to look next (time of the loop), how long to wait after a failure, and what was seen."""

    due_s: float
    is_managed: bool = True
    pause_s: float = FIRST_LOOK_S
    look_count: int = 0
    absent_since_s: float | None = None
    frozen_since_s: float | None = None
    has_news: bool = False


class GuestWatch:
    """One task (`run`) that looks.

    Args:
        facts: what is known by VM id, kept up to date here.
        changed: called with the id of a VM of which something else is known than before; must not block.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        facts: MutableMapping[str, GuestFacts],
        changed: Callable[[str], None],
        *,
        interval_s: float = INTERVAL_S,
        first_look_s: float = FIRST_LOOK_S,
        max_frozen_s: float = MAX_FROZEN_S,
    ) -> None:
        self._hypervisor = hypervisor
        self._facts = facts
        self._changed = changed
        self._interval_s = interval_s
        self._first_look_s = first_look_s
        self._max_frozen_s = max_frozen_s
        self._guests: dict[str, _Guest] = {}
        self._looking: set[str] = set()
        self._relist_at_s = 0.0
        self._wake = asyncio.Event()

    def on_event(self, event: VmEvent) -> None:
        """Take in an event of the hypervisor; never blocks."""
        if event.kind is EventKind.RESYNC:
            self._relist_at_s = 0.0
        elif event.kind in _FORGET:
            self._guests.pop(event.vm_id, None)
            self._facts.pop(event.vm_id, None)  # the report of its stop tells enough
        elif event.kind in _LOOK_SOON:
            guest = self._guests.setdefault(event.vm_id, _Guest(0.0))
            guest.due_s, guest.pause_s, guest.look_count = self._now_s() + self._first_look_s, self._first_look_s, 0
            guest.has_news = True
            self._relist_at_s = min(self._relist_at_s, self._now_s() + self._first_look_s)
        else:
            return
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled; at once ends where the hypervisor knows no agents."""
        agents = self._hypervisor.guests
        if agents is None:
            await asyncio.Event().wait()
            return
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                if self._relist_at_s <= self._now_s():
                    await self._relist()
                wait_s = self._dispatch(group, agents)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    async def _relist(self) -> None:
        """Learn which VMs run, also those of which no event came."""
        self._relist_at_s = self._now_s() + RELIST_S
        try:
            async with asyncio.timeout(_LIST_DEADLINE_S):
                found = await self._hypervisor.list()
        except (HypervisorError, TimeoutError):
            self._relist_at_s = self._now_s() + self._interval_s
            return
        running = {vm.vm_id: vm.is_managed for vm in found if vm.state is PowerState.RUNNING}
        for vm_id, is_managed in running.items():
            # Those that run already are spread over the interval.
            due_s = self._now_s() + random.uniform(0, min(self._interval_s, 10.0))  # noqa: S311 - no secret
            self._guests.setdefault(vm_id, _Guest(due_s)).is_managed = is_managed
        in_memory = {vm.vm_id for vm in found if vm.state in (PowerState.RUNNING, PowerState.PAUSED)}
        for vm_id in self._guests.keys() - running.keys():
            del self._guests[vm_id]
        for vm_id in self._facts.keys() - in_memory:
            del self._facts[vm_id]

    def _dispatch(self, group: asyncio.TaskGroup, agents: GuestAgents) -> float:
        """Begin what is due; returns the seconds until something else is, or is listed again."""
        now_s = self._now_s()
        waiting = [self._relist_at_s]
        for vm_id, guest in sorted(self._guests.items(), key=lambda item: item[1].due_s):
            if len(self._looking) >= MAX_AT_ONCE:
                break  # the end of a look wakes the loop
            if vm_id in self._looking:
                continue
            if guest.due_s > now_s:
                waiting.append(guest.due_s)
                break
            self._looking.add(vm_id)
            guest.has_news = False
            group.create_task(self._visit(agents, vm_id, guest), name=f"guest-{vm_id}")
        return max(0.0, min(waiting) - now_s)

    async def _visit(self, agents: GuestAgents, vm_id: str, guest: _Guest) -> None:
        pause_s = self._interval_s
        try:
            async with asyncio.timeout(_LOOK_DEADLINE_S):
                pause_s = await self._look(agents, vm_id, guest)
            guest.pause_s, guest.absent_since_s = self._interval_s, None
        except GuestAgentAbsent:
            pause_s = self._note_absence(vm_id, guest)
        except (GuestAgentSilent, GuestAgentRefused, TimeoutError) as error:
            guest.pause_s = pause_s = min(max(2 * guest.pause_s, self._interval_s), LONGEST_PAUSE_S)
            _log.debug("guest_not_looked_at", vm_id=vm_id, error=type(error).__name__, again_in_s=pause_s)
        except (VmNotFound, WrongState):
            self._guests.pop(vm_id, None)
        except Unavailable:
            pause_s = self._interval_s
        except Exception:  # noqa: BLE001 - one odd guest must not keep all others from being looked at
            _log.exception("guest_look_failed", vm_id=vm_id)
        finally:
            self._looking.discard(vm_id)
            if not guest.has_news:  # else it was started anew meanwhile, and is due as that says
                guest.due_s = self._now_s() + pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
            self._wake.set()

    async def _look(self, agents: GuestAgents, vm_id: str, guest: _Guest) -> float:
        """Look at one guest; returns when to look again, in seconds."""
        if await self._is_frozen(agents, vm_id, guest):
            return min(FROZEN_LOOK_S, self._interval_s)
        known = self._facts.get(vm_id)
        facts = replace(
            known or GuestFacts(),
            ip_addresses=reachable_addresses(await agents.interfaces(vm_id)),
            as_of_s=time.time(),
        )
        if guest.look_count % LOOKS_PER_SYSTEM_LOOK == 0 or not facts.system.agent_version:
            system, presence = await agents.system(vm_id), await agents.ping(vm_id)
            facts = replace(facts, system=system, uptime_s=presence.uptime_s or 0.0, as_of_s=time.time())
        is_waiting_for_addresses = guest.look_count < LOOKS_PER_SYSTEM_LOOK and not facts.ip_addresses
        guest.look_count += 1
        self._learn(vm_id, guest, facts)
        # An agent is often up before the network is.
        return (
            min(self._first_look_s * 2**guest.look_count, self._interval_s)
            if is_waiting_for_addresses
            else (self._interval_s)
        )

    async def _is_frozen(self, agents: GuestAgents, vm_id: str, guest: _Guest) -> bool:
        try:
            status = await agents.freeze_status(vm_id)
        except GuestAgentRefused:  # it knows no freezing
            return False
        if status is FreezeStatus.THAWED:
            guest.frozen_since_s = None
            return False
        now_s = self._now_s()
        if guest.frozen_since_s is None:
            guest.frozen_since_s = now_s
        if guest.is_managed and now_s - guest.frozen_since_s >= self._max_frozen_s:
            count = await agents.thaw(vm_id)
            _log.warning("guest_thawed", vm_id=vm_id, file_system_count=count, frozen_s=now_s - guest.frozen_since_s)
            guest.frozen_since_s = None
        return True

    def _note_absence(self, vm_id: str, guest: _Guest) -> float:
        """Forget what an agent said that is gone for good; returns when to look again, in seconds."""
        if guest.absent_since_s is None:
            guest.absent_since_s = self._now_s()
        if self._now_s() - guest.absent_since_s >= self._interval_s:  # else it may be a reboot
            self._learn(vm_id, guest, GuestFacts(as_of_s=time.time()))
        pause_s, guest.pause_s = guest.pause_s, min(2 * guest.pause_s, self._interval_s)
        return pause_s

    def _learn(self, vm_id: str, guest: _Guest, facts: GuestFacts) -> None:
        if self._guests.get(vm_id) is not guest:  # it stopped meanwhile
            return
        before = self._facts.get(vm_id)
        self._facts[vm_id] = facts
        if before != facts:
            self._changed(vm_id)
