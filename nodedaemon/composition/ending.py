"""That the daemon ends once it was told to, whatever hangs: the next one has to renew the lease before it is over."""

from __future__ import annotations

import faulthandler
from typing import Final

END_LIMIT_S: Final = 45.0
"""For the whole end. Heartbeats go on for most of it: calls under way get their time, and the host keeps its lease."""

SILENT_END_LIMIT_S: Final = 3.0
"""For what is left once heartbeats end. A lease of 9 s is then 2 s old, and the next daemon takes 3 s to start."""


def end_within(limit_s: float) -> None:
    """Have the process print what its threads do, and exit with status 1, if it still runs then.

    A later call takes the place of an earlier one. It works without the event loop and without the interpreter's lock.
    All that the daemon keeps is kept so that it can be killed at any moment.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)
