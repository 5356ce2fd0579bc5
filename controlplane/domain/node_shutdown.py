"""What a host said about being shut down or rebooted, as it is noted with its node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.domain.node import Node
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest

ShutdownKind = AnnounceShutdownRequest.Kind

SHUTDOWN = "limiquantix.io/shutdown"
"""Annotation that the control plane keeps: what is about to happen, in which boot, and whether all VMs ended."""
_ENDED = "ended"


@dataclass(frozen=True, slots=True)
class NotedShutdown:
    """A shutdown on purpose, said in the boot that it ends."""

    kind: AnnounceShutdownRequest.Kind.ValueType
    boot_id: str
    all_vms_ended: bool = False


def shutdown_of(annotations: Mapping[str, str]) -> NotedShutdown | None:
    """Read what is noted; None for nothing."""
    said = annotations.get(SHUTDOWN)
    if said is None:  # of nearly all nodes, and all are looked at once a second
        return None
    words = said.split(" ")
    if words[0] not in ShutdownKind.keys():  # noqa: SIM118 - an enum of the contract is no mapping
        return None
    boot_id = words[1] if len(words) > 1 else ""
    return NotedShutdown(ShutdownKind.Value(words[0]), boot_id, _ENDED in words[2:])


def with_shutdown(node: Node, noted: NotedShutdown | None, now: datetime) -> Node:
    """Return the node with what it said, or with nothing; the very same object if it was so before."""
    notes = {key: text for key, text in node.annotations.items() if key != SHUTDOWN}
    if noted is not None:
        words = [ShutdownKind.Name(noted.kind), noted.boot_id, *([_ENDED] if noted.all_vms_ended else [])]
        notes[SHUTDOWN] = " ".join(words)
    return node if notes == dict(node.annotations) else replace(node, annotations=notes, updated_at=now)
