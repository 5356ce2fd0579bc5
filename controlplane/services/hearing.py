"""What this process itself heard of every node: in memory, by its own clock, never written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain.node import Node, NodeUsage
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest


@dataclass(frozen=True, slots=True)
class Heard:
    """The last heartbeat of a node.

    Attributes:
        at_s: when it arrived, by a clock that only goes forward.
        at: the same by the wall clock, for people.
    """

    node_id: str
    at_s: float
    at: datetime
    usage: NodeUsage
    boot_id: str = ""
    can_self_fence: bool = False
    self_fencing_obstacle: str = ""
    self_fences_within_ms: int = 0
    known_ha_version: int = 0
    known_fence_token: int = 0
    known_epoch: int = 0
    lease_left_ms: int = 0
    lost_storage_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Announced:
    """What a node said about its shutdown; kept until it is heard in another boot or calls it off."""

    kind: AnnounceShutdownRequest.Kind.ValueType
    boot_id: str
    at_s: float
    all_vms_ended: bool = False


@dataclass(slots=True)
class Hearing:
    """Everything heard by this process. Owned by the event loop's thread."""

    began_s: float
    _heard: dict[str, Heard] = field(default_factory=dict)
    _announced: dict[str, Announced] = field(default_factory=dict)

    def hear(self, heard: Heard) -> None:
        """Take note of a heartbeat."""
        self._heard[heard.node_id] = heard
        announced = self._announced.get(heard.node_id)
        if announced is not None and heard.boot_id and heard.boot_id != announced.boot_id:
            del self._announced[heard.node_id]

    def announce(self, node_id: str, announced: Announced | None) -> None:
        """Take note of a shutdown on purpose, or with None that it was called off."""
        if announced is None:
            self._announced.pop(node_id, None)
        else:
            self._announced[node_id] = announced

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self._heard.pop(node_id, None)
        self._announced.pop(node_id, None)

    def of(self, node_id: str) -> Heard | None:
        """Return a node's last heartbeat; None if there was none."""
        return self._heard.get(node_id)

    def newest(self, node: Node) -> Node:
        """Return a node with the usage of its last heartbeat, where that is newer than what is recorded."""
        heard = self._heard.get(node.id)
        if heard is None or (node.last_heartbeat_at is not None and node.last_heartbeat_at >= heard.at):
            return node
        return replace(node, last_heartbeat_at=heard.at, usage=heard.usage)

    def announced(self, node_id: str) -> Announced | None:
        """Return what a node said about its shutdown."""
        return self._announced.get(node_id)

    @property
    def all(self) -> Mapping[str, Heard]:
        """Every node's last heartbeat, by id."""
        return self._heard
