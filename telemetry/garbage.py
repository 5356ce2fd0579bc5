"""Keep Python's search for garbage from stopping a process that holds much for long.

A full collection looks at every object that can hold others, in one go, while nothing else runs. With the records of
10,000 nodes in memory that is half a second, every few seconds, to find next to nothing: records go when nobody refers
to them, which takes no collection. So what has survived a full collection that took long is set aside, and later ones
look at what came since. Now and then all of it is looked at again, for the cycles among it that have become garbage.

Source: CPython 3.11, `gc.freeze` and `gc.callbacks` in the documentation of the module.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LONG_S = 0.02
"""A full collection that takes longer is one too many: calls are answered within milliseconds."""
THAW_AFTER_S = 6 * 3600.0
"""Between looks at what was set aside. Little can be garbage there: what was under way at that moment in cycles."""
_FULL = 2
_YOUNG_COUNT = 5_000
"""Objects made before the youngest are looked at, in place of 700: a look at 10,000 nodes makes tens of thousands, and
most of them are gone before it has ended. Looking at so many takes less than 10 ms."""


@dataclass(slots=True)
class ShortCollections:
    """Sets aside what full collections need not look at; `install` once a process."""

    clock: Callable[[], float] = time.monotonic
    _began_s: float = 0.0
    _thawed_s: float = 0.0

    def install(self) -> None:
        """Take part in every collection from now on."""
        self._thawed_s = self.clock()
        _, middle, old = gc.get_threshold()
        gc.set_threshold(_YOUNG_COUNT, middle, old)
        gc.callbacks.append(self)

    def uninstall(self) -> None:
        """Leave everything as it was before."""
        gc.callbacks.remove(self)
        gc.unfreeze()

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """Look how long a full collection takes; called by Python around each, in whichever thread that falls."""
        if info["generation"] != _FULL:
            return
        now_s = self.clock()
        if phase == "start":
            self._began_s = now_s
            if now_s - self._thawed_s >= THAW_AFTER_S:
                self._thawed_s = now_s
                gc.unfreeze()
        elif now_s - self._began_s > LONG_S:
            gc.freeze()
