"""Push what happens to VMs to the control plane: at once, in order per VM, until acknowledged.

An event of the hypervisor only says that a VM changed; what is sent is the VM as it is when its turn comes. So any
number of events about one VM need one entry, the newest state is never lost, and an old one is never sent after it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from hypervisor.types import EventKind, VmEvent
from limiquantix.compute.v1.node_service_pb2 import SyncFullStateRequest
from limiquantix.errors import ApiError
from nodedaemon.control_plane import ControlPlane
from nodedaemon.encode import to_notification
from nodedaemon.observer import VmObserver

MAX_PENDING_VMS = 20_000
"""The most VMs one inventory may hold; beyond it, a full sync says the same in one message."""

MAX_IN_FLIGHT = 8
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Pending:
    """When to try next (time of the event loop), and how long to wait after the failure after that."""

    due_s: float = 0.0
    retry_s: float = FIRST_RETRY_S


class Reporter:
    """One task (`run`) that owns all sending. Until `node_registered`, changes only gather.

    Args:
        full_state: builds the whole inventory.
        max_pending: VMs with news beyond which the whole inventory is sent instead.
    """

    def __init__(
        self,
        observer: VmObserver,
        control_plane: ControlPlane,
        full_state: Callable[[], Awaitable[SyncFullStateRequest]],
        max_pending: int = MAX_PENDING_VMS,
    ) -> None:
        self._observer = observer
        self._control_plane = control_plane
        self._full_state = full_state
        self._max_pending = max_pending
        self._node_id = ""
        self._pending: dict[str, _Pending] = {}
        self._in_flight: set[str] = set()
        self._sync: _Pending | None = None
        self._is_syncing = False
        self._wake = asyncio.Event()

    @property
    def pending_count(self) -> int:
        """How many VMs have news that are not acknowledged."""
        return len(self._pending.keys() | self._in_flight)

    def on_event(self, event: VmEvent) -> None:
        """Take in an event of the hypervisor; never blocks."""
        if event.kind is EventKind.RESYNC:
            self.request_full_sync()
        else:
            self.vm_has_news(event.vm_id)

    def vm_has_news(self, vm_id: str) -> None:
        """Send a VM as it is, soon; never blocks."""
        if vm_id not in self._pending and len(self._pending) >= self._max_pending:
            self._pending.clear()
            self.request_full_sync()
            return
        self._pending[vm_id] = _Pending()
        self._wake.set()

    def node_registered(self, node_id: str) -> None:
        """Start sending under this id, with the whole inventory first."""
        self._node_id = node_id
        self.request_full_sync()
        self.retry_now()

    def request_full_sync(self) -> None:
        """Send the whole inventory soon."""
        self._sync = _Pending()
        self._wake.set()

    def retry_now(self) -> None:
        """Try everything that waits for a retry at once, since the control plane answers again."""
        for pending in self._pending.values():
            pending.due_s = 0.0
        if self._sync is not None:
            self._sync.due_s = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                wait_s = self._dispatch(group)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def _dispatch(self, group: asyncio.TaskGroup) -> float | None:
        """Start what is due; returns the seconds until something else will be, None if nothing waits for a time."""
        if not self._node_id:
            return None
        now_s = asyncio.get_running_loop().time()
        if self._sync is not None and not self._is_syncing and self._sync.due_s <= now_s:
            pending, self._sync, self._is_syncing = self._sync, None, True
            group.create_task(self._send_full_state(pending), name="full-sync")
        for vm_id, entry in list(self._pending.items()):
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                break
            if vm_id not in self._in_flight and entry.due_s <= now_s:
                del self._pending[vm_id]
                self._in_flight.add(vm_id)
                group.create_task(self._send_vm(vm_id, entry), name=f"report-{vm_id}")
        waiting = [p.due_s for vm_id, p in self._pending.items() if vm_id not in self._in_flight]
        if self._sync is not None and not self._is_syncing:
            waiting.append(self._sync.due_s)
        if not waiting or len(self._in_flight) >= MAX_IN_FLIGHT:
            return None  # the end of a sending wakes the loop
        return max(0.0, min(waiting) - now_s)

    async def _send_vm(self, vm_id: str, entry: _Pending) -> None:
        try:
            vm = await self._observer.read_or_gone(vm_id)
            ack = await self._control_plane.notify_vm_change(to_notification(self._node_id, vm, time.time()))
            trouble = "" if ack.acknowledged else f"not acknowledged: {ack.action} {ack.error}".strip()
        except (ApiError, TimeoutError) as error:
            trouble = str(error) or type(error).__name__
        except Exception:  # noqa: BLE001 - one odd VM must not keep the news of all others from being sent
            _log.exception("vm_change_report_failed", vm_id=vm_id)
            trouble = "defect, see the log line before"
        finally:
            self._in_flight.discard(vm_id)
            self._wake.set()
        if trouble:
            _log.warning("vm_change_not_reported", vm_id=vm_id, error=trouble, retry_s=entry.retry_s)
            # An event that came meanwhile has its own entry, which is due at once.
            self._pending.setdefault(vm_id, _again(entry))

    async def _send_full_state(self, entry: _Pending) -> None:
        try:
            response = await self._control_plane.sync_full_state(await self._full_state())
            trouble = "" if response.acknowledged else "not acknowledged"
            if not trouble:
                _log.info(
                    "full_state_synced",
                    reconciled=response.vms_reconciled,
                    discovered=response.vms_discovered,
                    lost=response.vms_lost,
                )
        except (ApiError, TimeoutError) as error:
            trouble = str(error) or type(error).__name__
        except Exception:  # noqa: BLE001 - a defect here must not end the reporting of changes
            _log.exception("full_state_report_failed")
            trouble = "defect, see the log line before"
        finally:
            self._is_syncing = False
            self._wake.set()
        if trouble:
            _log.warning("full_state_not_synced", error=trouble, retry_s=entry.retry_s)
            self._sync = self._sync or _again(entry)


def _again(entry: _Pending) -> _Pending:
    return _Pending(
        due_s=asyncio.get_running_loop().time() + entry.retry_s, retry_s=min(entry.retry_s * 2, MAX_RETRY_S)
    )
