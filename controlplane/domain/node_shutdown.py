"""What a host said about being shut down or rebooted, as it is noted with its node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.domain.node import Node
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest

ShutdownKind = AnnounceShutdownRequest.Kind

SHUTDOWN = "limiquantix.io/shutdown"
"""Annotation that the control plane keeps: the host's last word, of which boot, when, and whether all VMs ended."""
_ENDED = "ended"
_AT = "at="


@dataclass(frozen=True, slots=True)
class NotedShutdown:
    """A shutdown on purpose, said in the boot that it ends; or that it was called off.

    Attributes:
        said_at_ms: by the host's clock since that boot; 0 for unknown, of hosts that do not tell.
    """

    kind: AnnounceShutdownRequest.Kind.ValueType
    boot_id: str
    all_vms_ended: bool = False
    said_at_ms: int = 0

    def is_overtaken_by(self, newest: NotedShutdown | None) -> bool:
        """Whether it comes late: the host said something else since, in this boot."""
        return newest is not None and newest.boot_id == self.boot_id and 0 < self.said_at_ms < newest.said_at_ms

    def repeats(self, before: NotedShutdown | None) -> bool:
        """Whether it only says again that the host goes, as hosts do while they wait."""
        is_same = before is not None and replace(self, said_at_ms=0) == replace(before, said_at_ms=0)
        return is_same and self.kind != ShutdownKind.CANCELLED


def shutdown_of(annotations: Mapping[str, str]) -> NotedShutdown | None:
    """Read which shutdown is noted; None for none, or one that was called off."""
    said = last_word(annotations)
    return None if said is None or said.kind == ShutdownKind.CANCELLED else said


def last_word(annotations: Mapping[str, str]) -> NotedShutdown | None:
    """Read what the host said last; None for nothing."""
    said = annotations.get(SHUTDOWN)
    if said is None:  # of nearly all nodes, and all are looked at once a second
        return None
    words = said.split(" ")
    if words[0] not in ShutdownKind.keys():  # noqa: SIM118 - an enum of the contract is no mapping
        return None
    boot_id = words[1] if len(words) > 1 else ""
    at_ms = next((word.removeprefix(_AT) for word in words[2:] if word.startswith(_AT)), "")
    said_at_ms = int(at_ms) if at_ms.isascii() and at_ms.isdigit() else 0
    return NotedShutdown(ShutdownKind.Value(words[0]), boot_id, _ENDED in words[2:], said_at_ms)


def with_shutdown(node: Node, noted: NotedShutdown | None, now: datetime) -> Node:
    """Return the node with what it said, or with nothing; the very same object if it was so before."""
    notes = {key: text for key, text in node.annotations.items() if key != SHUTDOWN}
    if noted is not None:
        words = [ShutdownKind.Name(noted.kind), noted.boot_id, *([_ENDED] if noted.all_vms_ended else [])]
        words += [f"{_AT}{noted.said_at_ms}"] if noted.said_at_ms else []
        notes[SHUTDOWN] = " ".join(words)
    return node if notes == dict(node.annotations) else replace(node, annotations=notes, updated_at=now)
