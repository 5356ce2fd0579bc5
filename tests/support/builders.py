"""Records with sensible values, so that a test states only what it is about."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.domain.folder import Folder
from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.project import Project
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo, NodeRole, NodeSpec, SchedulingConfig
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec

GIB = 2**30
START_OF_TIME = datetime(2025, 1, 1, tzinfo=UTC)

_serial = itertools.count()


def make_id() -> str:
    """Make a UUID like those the services give."""
    return str(uuid.uuid4())


def make_vm(*, cores: int = 1, memory_mib: int = 128, spec: VmSpec | None = None, **fields: Any) -> Vm:
    """Make a stopped VM on no node, a second younger than the record made before it.

    Args:
        cores: size of the spec, if that is not given.
        memory_mib: as `cores`.
        spec: the whole document.
        fields: any field of `Vm`.
    """
    number, now = _next_moment()
    size = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))
    defaults: Mapping[str, Any] = {
        "id": make_id(),
        "name": f"vm-{number}",
        "project_id": DEFAULT_PROJECT_ID,
        "spec": size if spec is None else spec,
        "node_id": "",
        "power_state": PowerState.STOPPED,
        "created_at": now,
        "updated_at": now,
        "state_changed_at": now,
    }
    return Vm(**{**defaults, **fields})


def make_node(*, vcpus: int = 16, memory_bytes: int = 32 * GIB, spec: NodeSpec | None = None, **fields: Any) -> Node:
    """Make an empty, READY, schedulable compute node, a second younger than the record made before it.

    Args:
        vcpus: what may be claimed on it, and how many threads its spec has.
        memory_bytes: as `vcpus`.
        spec: the whole document.
        fields: any field of `Node`.
    """
    number, now = _next_moment()
    parts = NodeSpec(
        cpu=CpuInfo(model="Test CPU", sockets=1, cores_per_socket=vcpus, threads_per_core=1, total_threads=vcpus),
        memory=MemoryInfo(total_bytes=memory_bytes, allocatable_bytes=memory_bytes),
        role=NodeRole(compute=True),
        scheduling=SchedulingConfig(schedulable=True),
    )
    defaults: Mapping[str, Any] = {
        "id": make_id(),
        "hostname": f"host-{number}",
        "management_ip": f"192.0.2.{number % 254 + 1}",
        "agent_endpoint": f"192.0.2.{number % 254 + 1}:9090",
        "spec": parts if spec is None else spec,
        "phase": Phase.READY,
        "capacity": Capacity(vcpus, memory_bytes),
        "created_at": now,
        "updated_at": now,
        "last_heartbeat_at": now,
    }
    return Node(**{**defaults, **fields})


def make_project(**fields: Any) -> Project:
    """Make a project without a quota; `fields` are any of `Project`."""
    number, now = _next_moment()
    defaults: Mapping[str, Any] = {
        "id": make_id(),
        "name": f"project-{number}",
        "created_at": now,
        "updated_at": now,
    }
    return Project(**{**defaults, **fields})


def make_folder(**fields: Any) -> Folder:
    """Make a folder at the root of the default project; `fields` are any of `Folder`."""
    number, now = _next_moment()
    defaults: Mapping[str, Any] = {
        "id": make_id(),
        "project_id": DEFAULT_PROJECT_ID,
        "parent_id": "",
        "name": f"folder-{number}",
        "type": "vm",
        "created_at": now,
        "updated_at": now,
    }
    return Folder(**{**defaults, **fields})


def _next_moment() -> tuple[int, datetime]:
    number = next(_serial)
    return number, START_OF_TIME + timedelta(seconds=number)
