"""What placement reads of the VMs that there are: where they are, what they claim, and their rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from controlplane.domain.node import Capacity
from limiquantix.compute.v1.vm_pb2 import VmSpec

LOST_EVERY_RACE = "no node fits: other callers took the room on every node that had some"


class VmVersion(NamedTuple):
    """A placed VM, where it is, and the version of all the rest. A tuple, since there may be very many."""

    vm_id: str
    version: int
    node_id: str


@dataclass(frozen=True, slots=True)
class NodeName:
    """What rules can say of a node."""

    id: str
    hostname: str
    labels: Mapping[str, str]


class VmClaim(NamedTuple):
    """What a placed VM claims on its node. A tuple, since there may be very many."""

    vm_id: str
    node_id: str
    claim: Capacity


@dataclass(frozen=True, slots=True)
class StandingVm:
    """A placed VM. `vcpus` and `memory_bytes` are what it claims on its node."""

    id: str
    name: str
    project_id: str
    node_id: str
    version: int
    vcpus: int
    memory_bytes: int
    labels: Mapping[str, str]
    spec: VmSpec
