"""A domain's serial console as a socket, fed from libvirt's stream in libvirt's event thread.

Everything but `open` runs in that thread, as virsh's console does: a stream that does not block takes and gives what it
can, and says when it can do more.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Any, Final

LARGEST_BACKLOG_BYTES: Final = 2**20
"""What a reader may leave unread. The guest cannot be told to wait, so one that reads too slowly is cut off."""
_PIECE_BYTES: Final = 64 * 2**10

_log = logging.getLogger(__name__)


class SerialStream:
    """One session at a serial console.

    Args:
        connection: its own, closed with it.
    """

    def __init__(self, library: Any, connection: Any, vm_id: str) -> None:
        self._library = library
        self._connection = connection
        self._vm_id = vm_id
        self._near, self._far = socket.socketpair()
        self._to_guest = b""
        self._to_reader = bytearray()
        self._stream: Any = None
        self._watch: int | None = None
        self._lock = threading.RLock()
        self._has_ended = False

    def open(self) -> socket.socket:
        """Begin; returns the caller's end. Blocks: for worker threads.

        Raises:
            libvirtError: it is in use, or the domain does not run; nothing is left open.
        """
        library = self._library
        with self._lock:  # the event thread waits until all of this is there
            try:
                domain = self._connection.lookupByUUIDString(self._vm_id)
                self._stream = self._connection.newStream(library.VIR_STREAM_NONBLOCK)
                domain.openConsole(None, self._stream, library.VIR_DOMAIN_CONSOLE_SAFE)
                self._near.setblocking(False)
                self._stream.eventAddCallback(self._stream_interest(), self._stream_ready, None)
                self._watch = library.virEventAddHandle(
                    self._near.fileno(), library.VIR_EVENT_HANDLE_READABLE, self._socket_ready, None
                )
            except BaseException:
                self._end("it could not be opened")
                self._far.close()
                raise
        return self._far

    # in the event thread

    def _stream_interest(self) -> int:
        wanted = self._library.VIR_STREAM_EVENT_READABLE
        if self._to_guest:
            wanted |= self._library.VIR_STREAM_EVENT_WRITABLE
        return int(wanted)

    def _socket_interest(self) -> int:
        """While the guest has not taken what came, no more is read; while the reader has not, more is written."""
        wanted = 0 if self._to_guest else self._library.VIR_EVENT_HANDLE_READABLE
        if self._to_reader:
            wanted |= self._library.VIR_EVENT_HANDLE_WRITABLE
        return int(wanted)

    def _stream_ready(self, _stream: Any, events: int, _opaque: object) -> None:
        library = self._library
        with self._lock:
            if self._has_ended:
                return
            try:
                if events & library.VIR_STREAM_EVENT_READABLE and not self._take_from_guest():
                    return
                if events & library.VIR_STREAM_EVENT_WRITABLE:
                    self._give_to_guest()
                if events & (library.VIR_STREAM_EVENT_ERROR | library.VIR_STREAM_EVENT_HANGUP):
                    self._end("the VM stopped, or libvirt did")
                    return
                self._update()
            except (OSError, library.libvirtError) as error:
                self._end(str(error))

    def _socket_ready(self, _watch: int, _descriptor: int, events: int, _opaque: object) -> None:
        library = self._library
        with self._lock:
            if self._has_ended:
                return
            try:
                if events & library.VIR_EVENT_HANDLE_WRITABLE:
                    self._give_to_reader()
                if events & library.VIR_EVENT_HANDLE_READABLE and not self._to_guest:
                    self._to_guest = self._near.recv(_PIECE_BYTES)
                    if not self._to_guest:
                        self._end("the reader left")
                        return
                    self._give_to_guest()
                elif events & (library.VIR_EVENT_HANDLE_HANGUP | library.VIR_EVENT_HANDLE_ERROR):
                    self._end("the reader left")
                    return
                self._update()
            except BlockingIOError:
                return
            except (OSError, library.libvirtError) as error:
                self._end(str(error))

    def _take_from_guest(self) -> bool:
        """Pass on what the guest wrote; False if that ended the session."""
        piece = self._stream.recv(_PIECE_BYTES)
        if piece == -2:  # nothing after all
            return True
        if not piece:
            self._end("the VM stopped")
            return False
        self._to_reader += piece
        self._give_to_reader()
        if len(self._to_reader) > LARGEST_BACKLOG_BYTES:
            self._end("the reader is too slow")
            return False
        return True

    def _give_to_reader(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._to_reader:
                del self._to_reader[: self._near.send(self._to_reader)]

    def _give_to_guest(self) -> None:
        while self._to_guest:
            sent = self._stream.send(self._to_guest)
            if sent == -2:
                return
            self._to_guest = self._to_guest[sent:]

    def _update(self) -> None:
        self._stream.eventUpdateCallback(self._stream_interest())
        self._library.virEventUpdateHandle(self._watch, self._socket_interest())

    def _end(self, why: str) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        _log.debug("a serial console was closed", extra={"vm_id": self._vm_id, "reason": why})
        if self._watch is not None:
            self._library.virEventRemoveHandle(self._watch)
        if self._stream is not None:
            with contextlib.suppress(self._library.libvirtError):
                self._stream.eventRemoveCallback()
        self._near.close()
        # What is left waits for the daemon's answers, for which the event thread has no time.
        threading.Thread(target=self._hang_up, name="libvirt-console-end", daemon=True).start()

    def _hang_up(self) -> None:
        with contextlib.suppress(self._library.libvirtError):
            if self._stream is not None:
                self._stream.abort()
        with contextlib.suppress(self._library.libvirtError):
            self._connection.close()
