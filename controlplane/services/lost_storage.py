"""Storage that a host lost: noted with its node, so that no VM is placed upon it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.node import Node
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import NodeSpec


def lost_ids(node: Node) -> frozenset[str]:
    """Return the storage that is noted as lost."""
    return frozenset(domain.id for domain in node.spec.storage_domains if domain.is_lost)


def tells_news(node: Node, said: Collection[str]) -> bool:
    """Whether a host says something else of the storage that it registered with than is noted."""
    return any(domain.is_lost != (domain.id in said) for domain in node.spec.storage_domains)


async def note_lost_storage(tx: Transaction, node_id: str, said: Collection[str], now: datetime) -> None:
    """Note which storage a host lost, and which came back. Idempotent."""
    node = await tx.get_node(node_id)
    if node is None or not tells_news(node, said):
        return
    spec = NodeSpec()
    spec.CopyFrom(node.spec)
    for domain in spec.storage_domains:
        domain.is_lost = domain.id in said
    changed = replace(node, spec=spec, updated_at=now)
    lost = ", ".join(domain.path or domain.id for domain in spec.storage_domains if domain.is_lost)
    if lost:
        event = Event(EventType.NODE_STORAGE_LOST, f"node {node.hostname} lost storage {lost}", Severity.ERROR)
    else:
        event = Event(EventType.NODE_STORAGE_BACK, f"node {node.hostname} has all its storage again")
    await tx.update_node(changed, event)
