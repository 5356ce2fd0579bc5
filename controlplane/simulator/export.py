"""Make a cluster file of what the API says about a live cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import ValidationError

from controlplane.domain.vm import PowerState, vcpu_count
from controlplane.simulator.cluster_file import ClusterFile, to_document
from limiquantix.compute.v1.node_pb2 import Node, NodeStatus
from limiquantix.compute.v1.vm_pb2 import VirtualMachine

Document = Mapping[str, Any]
_STATES: Final = {"RUNNING", "STOPPED", "PAUSED", "SUSPENDED", "CRASHED"}
_OF_NO_USE: Final = ("agent", "provisioning", "display", "boot", "serial", "watchdog", "rng")
"""Parts of a VM's spec that say nothing about where it can run, and may hold secrets."""


def export_cluster(nodes: Iterable[Document], vms: Iterable[Document]) -> dict[str, Any]:
    """Write nodes and VMs, documents of the API, as a cluster file, without first-boot data, displays and the like.

    Raises:
        ValueError: the answer of the server makes no sense as a cluster.
    """
    documents = {
        "version": 1,
        "nodes": [_node(ParseDict(dict(node), Node(), ignore_unknown_fields=True)) for node in nodes],
        "vms": [_vm(ParseDict(dict(vm), VirtualMachine(), ignore_unknown_fields=True)) for vm in vms],
    }
    try:
        return to_document(ClusterFile.model_validate(documents))
    except ValidationError as error:
        raise ValueError(f"what the server says makes no cluster file: {error.errors()[0]['msg']}") from error


def _node(node: Node) -> dict[str, Any]:
    spec, resources = node.spec, node.status.resources
    cpu = spec.cpu
    topology = max(cpu.sockets, 1) * max(cpu.cores_per_socket, 1) * max(cpu.threads_per_core, 1)
    entry: dict[str, Any] = {
        "name": node.hostname,
        "id": node.id,
        "cpus": cpu.total_threads or topology,
        "memory": _bytes(spec.memory.total_bytes),
        "capacity": {
            "vcpus": resources.cpu.allocatable_vcpus,
            "memory": _bytes(resources.memory.allocatable_bytes),
        },
        "phase": NodeStatus.Phase.Name(node.status.phase),
        "schedulable": spec.scheduling.schedulable,
        "labels": dict(node.labels),
        "spec": _node_spec(node),
    }
    if resources.memory.used_bytes or resources.memory.available_bytes:
        percent = min(max(resources.cpu.usage_percent, 0.0), 100.0)
        entry["used"] = {"cpu_percent": round(percent, 3), "memory": _bytes(resources.memory.used_bytes)}
    return entry


def _node_spec(node: Node) -> dict[str, Any]:
    spec = type(node.spec)()
    spec.CopyFrom(node.spec)
    for name in ("agent", "storage", "gpus"):
        spec.ClearField(name)
    return MessageToDict(spec)


def _vm(vm: VirtualMachine) -> dict[str, Any]:
    spec = type(vm.spec)()
    spec.CopyFrom(vm.spec)
    for name in _OF_NO_USE:
        spec.ClearField(name)
    state = PowerState.Name(vm.status.state)
    memory_mib = max(spec.memory.size_mib, vm.status.running_memory_mib)
    return {
        "name": vm.name,
        "id": vm.id,
        "project": vm.project_id,
        "node": vm.status.node_id,
        "cpus": max(vcpu_count(spec.cpu), vm.status.running_vcpus),
        "memory": f"{memory_mib}MiB",
        # One in between is taken for what it most likely becomes.
        "state": state if state in _STATES else ("RUNNING" if state in ("MIGRATING", "PROVISIONING") else "STOPPED"),
        "labels": dict(vm.labels),
        "spec": MessageToDict(spec),
    }


def _bytes(count: int) -> str:
    return f"{count}B"
