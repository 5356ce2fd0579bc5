"""Numbers that never fall, kept ahead of what hosts know: epochs, fence tokens, versions of the settings.

A host refuses whatever carries smaller ones than it was told, for good. After the database was restored from an older
backup its numbers are smaller. So where a host knows larger ones, the database counts on from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from controlplane.domain.fencing import Counters, Marks
from controlplane.services.hearing import Heard
from controlplane.services.lease_marks import LeaseMarks
from controlplane.state.interface import Store

_log = structlog.get_logger(__name__)

BATCH_COUNT = 500
"""Hosts whose numbers are recorded in one transaction."""


def is_ahead(heard: Heard, recorded: Marks) -> bool:
    """Whether a host knows a larger number than a reading of the database has. Pure.

    A reading that began before the host was heard may just be older.
    """
    return (
        heard.known_epoch > recorded.epoch
        or heard.known_ha_version > recorded.settings.version
        or heard.known_fence_token > recorded.tokens.get(heard.node_id, 0)
    )


def counters_of(heard: Mapping[str, Heard]) -> Counters:
    """Return the largest numbers that these hosts know."""
    return Counters(
        epoch=max(each.known_epoch for each in heard.values()),
        ha_version=max(each.known_ha_version for each in heard.values()),
        tokens={node_id: each.known_fence_token for node_id, each in heard.items() if each.known_fence_token},
    )


@dataclass(slots=True)
class LeaseCounters:
    """Hosts that know larger numbers than was read. Owned by the event loop's thread."""

    store: Store
    marks: LeaseMarks
    _ahead: dict[str, Heard] = field(default_factory=dict)

    def compare(self, heard: Heard) -> None:
        """Take in what a host knows."""
        recorded = self.marks.recorded
        if recorded is not None and is_ahead(heard, recorded):
            self._ahead[heard.node_id] = heard

    async def sync(self) -> None:
        """Have the database count on from what hosts know that was read since to know less.

        Raises:
            ApiError: the database does not answer; nothing is lost.
        """
        recorded, began_s = self.marks.recorded, self.marks.recorded_began_s
        if recorded is None or not self._ahead:
            return
        read_since = [node_id for node_id, heard in self._ahead.items() if heard.at_s < began_s]
        known: dict[str, Heard] = {}
        for node_id in read_since:
            if not is_ahead(self._ahead[node_id], recorded):
                del self._ahead[node_id]
            elif len(known) < BATCH_COUNT:
                known[node_id] = self._ahead[node_id]
        if not known:
            return
        raised = await self.store.run(lambda tx: tx.raise_counters(counters_of(known)))
        for node_id, heard in known.items():
            if self._ahead.get(node_id) is heard:
                del self._ahead[node_id]
        if raised.is_any:
            _log.critical(
                "database_knew_less_than_hosts",
                epoch=raised.epoch,
                ha_version=raised.ha_version,
                node_count=len(raised.tokens),
            )

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self._ahead.pop(node_id, None)
