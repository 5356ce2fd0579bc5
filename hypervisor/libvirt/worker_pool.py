"""Threads that make libvirt's blocking calls, each with a connection of its own.

A connection may be shared by threads, but then one of them does the talking for all. With libvirt 9.0's client, while
one thread waits for an answer that does not come, another's request was seen to be left lying until the next
keep-alive, 5 s later. And the daemon takes but 5 requests of one connection at once (`max_client_requests` in
libvirtd.conf). With a connection for each thread there is neither trouble.

Why not `concurrent.futures.ThreadPoolExecutor`: its threads keep the process from ending, and one of ours may hang for
as long as some guest's QEMU does.
"""

from __future__ import annotations

import concurrent.futures
import enum
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_Job = tuple["concurrent.futures.Future[Any]", Callable[[Any], Any]]


class Lane(enum.Enum):
    """Kinds of calls that do not get in each other's way; the value begins with how many threads serve one."""

    CHANGE = 6, "change"
    """Changes a VM; one at a time for each."""
    KILL = 2, "kill"
    """Ends a VM's process, which also sets free whatever hangs waiting for it: it waits for nothing itself."""
    LOOK = 2, "look"
    """Takes no answer from any guest's QEMU."""
    GUEST = 1, "guest"
    """Asks guests' QEMUs, without which its caller can do."""
    AGENT = 6, "agent"
    """Asks agents inside guests, which may keep it waiting; one at a time for each VM. libvirt's daemon has 20 threads
    for all calls, and each of these may hold one for as long."""

    SEND = 16, "send"
    """Waits for a migration, for as long as that takes; all but the waiting is done by libvirt's daemon."""
    FOLLOW = 2, "follow"
    """Asks how far migrations are."""

    @property
    def thread_count(self) -> int:
        """How many calls of this kind run at once."""
        return self.value[0]


class Dialler(Protocol):
    """How a thread gets its connection. All of it is called in the thread, and may block."""

    def dial(self) -> Any:
        """Connect; whatever it raises goes to who asked for the call."""
        ...

    def is_alive(self, connection: Any) -> bool:
        """Tell whether a connection is still good."""
        ...

    def hang_up(self, connection: Any) -> None:
        """Close a connection; never raises."""
        ...


class WorkerPool:
    """The threads of one lane. They are started when needed and end some time after `shutdown`."""

    def __init__(self, lane: Lane, dialler: Dialler) -> None:
        self._lane = lane
        self._dialler = dialler
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread_count = 0
        self._unfinished_count = 0
        self._overdue: set[concurrent.futures.Future[Any]] = set()

    def submit(self, work: Callable[[Any], T]) -> concurrent.futures.Future[T]:
        """Have a thread call `work` with its connection."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            self._unfinished_count += 1
            is_short = self._unfinished_count > self._thread_count and self._thread_count < self._lane.thread_count
            if is_short:
                self._thread_count += 1
        self._jobs.put((future, work))
        if is_short:
            name = f"libvirt-{self._lane.value[1]}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        return future

    def note_overdue(self, call: concurrent.futures.Future[Any]) -> None:
        """Note that nobody waits any more for this call, whose thread is busy with it. In the loop only."""
        if not call.done():
            self._overdue.add(call)

    def is_stuck(self) -> bool:
        """Tell whether all threads are busy with calls nobody waits for. In the loop only."""
        self._overdue = {call for call in self._overdue if not call.done()}
        return len(self._overdue) >= self._lane.thread_count

    def shutdown(self) -> None:
        """Drop calls that wait for a thread, and let each thread end once it is done. Does not wait."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in range(self._thread_count):
            self._jobs.put(None)

    def _serve(self) -> None:
        connection: Any = None
        while (job := self._jobs.get()) is not None:
            future, work = job
            del job
            if future.set_running_or_notify_cancel():
                try:
                    if connection is not None and not self._dialler.is_alive(connection):
                        self._dialler.hang_up(connection)
                        connection = None
                    if connection is None:
                        connection = self._dialler.dial()
                    result = work(connection)
                except BaseException as error:  # noqa: BLE001  # handed to whoever waits
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, work  # not kept while waiting for the next one
            with self._lock:
                self._unfinished_count -= 1
        if connection is not None:
            self._dialler.hang_up(connection)
