"""One TCP address in front of servers that come and go, as a load balancer gives it to clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE_BYTES = 65536


class Switchboard:
    """Connects whoever calls `url` with `target`, "host:port", as it is then; without one it hangs up."""

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.lets_through = threading.Event()
        """Cleared, it keeps whoever calls waiting, who then has the more patience."""
        self.lets_through.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Such as "https://127.0.0.1:40001"."""
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Serve until `close`."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def hang_up(self) -> None:
        """End all connections there are."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def _connect(self, client: socket.socket) -> None:
        self.lets_through.wait()
        host, _, port = self.target.rpartition(":")
        with client, contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port))) as server:
            self._open |= {client, server}
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()
            self._open -= {client, server}


@contextmanager
def switchboard(target: str = "") -> Iterator[Switchboard]:
    """Run a switchboard; nothing of it is left behind."""
    board = Switchboard(target)
    thread = threading.Thread(target=board.run, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        board.close()
        thread.join(10)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
