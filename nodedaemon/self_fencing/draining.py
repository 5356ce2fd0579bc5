"""When a host may say that it knows of a fence: once nothing can come any more of what was begun before it.

A change that hangs in the hypervisor is refused by nothing: it was let in long ago. While the host has no lease the
guard kills what comes of it. So the host gets none, and its fence is not ended, before all changes are over that were
under way when it learnt of the fence, however long those who asked for them have given up waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

UnderWay = Callable[[], Collection[object]]
"""Gives marks of changes under way; each stays until nothing can come of its change."""


class Draining:
    """The newest fence token that a host may say it knows."""

    def __init__(self, token: int) -> None:
        self._token = token
        self._sources: list[UnderWay] = []
        self._waits_for: list[set[object]] = []

    def watch(self, source: UnderWay) -> None:
        """Take these changes into account from now on."""
        self._sources.append(source)
        self._waits_for.append(set())

    def learn(self) -> None:
        """Note what is under way at the moment at which a larger token was learnt."""
        for waits_for, source in zip(self._waits_for, self._sources, strict=True):
            waits_for.update(source())

    def known(self, token: int) -> int:
        """Return the token that may be told, of a host that was told `token`."""
        for waits_for, source in zip(self._waits_for, self._sources, strict=True):
            waits_for.intersection_update(source())
        if not any(self._waits_for):
            self._token = token
        return self._token
