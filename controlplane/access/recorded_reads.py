"""Which reads are in the audit trail too: those that reveal what a guest shows, unless the configuration says more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from controlplane.access.methods import METHODS, PACKAGE, Audience, MethodRule

DEFAULT: Final = ("VMService/GetConsoleLog",)
"""Whatever else reveals secrets or consoles counts as a change, and is always recorded."""
ALL: Final = "*"
ONE_RECORD_S: Final = 60.0
_MAX_REMEMBERED: Final = 10_000

_OF_PEOPLE: Final = frozenset({Audience.PEOPLE, Audience.USERS})
"""Heartbeats by the thousand, and what strangers ask, would hide the rest."""


def with_recorded(wanted: Iterable[str], methods: Mapping[str, MethodRule] = METHODS) -> Mapping[str, MethodRule]:
    """Make the table in which calls of these methods of people and programs are recorded as well.

    Args:
        wanted: each "Service/Method", "Service/*" or "*".

    Raises:
        ValueError: one of them is no method, or is not for people.
    """
    chosen = dict(methods)
    for each in wanted:
        found = [name for name in methods if _matches(name, each) and methods[name].audience in _OF_PEOPLE]
        if not found:
            raise ValueError(f"there is no method {each!r} of people; write Service/Method, Service/* or *")
        as_reads = {
            name: replace(methods[name], is_audited=True, is_read=not methods[name].is_audited) for name in found
        }
        chosen.update(as_reads)
    return MappingProxyType(chosen)


class RecentReads:
    """Tells which reads go without a record, as the same one by the same caller was recorded lately.

    Whoever follows a console asks for it several times a second.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._recorded_s: dict[tuple[str, str, str], float] = {}

    def is_news(self, who: str, method: str, what: str) -> bool:
        """Whether a read has to be recorded; it counts as that then."""
        now_s, key = self._now_s(), (who, method, what)
        recorded_s = self._recorded_s.get(key)
        if recorded_s is not None and now_s - recorded_s < ONE_RECORD_S:
            return False
        if len(self._recorded_s) >= _MAX_REMEMBERED:
            self._recorded_s.clear()
        self._recorded_s[key] = now_s
        return True


def _matches(name: str, wanted: str) -> bool:
    if wanted == ALL:
        return True
    service, _, method = wanted.partition("/")
    own = f"/{PACKAGE}.{service}/"
    return name.startswith(own) and method in (ALL, name.removeprefix(own))
