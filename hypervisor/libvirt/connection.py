"""libvirt for asyncio: calls in worker threads with a deadline, events in the loop, and it comes back by itself.

libvirt's calls block, for good if a daemon or a guest's QEMU hangs. So each is made by a thread of a small pool and
given up after a deadline; the thread stays busy until libvirt lets go, which keep-alive forces when the daemon is hung.
Calls that change a VM hold that VM's lock for as long as the thread works, not just until the deadline: a hung VM costs
one thread, not all.

One connection brings the events and tells when the daemon is lost; each thread has another for its calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from hypervisor.errors import HypervisorError, Unavailable
from hypervisor.libvirt.domain_state import RawEvent, RawKind
from hypervisor.libvirt.error_map import ErrorCode, has_code, translate
from hypervisor.libvirt.library import load_libvirt
from hypervisor.libvirt.worker_pool import Lane, WorkerPool

T = TypeVar("T")

CONNECT_DEADLINE_S: Final = 10.0
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3
"""A daemon that hangs is noticed after interval x (count + 1) = 20 s; with it, threads that wait for it come free."""
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 5.0
_CLOSE_DEADLINE_S: Final = 5.0
_ONE_AT_A_TIME: Final = frozenset({Lane.CHANGE, Lane.AGENT})
"""Lanes with one call for each VM at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Session:
    """The connection for events, and what was asked of it, which keeps it from being freed until it is given back."""

    connection: Any
    callback_ids: tuple[int, ...]


