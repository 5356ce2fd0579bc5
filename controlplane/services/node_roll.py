"""Nodes as they were last read, so that a heartbeat reads nothing.

One query now and then tells the versions of all nodes, and only those that changed are read. What was read once counts
until then, also while the database hangs or is away: a host that beats must be answered all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.domain import errors
from controlplane.domain.node import Node
from controlplane.services.ha_clock import clock_s
from controlplane.services.seen import NodesKept
from controlplane.state.interface import Store
from limiquantix.errors import ApiError


class RollNews(NamedTuple):
    """Nodes that are new or were changed, and ids of those that are gone."""

    changed: Sequence[Node]
    gone: Collection[str]


@dataclass(slots=True)
class NodeRoll:
    """Owned by the event loop's thread.

    Attributes:
        reads_always: whether a node is read for each heartbeat after all, for tests without a loop.
        is_away: whether the last look at all nodes failed.
        kept: what others of this process read of nodes; of the same version they are the same, and held once.
    """

    store: Store
    reads_always: bool = False
    clock: Callable[[], float] = clock_s
    is_away: bool = False
    kept: NodesKept = field(default_factory=NodesKept)
    _nodes: dict[str, Node] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    """As the last look found them, of all nodes."""
    _read_s: dict[str, float] = field(default_factory=dict)

    async def node(self, node_id: str) -> Node:
        """Return a node, read if it must be.

        Raises:
            NotFound: there is none of that id.
            Unavailable: it was never read, and the database does not answer.
        """
        known = self._nodes.get(node_id)
        if known is not None and not self.reads_always:
            return known
        return await self.reread(node_id)

    async def reread(self, node_id: str) -> Node:
        """Read a node that was changed here.

        Raises:
            NotFound: there is none of that id.
            Unavailable: the database does not answer; what was known stays.
        """
        began_s = self.clock()
        node = await self.store.read(lambda tx: tx.get_node(node_id))
        if node is None:
            self._forget(node_id)
            raise errors.node_not_found(node_id)
        self._take(node, began_s)
        return node

    def _take(self, node: Node, began_s: float) -> None:
        known = self._nodes.get(node.id)
        if known is None or known.version <= node.version:
            self._nodes[node.id] = node
            self._read_s[node.id] = began_s

    def _forget(self, node_id: str) -> None:
        self._nodes.pop(node_id, None)
        self._read_s.pop(node_id, None)

    async def refresh(self) -> RollNews:
        """Bring all nodes up to date, and return what is new.

        Raises:
            ApiError: the database does not answer; what is known stays.
        """
        began_s = self.clock()
        try:
            versions = await self.store.read(lambda tx: tx.node_versions())
            # Sets are compared several times as fast as nodes are looked at one by one, and there may be thousands.
            news = versions.items() - self._versions.items()
            changed, stale = list[Node](), list[str]()
            for node_id, version in news:
                if self._is_known(node_id, version):
                    continue
                seen = self.kept.at_once.nodes.get(node_id)
                if seen is not None and seen.node.version == version:
                    changed.append(seen.node)
                else:
                    stale.append(node_id)
            if stale:
                changed += await self.store.read(lambda tx: tx.nodes(stale))
        except ApiError:
            self.is_away = True
            raise
        self.is_away, self._versions = False, versions
        # One that was read since may be newer than all that.
        gone = {each for each in self._nodes.keys() - versions.keys() if self._read_s[each] <= began_s}
        for node_id in gone:
            self._forget(node_id)
        for node in changed:
            self._take(node, began_s)
        return RollNews(changed, gone)

    def _is_known(self, node_id: str, version: int) -> bool:
        known = self._nodes.get(node_id)
        return known is not None and known.version >= version
