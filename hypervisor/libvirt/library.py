"""libvirt-python itself: loaded when first needed, silenced, and with its event loop in a thread of our own.

Why a thread and not `libvirtaio`: libvirt registers sockets and timers from whichever thread makes a call, and
`libvirtaio` passes that straight to `loop.add_reader`, which may only be called in the loop's own thread; ours make
their calls in worker threads. Besides, keep-alive answers then do not depend on how busy the asyncio loop is, and more
than one asyncio loop may come and go in a process, while libvirt takes one event implementation for good.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from hypervisor.errors import Unavailable

_log = logging.getLogger(__name__)
_ready = threading.Lock()
_state = {"started": False}
_PAUSE_AFTER_FAILURE_S: Final = 1.0
"""Keeps a loop whose poll fails for good from burning a core."""


def load_libvirt() -> Any:
    """Import libvirt-python and, the first time in a process, start its event thread.

    Has to come before any connection is opened, since a connection only gets the events of a loop that is registered.

    Raises:
        Unavailable: the library is not installed.
    """
    try:
        import libvirt  # noqa: PLC0415  # an optional dependency: the mock must work without it
    except ImportError as error:
        raise Unavailable(
            "the libvirt backend needs libvirt-python, which is not installed here "
            f"({error}); install it with: pip install 'limiquantix[libvirt]' "
            "(it is built from source: gcc, pkg-config, libvirt-dev and python3-dev are needed)"
        ) from error
    with _ready:
        if not _state["started"]:
            # Without a handler the library prints every error to stderr, besides raising it.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _state["started"] = True
    return libvirt


def load_libvirt_qemu() -> Any:
    """Import the part of libvirt-python that knows QEMU's guest agent; comes with the other.

    Raises:
        Unavailable: the library is not installed.
    """
    load_libvirt()
    import libvirt_qemu  # noqa: PLC0415  # see above

    return libvirt_qemu


def _run_events(libvirt: Any) -> None:
    """Deliver libvirt's events until the process ends."""
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            _log.exception("libvirt's event loop failed; trying again")
            time.sleep(_PAUSE_AFTER_FAILURE_S)