class LibvirtConnection:
    """A connection that comes back by itself.

    Args:
        on_event: called in the loop with each event of a connection that is current.
        on_reconnect: awaited after each reconnection; if it raises `Unavailable`, the connection is made again.
        call_deadline_s: how long a call may take unless it says otherwise.
    """

    def __init__(
        self,
        uri: str,
        *,
        on_event: Callable[[RawEvent], None],
        on_reconnect: Callable[[], Awaitable[None]],
        call_deadline_s: float,
    ) -> None:
        self._uri = uri
        self._on_event = on_event
        self._on_reconnect = on_reconnect
        self._call_deadline_s = call_deadline_s
        self._library = load_libvirt()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pools: dict[Lane, WorkerPool] = {}
        self._session: _Session | None = None
        self._epoch: object = None
        self._opening: asyncio.Future[_Session] | None = None
        self._is_lost = asyncio.Event()
        self._obstacle = "not open"
        self._supervisor: asyncio.Task[None] | None = None
        self._locks: weakref.WeakValueDictionary[tuple[Lane, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._changes: set[object] = set()

    @property
    def library(self) -> Any:
        """The module `libvirt`."""
        return self._library

    async def open(self) -> None:
        """Connect, and from then on stay connected.

        Raises:
            Unavailable: libvirt cannot be reached now; nothing goes on trying.
        """
        if self._supervisor is not None:
            return
        self._loop, self._is_lost = asyncio.get_running_loop(), asyncio.Event()
        self._pools = {lane: WorkerPool(lane, self) for lane in Lane}
        try:
            await self._connect()
        except BaseException:
            self._shut_pools()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="libvirt-reconnect")

    async def close(self) -> None:
        """Disconnect; calls that are under way end with `Unavailable` or are given up. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        if self._opening is not None:
            self._opening.add_done_callback(self._discard_opened)
            self._opening = None
        self._obstacle = "closed"
        session, self._session, self._epoch = self._session, None, None
        if session is not None:
            await asyncio.wait({_in_own_thread(self._disconnect, session)}, timeout=_CLOSE_DEADLINE_S)
        self._shut_pools()

    async def run(
        self, work: Callable[[Any], T], *, lane: Lane = Lane.LOOK, vm_id: str = "", deadline_s: float | None = None
    ) -> T:
        """Call `work` with the `virConnect` in a worker thread.

        Args:
            work: may call libvirt several times and block; its `libvirtError` becomes ours.
            vm_id: the VM it is about, if about one.

        Raises:
            Unavailable: not connected, or not done in time; then it may still happen.
            VmNotFound, Refused: see `error_map`.
        """
        limit_s = self._call_deadline_s if deadline_s is None else deadline_s
        about = f" about VM {vm_id}" if vm_id else ""
        if self._session is not None and self._pools[lane].is_stuck():
            raise Unavailable(f"libvirt hangs in earlier calls of the same kind; one{about} was not made")
        try:
            async with asyncio.timeout(limit_s) as scope:
                if lane not in _ONE_AT_A_TIME:
                    return await self._submit(lane, work, vm_id, None)
                lock = self._locks.setdefault((lane, vm_id), asyncio.Lock())
                await lock.acquire()
                return await self._submit(lane, work, vm_id, lock)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise Unavailable(f"libvirt did not answer a call{about} within {limit_s:g} s") from error

    async def run_blocking(self, work: Callable[[], T]) -> T:
        """Call `work`, which blocks on something else than libvirt, such as a file, in a worker thread.

        Raises:
            Unavailable: not open, or not done in time.
        """
        return await self.run(lambda _connection: work())

    def changes_under_way(self) -> frozenset[object]:
        """Return a mark for each call that changes a VM and has not ended, however long its caller has left."""
        return frozenset(self._changes.copy())

    # calls

    async def _submit(self, lane: Lane, work: Callable[[Any], T], vm_id: str, lock: asyncio.Lock | None) -> T:
        """Run `work` in the pool and release `lock` when the thread is done, however long after our caller left."""
        try:
            if self._session is None:
                raise Unavailable(f"libvirt at {self._uri} is not connected: {self._obstacle}")
            pool = self._pools[lane]
            future = pool.submit(lambda connection: self._call(work, connection, vm_id))
            if lane is Lane.CHANGE:
                self._changes.add(future)
                future.add_done_callback(self._changes.discard)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if lock is not None:
            held = lock
            future.add_done_callback(lambda _: self._in_loop(held.release))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled() and not _is_cancelling():
                raise Unavailable(f"the connection to libvirt at {self._uri} was closed") from None
            pool.note_overdue(future)
            raise

    def _shut_pools(self) -> None:
        for pool in self._pools.values():
            pool.shutdown()
        self._pools = {}

    # in worker threads

    def dial(self) -> Any:
        """Open a connection for one thread's calls; see `Dialler`."""
        try:
            return self._open_connection()
        except self._library.libvirtError as error:
            raise self._unreachable(error) from error

    def is_alive(self, connection: Any) -> bool:
        """Tell whether the connection's socket is open, which the client library knows by itself; see `Dialler`."""
        try:
            return bool(connection.isAlive() == 1)
        except self._library.libvirtError:
            return False

    def hang_up(self, connection: Any) -> None:
        """See `Dialler`."""
        with contextlib.suppress(self._library.libvirtError):
            connection.close()

    def _call(self, work: Callable[[Any], T], connection: Any, vm_id: str) -> T:
        """Call, and say errors in our words."""
        try:
            return work(connection)
        except self._library.libvirtError as error:
            raise translate(error, vm_id, is_connected=self.is_alive(connection)) from error

    def _in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        """From any thread: call `function` in the loop; not at all, if that has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed while the thread worked
                self._loop.call_soon_threadsafe(function, *arguments)

    # connecting

    async def _connect(self) -> None:
        """Connect once.

        An attempt that a hung daemon keeps waiting is not abandoned: the next one waits for the same thread.
        """
        if self._opening is None:
            self._epoch = object()
            self._opening = _in_own_thread(self._open, self._epoch)
        opening = self._opening
        await asyncio.wait({opening}, timeout=CONNECT_DEADLINE_S)
        if not opening.done():
            raise Unavailable(f"libvirt at {self._uri} did not answer within {CONNECT_DEADLINE_S:g} s")
        self._opening = None
        try:
            self._session = opening.result()
        except self._library.libvirtError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Any) -> Unavailable:
        return Unavailable(f"libvirt at {self._uri} cannot be reached: {error.get_error_message()}")

    def _open_connection(self) -> Any:
        """Open a connection that breaks when the daemon hangs, rather than hang with it."""
        connection = self._library.open(self._uri)
        try:
            self._optionally(connection.setKeepAlive, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, epoch: object) -> _Session:
        """In a thread of its own: connect and ask for events."""
        library = self._library
        connection = self._open_connection()
        try:
            connection.registerCloseCallback(self._closed_by_peer, epoch)
            families = (
                (library.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
                (library.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot),
                (library.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._metadata),
                (library.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._device_removed),
            )
            register = connection.domainEventRegisterAny
            callback_ids = [self._optionally(register, None, family, handler, epoch) for family, handler in families]
        except BaseException:
            connection.close()
            raise
        return _Session(connection, tuple(callback_id for callback_id in callback_ids if callback_id is not None))

    def _optionally(self, function: Callable[..., T], *arguments: object) -> T | None:
        """Call what drivers other than QEMU's may not have; None, if this one does not."""
        try:
            return function(*arguments)
        except self._library.libvirtError as error:
            if not has_code(error, ErrorCode.NO_SUPPORT):
                raise
            return None

    def _disconnect(self, session: _Session) -> None:
        """In a thread of its own: close; on a broken connection, which refuses most of this, as far as it goes."""
        connection = session.connection
        for callback_id in session.callback_ids:
            with contextlib.suppress(self._library.libvirtError):
                connection.domainEventDeregisterAny(callback_id)
        with contextlib.suppress(self._library.libvirtError):
            connection.unregisterCloseCallback()
        self.hang_up(connection)

    def _discard_opened(self, opening: asyncio.Future[_Session]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            _in_own_thread(self._disconnect, opening.result())

    async def _supervise(self) -> None:
        """Connect again whenever the connection is lost, until cancelled."""
        while True:
            await self._is_lost.wait()
            delay_s = FIRST_RETRY_S
            while self._is_lost.is_set():
                self._is_lost.clear()
                try:
                    await self._connect()
                    await self._on_reconnect()
                except HypervisorError as error:
                    self._obstacle = str(error)
                    self._abandon()
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, LONGEST_RETRY_S)
                else:
                    _log.info("connected to libvirt again", extra={"uri": self._uri})

    def _lose(self, epoch: object, reason: str) -> None:
        """In the loop: take note that the connection of that epoch is gone."""
        if epoch is not self._epoch or self._session is None:
            return
        _log.warning("lost libvirt", extra={"uri": self._uri, "reason": reason})
        self._obstacle = f"{reason}; connecting again"
        self._abandon()

    def _abandon(self) -> None:
        """Drop the connection, if there is one, and have the supervisor make another."""
        session, self._session = self._session, None
        if self._opening is None:
            self._epoch = None
        if session is not None:
            _in_own_thread(self._disconnect, session)
        self._is_lost.set()

    # callbacks, in libvirt's event thread

    def _closed_by_peer(self, _connection: Any, _reason: int, epoch: object) -> None:
        self._in_loop(self._lose, epoch, "libvirt closed the connection")

    def _lifecycle(self, _connection: Any, domain: Any, number: int, detail: int, epoch: object) -> None:
        self._in_loop(self._deliver, epoch, RawEvent(RawKind.LIFECYCLE, domain.UUIDString(), number, detail))

    def _reboot(self, _connection: Any, domain: Any, epoch: object) -> None:
        self._in_loop(self._deliver, epoch, RawEvent(RawKind.REBOOT, domain.UUIDString()))

    def _metadata(self, _connection: Any, domain: Any, _kind: int, _namespace: str, epoch: object) -> None:
        self._in_loop(self._deliver, epoch, RawEvent(RawKind.METADATA, domain.UUIDString()))

    def _device_removed(self, _connection: Any, domain: Any, _alias: str, epoch: object) -> None:
        self._in_loop(self._deliver, epoch, RawEvent(RawKind.DEVICE_REMOVED, domain.UUIDString()))

    def _deliver(self, epoch: object, event: RawEvent) -> None:
        """In the loop: hand an event on, unless it is a late one of a connection given up."""
        if epoch is self._epoch:
            self._on_event(event)


def _is_cancelling() -> bool:
    """Tell whether somebody asked the current task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _in_own_thread(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Call `function` in a thread that does not keep the process from ending.

    For opening and closing connections: before keep-alive runs, and after it ended, nothing bounds these.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001  # handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, name="libvirt-connect", daemon=True).start()
    return asyncio.wrap_future(future)
